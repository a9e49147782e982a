"""Check the type hints of the exported code with mypy.

python tools/typecheck.py          check; exit code 1 if there is anything to say
python tools/typecheck.py OUT      only write the modules as they are checked to the folder OUT

A class grows over its chapter: `@patch` makes a function a method afterwards, which a type checker can't know. So a copy is checked in which each
such function stands in its class. What is found is reported by the line of the real module and by its notebook.
"""

import ast
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def patched(node):
    "The name of the class that `@patch` gives this function to, or None."
    if not isinstance(node, ast.FunctionDef) or not any(isinstance(d, ast.Name) and d.id == "patch" for d in node.decorator_list):
        return None
    return ast.unparse(node.args.args[0].annotation)


def grown(text):
    "A module with its patched functions moved into their classes: (lines, number of each line in the original)."
    tree, lines = ast.parse(text), text.split("\n")
    classes = {n.name: n for n in tree.body if isinstance(n, ast.ClassDef)}
    moved, gone = {}, set()
    for node in tree.body:
        if patched(node) in classes:
            first = min(d.lineno for d in node.decorator_list)
            span = range(first - 1, node.end_lineno)
            moved.setdefault(classes[patched(node)].end_lineno, []).append((node, span))
            gone.update(span)
    out = []
    for i, line in enumerate(lines):
        if i not in gone:
            out.append((line, i + 1))
        for node, span in moved.get(i + 1, ()):
            strings = {n for c in ast.walk(node) if isinstance(c, ast.Constant) and isinstance(c.value, str) for n in range(c.lineno, c.end_lineno)}  # inside a text nothing is indented
            me = node.args.args[0]
            for k in span:
                if lines[k].strip() == "@patch":
                    continue
                line = lines[k]
                if k == me.annotation.lineno - 1:  # a method's own argument needs no hint
                    line = line[: me.end_col_offset - len(ast.unparse(me.annotation))].rstrip(": ") + line[me.end_col_offset :]
                out.append((line if k in strings else "    " + line, k + 1))
    return [line for line, _ in out], [n for _, n in out]


def write(folder):
    "The package as it is checked; returns {module: line numbers}."
    (folder / "deepswap").mkdir(parents=True, exist_ok=True)
    numbers = {}
    for path in sorted((ROOT / "deepswap").glob("*.py*")):
        if path.suffix == ".py" and not path.stem.startswith("_"):
            lines, numbers[path.name] = grown(path.read_text(encoding="utf-8"))
            (folder / "deepswap" / path.name).write_text("\n".join(lines), encoding="utf-8")
        elif path.stem != "_modidx":
            (folder / "deepswap" / path.name).write_bytes(path.read_bytes())
    return numbers


def check(folder, numbers):
    "What mypy has to say, by the lines of the real modules."
    words = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache"), "-p", "deepswap"]
    run = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    out = []
    for line in (run.stdout + run.stderr).splitlines():
        if found := re.match(r"deepswap/(\w+\.py):(\d+):(.*)", line):
            n = numbers.get(found[1], [])
            line = f"deepswap/{found[1]}:{n[int(found[2]) - 1] if int(found[2]) <= len(n) else found[2]}:{found[3]}"
        out.append(line)
    return run.returncode, out


if __name__ == "__main__":
    if len(sys.argv) > 1:
        write(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as tmp:
            code, lines = check(Path(tmp), write(Path(tmp)))
        print(*lines, sep="\n")
        sys.exit(code)
