"""Check the type hints of the exported code with mypy.

python tools/typecheck.py          check; exit code 1 if there is anything to say
python tools/typecheck.py OUT      only write the modules as they are checked to the folder OUT

A class grows over its chapter: `@patch` makes a function a method afterwards, which a type checker can't know. So a copy is checked in which each
such function stands in its class, and in which attributes that no method assigns by name are declared: see `declared`. What is found is reported
by the line of the real module. The same copies are packed into the wheel as .pyi files, for the type checkers of those who use the library.
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


OPEN = {  # classes whose attributes are set from outside, or under names that are made at run time
    "Canvas": "the parts of a picture leave their maps on it",
    "Faces": "its subclasses give the pictures, and those that are drawn the people",
    "VideoJob": "takes the settings of swap_video over from a dictionary",
}
STARS = "mypy takes the length of what `*` unpacks for unknown"
TORCH = "torch's layers say of their attributes 'a tensor or a module'; which it is stands in the line or is tested before"
ACCEPTED = {  # (module, code, piece of the line) -> why it is right nevertheless
    ("faces", "misc", "pixel_grid(*size, like=m)"): STARS,
    ("provenance", "call-arg", "mark_pattern(*y.shape"): STARS,
    ("classify", "call-arg", "attribute_scores(*examine("): STARS,
    ("coursework", "call-arg", "PairTest(*train"): STARS,
    ("coursework", "arg-type", "PairTest(*train"): STARS,
    ("train", "misc", "self.restore(*self.good"): STARS,
    ("layers", "misc", "super().__init__(*{"): STARS,
    ("faceswap_gan", "arg-type", "Beta(*["): STARS,
    ("provenance", "misc", "True, *content"): STARS,
    ("layers", "arg-type", "padding_mode=pad"): "the text is one of torch's words; torch says so if it is not",
    ("norms", "arg-type", "padding_mode=pad"): "likewise",
    ("layers", "arg-type", "nn.init."): TORCH,
    ("layers", "union-attr", "m.parametrizations.weight"): TORCH,
    ("layers", "return-value", "m.parametrizations.weight"): TORCH,
    ("aei", "index", "aad["): TORCH,
    ("aei", "union-attr", "mask"): TORCH,
    ("faceswap_gan", "operator", "math.prod(m.kernel_size)"): TORCH,
    ("faceswap_gan", "arg-type", "math.prod(m.kernel_size)"): TORCH,
    ("classify", "operator", "m.reset_parameters()"): TORCH,
    ("standout", "arg-type", "layer.kernel_size"): "a convolution of two dimensions has tuples of two",
    ("standout", "arg-type", "dilation=layer.dilation"): "likewise",
    ("standout", "assignment", "new = (nn.ConvTranspose2d if turned else nn.Conv2d)"): "one name for the new layer, whatever it is",
    ("core", "attr-defined", "last.value"): "the last line of a solution is an expression: the sentence in the docstring says so",
    ("show", "attr-defined", "thread.error = None"): "the thread takes its error along",
    ("cli", "attr-defined", "parser.words"): "the parser takes the words along",
    ("cli", "return", "def free_name("): "a thousand names are not all taken",
    ("provenance", "return", "def _informed_weights("): "the last round returns",
    ("data", "override", "def original(self)"): "an attribute for some sets, computed for others",
    ("evaluate", "func-returns-value", "digest.update"): "a list for the sake of the loop",
    ("classical", "assignment", "keep = keep + (1 - keep)"): "one number becomes one for each picture",
    ("tracking", "call-overload", "got[i], t, f ="): "a list of None that is filled",
    ("extraction", "assignment", "self.last = self.last"): "None before the first picture",
    ("extraction", "str-format", "*place(*p)"): "two numbers and a colour",
    ("train", "arg-type", "zlib.crc32"): "a numpy array is a buffer",
    ("cyclegan", "operator", "make()"): "'none' was turned away in the same line",
    ("progressive", "operator", "d.settle()"): TORCH,
    ("classify", "arg-type", "encoder.length"): TORCH,
    ("provenance", "call-overload", "np.shape(image)"): "numpy takes a picture of Pillow's",
    ("provenance", "attr-defined", "y.shape != total.shape"): "the sum begins at the number 0",
    ("provenance", "assignment", "total + _flatten(y)"): "likewise",
    ("identity", "assignment", "faces = aligned_faces("): "one name for either kind of data set",
    ("yardsticks", "assignment", "space = SqueezeFeatures("): "one name for either kind of space",
    ("faceshifter", "return-value", "return sum("): "there is at least one map",
    ("evaluate", "arg-type", "report.has(name"): "a task's name, or the name itself",
    ("evaluate", "index", "pictures[pick]"): "never a `Rendered`: its pictures are taken before",
    ("swap", "arg-type", "PairSwapper)(load_method(file"): "another kind of method was turned away before",
    ("swap", "assignment", "known = str(e)"): "an acquaintance, or the sentence that says why there is none",
    ("gpu", "method-assign", "self.trainer._gradients"): "put back in the same block",
    ("video", "misc", "self.__init__("): "a job that cannot go on begins anew, with its own class",
    ("demo", "index", "doc_host"): "nbdev's own table",
    ("demo", "attr-defined", 'ui["method"].change'): "a dictionary of the parts of the page",
    ("demo", "name-defined", "gr.Request"): "gradio is loaded when the page is built, and its name is a local one",
}
SELF = ("Params",)  # its methods give the class they were called on


NETWORKS = {"torch.nn.Module", "torch.autograd.Function"}  # torch says of their unknown attributes "a tensor or a module", and then nothing can be done with them


def learn_networks():
    "Enter the names of all our classes that are networks, in whatever module their bases are."
    classes = [n for p in (ROOT / "deepswap").glob("[!_]*.py") for n in ast.parse(p.read_text(encoding="utf-8")).body if isinstance(n, ast.ClassDef)]
    before = 0
    while before != len(NETWORKS):
        before = len(NETWORKS)
        NETWORKS.update(n.name for n in classes for b in map(ast.unparse, n.bases) if b in NETWORKS or b.startswith("nn."))


def begins_as_none(nodes):
    "Attributes of `self` that are None at first; they hold something else later."
    for a in (a for n in nodes for a in ast.walk(n) if isinstance(a, ast.Assign)):
        for target in a.targets:
            pairs = zip(target.elts, a.value.elts) if isinstance(target, ast.Tuple) and isinstance(a.value, ast.Tuple) else [(target, a.value)]
            yield from (t.attr for t, v in pairs if isinstance(v, ast.Constant) and v.value is None and isinstance(t, ast.Attribute) and ast.unparse(t.value) == "self")


def declared(node, methods):
    "Lines that declare what a class has besides what its methods assign: buffers of a network, arguments that are taken over as a whole, anything."
    init = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    calls = [n for n in ast.walk(node) if isinstance(n, ast.Call)]
    own = {n.name for n in (*node.body, *methods) if isinstance(n, ast.FunctionDef)}  # a property, say
    names = {} if node.decorator_list else {k: "_Any" for k in begins_as_none([node, *methods]) if k not in own}
    for c in calls:
        if ast.unparse(c.func) == "self.register_buffer" and isinstance(c.args[0], ast.Constant):
            names[c.args[0].value] = "_Tensor"
        if init and ast.unparse(c.func) in ("vars(self).update", "self.__dict__.update") and init.lineno <= c.lineno <= init.end_lineno:
            for a in (*init.args.args[1:], *init.args.kwonlyargs):
                names[a.arg] = ast.unparse(a.annotation) if a.annotation else "_Any"
    return [f"    {k}: {v}" for k, v in names.items()] + ["    def __getattr__(self, name: str) -> _Any: ..."] * (node.name in NETWORKS | set(OPEN)) + ["    def __setattr__(self, name: str, value: _Any) -> None: ..."] * (
        node.name in OPEN
    )


def grown(text):
    "A module with its patched functions moved into their classes: (lines, number of each line in the original)."
    tree, lines = ast.parse(text), text.split("\n")
    classes = {n.name: n for n in tree.body if isinstance(n, ast.ClassDef)}
    extra = {}  # line before which something is declared
    if len(NETWORKS) < 3:
        learn_networks()
    for node in classes.values():
        if more := declared(node, [n for n in tree.body if patched(n) == node.name]):
            first = next((n for n in node.body if isinstance(n, ast.FunctionDef)), node.body[-1])
            extra[min([first.lineno, *(d.lineno for d in first.decorator_list)])] = more
    if extra or any(patched(n) in SELF for n in tree.body):
        imports = ["from typing import Any as _Any"] * bool(extra) + ["from torch import Tensor as _Tensor"] * any("_Tensor" in x for m in extra.values() for x in m)
        after = next(n.lineno for n in tree.body if isinstance(n, ast.Assign))  # __all__
        extra[after] = [*imports, *["from typing_extensions import Self as _Self"] * any(patched(n) in SELF for n in tree.body)]
    moved, gone = {}, set()
    for node in tree.body:
        if patched(node) in classes:
            first = min(d.lineno for d in node.decorator_list)
            span = range(first - 1, node.end_lineno)
            moved.setdefault(classes[patched(node)].end_lineno, []).append((node, span))
            gone.update(span)
    out = []
    for i, line in enumerate(lines):
        out += [(more, i + 1) for more in extra.get(i + 1, ())]
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
                if patched(node) in SELF and node.returns and k == node.returns.lineno - 1:
                    line = line.replace(f"->{patched(node)}:", "->_Self:")
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
    out, unused = [], set(ACCEPTED)
    for line in (run.stdout + run.stderr).splitlines():
        if ": note:" in line or line.startswith(("Found ", "Success")):
            continue
        if found := re.match(r"deepswap/(\w+\.pyi?):(\d+):(.*)", line):
            name, number = found[1], int(found[2])
            copy = (folder / "deepswap" / name).read_text(encoding="utf-8").split("\n")
            source = copy[number - 1].strip()
            if known := [k for k in ACCEPTED if k[0] == name.partition(".")[0] and f"[{k[1]}]" in line and k[2] in source]:
                unused -= set(known)
                continue
            if number <= len(numbers.get(name, ())):
                number = numbers[name][number - 1]
            line = f"deepswap/{name}:{number}:{found[3]}\n    {source}"
        out.append(line)
    told = f"{len(numbers)} modules checked; {len(ACCEPTED)} findings are known and explained."
    if unused:  # other versions of torch or numpy may hint better
        told += " Not found this time: " + ", ".join(f"{m} {piece!r}" for m, _, piece in sorted(unused))
    return int(bool(out)), out or [told]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        write(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as tmp:
            code, lines = check(Path(tmp), write(Path(tmp)))
        print(*lines, sep="\n")
        sys.exit(code)
