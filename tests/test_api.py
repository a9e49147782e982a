"The names a program may count on: they are there, they are described, and asking for none of them costs nothing."

import ast
import importlib
import json
import subprocess
import sys
import warnings
from pathlib import Path

import deepswap
import pytest
from common import script

ROOT = Path(__file__).resolve().parents[1]


def python(code, *options):
    "A fresh interpreter in the checkout."
    return subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True, cwd=ROOT)


def test_importing_loads_nothing_heavy():
    r = python("import sys; before = set(sys.modules); import deepswap; print(*(m for m in set(sys.modules) - before if m.split('.')[0] not in sys.stdlib_module_names))")
    assert r.returncode == 0, r.stderr
    assert set(r.stdout.split()) == {"deepswap", "deepswap._api"}, "only the table of names"
    r = python("import sys, deepswap; deepswap.DeepswapError; print('torch' in sys.modules)")
    assert r.stdout == "True\n", "a name brings what it needs"


def test_importing_is_quick():
    "Python's own account of it, so that a busy machine's start-up isn't counted: under 0.2 s."
    best = 9e9
    for _ in range(3):
        last = python("import deepswap", "-X", "importtime").stderr.splitlines()[-1]
        assert last.endswith("| deepswap")
        best = min(best, int(last.split("|")[1]))
    assert best < 200_000, f"{best} microseconds"


def test_recorded_import_time():
    rec = json.loads((ROOT / "benchmarks/results/imports.json").read_text())
    assert rec["import_deepswap_s"] < 0.2 and rec["ratio_to_python"] < 1.5 and rec["modules_loaded"] == 2


def test_tables_and_page_are_up_to_date():
    for name, text in script("tools/api.py").files().items():
        assert (ROOT / name).read_text(encoding="utf-8") == text, f"{name} is out of date, run `make sync`"


def test_every_stable_name_is_the_one_of_its_module():
    assert 40 <= len(deepswap.__all__) <= 90
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)  # none of them is deprecated
        for name in deepswap.__all__:
            value = getattr(deepswap, name)
            home = importlib.import_module(f"deepswap.{deepswap._STABLE[name]}")
            assert value is getattr(home, name) and name in home.__all__ and value.__doc__, name


def test_modules_stay_modules():
    import types
    for path in (ROOT / "deepswap").glob("[!_]*.py"):
        assert isinstance(getattr(deepswap, path.stem), types.ModuleType), path.stem
    r = python("import deepswap; print(deepswap.evaluate.__name__, deepswap.swap.swap_photo is deepswap.swap_photo); from deepswap import swap; print(swap.__name__)")
    assert r.stdout.split() == ["deepswap.evaluate", "True", "deepswap.swap"], r.stderr


def test_star_import_brings_the_stable_names_only():
    r = python("before = set(dir()); from deepswap import *; print(*sorted(set(dir()) - before - {'before'}))")
    assert r.returncode == 0, r.stderr
    assert r.stdout.split() == sorted(deepswap.__all__)


def test_dir_and_unknown_names():
    assert {"swap_photo", "swap", "evaluate", "__version__"} <= set(dir(deepswap))
    with pytest.raises(AttributeError, match=r"no attribute 'Mixture'; it is in deepswap\.gan"):
        print(deepswap.Mixture)
    with pytest.raises(AttributeError, match="no attribute 'swap_foto'$"):
        print(deepswap.swap_foto)
    with pytest.raises(ImportError, match="swap_foto"):
        from deepswap import swap_foto  # noqa: F401


def test_page_shows_every_stable_name():
    page = (ROOT / "api.md").read_text(encoding="utf-8")
    for name in deepswap.__all__:
        assert f"| `{name}" in page, name
    assert "api.md" in (ROOT / "_quarto.yml").read_text()


def test_a_name_in_two_modules_is_refused():
    api = script("tools/api.py")
    found = api.modules()
    with pytest.raises(SystemExit, match="SUFFIXES"):
        api.home("SUFFIXES", found)
    with pytest.raises(SystemExit, match="evaluate"):
        api.home("evaluate", found)
    with pytest.raises(SystemExit, match="no module"):
        api.home("swap_foto", found)


def test_stub_says_the_same():
    tree = ast.parse((ROOT / "deepswap/__init__.pyi").read_text())
    named = {a.asname for n in tree.body if isinstance(n, ast.ImportFrom) for a in n.names}
    assert named == {*deepswap.__all__, *deepswap._PUBLIC}
