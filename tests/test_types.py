"The type hints: what a checker sees of the library, here and in the wheel."

import ast
import importlib.util
import sys
from pathlib import Path

import pytest
from common import script

ROOT = Path(__file__).resolve().parents[1]


def test_patched_methods_stand_in_their_classes():
    tool = script("tools/typecheck.py")
    text = "__all__ = []\nclass A:\n    'An A.'\n    def __init__(self, size:int, x=None): vars(self).update(size=size, x=x); self.y = None\n\n@patch\ndef twice(self:A, n:int=2)->int:\n    '''Two\nlines.'''\n    return n * self.size\n\nb = 1"
    lines, numbers = tool.grown(text)
    made = ast.parse("\n".join(lines))
    cls = next(n for n in made.body if isinstance(n, ast.ClassDef))
    assert [n.name for n in cls.body if isinstance(n, ast.FunctionDef)] == ["__init__", "twice"]
    assert {ast.unparse(n) for n in cls.body if isinstance(n, ast.AnnAssign)} == {"size: int", "x: _Any", "y: _Any"}
    assert "self:A" not in "\n".join(lines) and "patch" not in "\n".join(lines)
    assert ast.get_docstring(cls.body[-1], clean=False) == "Two\nlines.", "a text is not indented"
    original = text.split("\n")
    assert len(lines) == len(numbers) and original[numbers[next(i for i, s in enumerate(lines) if "return n" in s)] - 1].strip() == "return n * self.size"


@pytest.mark.parametrize("path", sorted((ROOT / "deepswap").glob("[!_]*.py")), ids=lambda p: p.stem)
def test_what_is_checked_is_the_module(path):
    "The same code, only elsewhere: every function and its body, in the copy that the checker reads."
    tool = script("tools/typecheck.py")
    text = path.read_text(encoding="utf-8")
    bodies = lambda t: sorted((n.name, "\n".join(map(ast.unparse, n.body))) for n in ast.walk(ast.parse(t)) if isinstance(n, ast.FunctionDef) and n.name not in ("__getattr__", "__setattr__"))
    assert bodies("\n".join(tool.grown(text)[0])) == bodies(text)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed")
def test_hints_are_right(tmp_path):
    "mypy has nothing to say that is not explained in the tool; and a wrong hint is found, at its line."
    tool = script("tools/typecheck.py")
    code, said = tool.check(tmp_path, tool.write(tmp_path))
    assert code == 0, "\n".join(said)
    assert not [k for k in tool.ACCEPTED if not (ROOT / f"deepswap/{k[0]}.py").exists() or k[2] not in (ROOT / f"deepswap/{k[0]}.py").read_text()], "an accepted finding of a line that is gone"
    path = tmp_path / "deepswap/objectives.py"
    path.write_text(path.read_text() + '\ndef wrong(x:int)->str: return x\n')
    (tmp_path / "deepswap/user.py").write_text("from deepswap import Trainer, swap_photo\ndef f(t: Trainer) -> None:\n    t.fit()\n    t.fitt()\n    swap_photo(no_such_argument=1)\n")
    code, said = tool.check(tmp_path, {})
    said = "\n".join(said)
    assert code == 1
    assert '"Trainer" has no attribute "fitt"' in said and "no_such_argument" in said and 'has no attribute "fit"' not in said
    assert 'got "int", expected "str"' in said


def test_tool_does_not_shadow_the_standard_library():
    assert not {p.stem for p in (ROOT / "tools").glob("*.py")} & (set(sys.stdlib_module_names) - {"site"})
