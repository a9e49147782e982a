"Exercises outside the notebook: the checks of a chapter, its solutions, and answers that must not pass."

import json

from common import ROOT

from deepswap.core import exercise, run_solutions


def checks(chapter, names):
    "Define a chapter's checks among these names; returns them by name."
    cells = json.loads((ROOT / f"nbs/{chapter}.ipynb").read_text(encoding="utf-8"))["cells"]
    names["exercise"], before = exercise, set(names)
    for code in ("".join(c["source"]) for c in cells if c["cell_type"] == "code"):
        if code.startswith("@exercise"):
            exec(code, names)
    return {k: v for k, v in names.items() if k not in before and hasattr(v, "__wrapped__")}


def toy(chapter, name, until="\n\n"):
    "The beginning of the cell that defines a name."
    cells = json.loads((ROOT / f"nbs/{chapter}.ipynb").read_text(encoding="utf-8"))["cells"]
    return next("".join(c["source"]) for c in cells if f"def {name}(" in "".join(c["source"])).partition(until)[0]


def all_hold(chapter, names, wrong):
    "Each solution is right, and no answer of `wrong`, {check: answers, a tuple where it takes several}, is; nor is one that raises."
    found = checks(chapter, names)
    assert set(wrong) == set(found), "a wrong answer for each check"
    assert run_solutions(str(ROOT / "nbs" / chapter), names).startswith(f"{len(found)} solutions run")
    for name, answers in wrong.items():
        for answer in answers:
            verdict = found[name](*answer) if isinstance(answer, tuple) else found[name](answer)
            assert not verdict and "Hint" in repr(verdict), f"{chapter}, {name} takes {answer}"
        raising = [lambda *a: 1 / 0] * (len(answers[0]) if isinstance(answers[0], tuple) else 1)
        assert not found[name](*raising)
