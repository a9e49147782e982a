"What a stranger installs: all of it in the wheel, nothing else, and checked by machines we don't own."

import json
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from common import script

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    "The source distribution, a folder with what is in it, and the wheel made from that folder; with the setuptools at hand, so without the network."
    pytest.importorskip("setuptools", minversion="77")
    out = tmp_path_factory.mktemp("dist")
    (out / "checkout").mkdir()
    script("tools/sync.py").copy_of_checkout(out / "checkout")  # a build leaves traces
    for what, folder in (("sdist", out / "checkout"), ("wheel", out / "unpacked")):
        if what == "wheel":
            with tarfile.open(next(out.glob("*.tar.gz"))) as t:
                t.extractall(out / "unpacked")
            folder = next(folder.iterdir())
        run = subprocess.run([sys.executable, "-c", f"import setuptools.build_meta as b; b.build_{what}({str(out)!r})"], cwd=folder, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr[-3000:]
    return folder, next(out.glob("*.whl"))


def test_wheel_holds_library_weights_and_course(built):
    _, wheel = built
    names = {n for n in zipfile.ZipFile(wheel).namelist() if n.startswith("deepswap/")}
    from deepswap.cli import course_files
    course = course_files(ROOT)
    expected = {f"deepswap/{p.name}" for p in (ROOT / "deepswap").glob("*.py*") if p.is_file()} | {"deepswap/py.typed"}
    expected |= {f"deepswap/weights/{p.name}" for p in (ROOT / "deepswap/weights").iterdir() if p.suffix in (".md", ".safetensors")}
    expected |= {f"deepswap/static/{p.name}" for p in (ROOT / "deepswap/static").iterdir()}
    grown = script("tools/typecheck.py").grown
    texts = {p.stem: p.read_text(encoding="utf-8") for p in (ROOT / "deepswap").glob("[!_]*.py")}
    expected |= {f"deepswap/course/{n}" for n in course} | {f"deepswap/{m}.pyi" for m, text in texts.items() if "\n".join(grown(text)[0]) != text}
    assert "deepswap/train.pyi" in expected and "deepswap/core.pyi" not in expected
    assert {n for n in names if not n.endswith("/")} == expected
    assert sum(n.startswith("deepswap/course/nbs/") for n in names) == len(list((ROOT / "nbs").glob("[!_.]*.ipynb"))) >= 31
    with zipfile.ZipFile(wheel) as z:
        for name, path in course.items():
            assert z.read(f"deepswap/course/{name}") == path.read_bytes(), name
        assert "deepswap = deepswap.cli:main" in z.read(next(n for n in z.namelist() if n.endswith("entry_points.txt"))).decode()
    assert wheel.stat().st_size < 60e6


def test_source_distribution_holds_what_a_developer_needs(built):
    names = {p.relative_to(built[0]).as_posix() for p in built[0].rglob("*") if p.is_file()}
    assert {"settings.ini", "setup.py", "index.ipynb", "nbs/00_core.ipynb", "benchmarks/results/known.json", "tests/test_core.py", "tools/sync.py", "Makefile"} <= names
    assert not [n for n in names if ".ipynb_checkpoints" in n or n.endswith(".pyc")]


def test_an_editable_install_holds_no_second_copy():
    assert not (ROOT / "deepswap/course").exists(), "remove it: the course is packed when the wheel is built"
    assert "editable_mode" in (ROOT / "setup.py").read_text()


def test_recorded_wheels():
    "What tools/wheel_check.py found on each Python it was run with: all steps, none left out."
    book = json.loads((ROOT / "benchmarks/results/wheel.json").read_text())
    assert "3.13" in book and set(book) <= {"3.10", "3.11", "3.12", "3.13"}
    for version, rec in book.items():
        assert rec["ok"] and rec["python"].startswith(version) and rec["import_s"] < 0.2 and "passed" in rec["tests"] and "failed" not in rec["tests"], rec
        assert {"import", "every module", "people", "swap", "inspect", "unpack", "unpack again", "demo", "lab", "tests"} <= set(rec["cpu_s"])
        assert sum(s.startswith("chapter ") for s in rec["cpu_s"]) >= 2


@pytest.mark.parametrize("path", sorted((ROOT / ".github/workflows").glob("*.yml")), ids=lambda p: p.name)
def test_workflows_are_well_formed(path):
    flow = yaml.safe_load(path.read_text())
    assert flow["name"] == path.stem and (flow.get("on") or flow.get(True)), "YAML reads `on` as true"
    assert flow["permissions"]["contents"] == "read"
    for job in flow["jobs"].values():
        assert job["runs-on"]
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            if "uses" in step:
                assert re.fullmatch(r"[\w-]+/[\w-]+(/[\w-]+)?@v\d+", step["uses"]), step
            else:
                run = subprocess.run(["bash", "-n"], input=re.sub(r"\$\{\{.*?\}\}", "x", step["run"]), capture_output=True, text=True)
                assert run.returncode == 0, run.stderr
                for named in re.findall(r"\b(?:tools|\.ci)/[\w.]+", step["run"]):
                    assert (ROOT / named).exists(), named


def test_workflows_cover_every_supported_python_and_the_audit():
    flows = {p.stem: yaml.safe_load(p.read_text()) for p in (ROOT / ".github/workflows").glob("*.yml")}
    lowest = re.search(r"min_python = (\S+)", (ROOT / "settings.ini").read_text())[1]
    for flow, job in (("test", "test"), ("wheel", "use")):
        assert flows[flow]["jobs"][job]["strategy"]["matrix"]["python"] == [lowest, "3.11", "3.12", "3.13"]
    audit = flows["audit"]
    assert audit[True]["schedule"] and "settings.ini" in audit[True]["push"]["paths"] and "settings.ini" in audit[True]["pull_request"]["paths"]
    assert "pip_audit" in audit["jobs"]["audit"]["steps"][-1]["run"]
