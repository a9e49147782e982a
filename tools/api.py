"""The stable names: which they are, and what is made from them.

python tools/api.py   writes deepswap/_api.py, deepswap/__init__.pyi and api.md from the modules' `__all__` and docstrings
"""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# What a program may count on, by purpose. Everything else is public in its module and may change with its chapter.
# `module.name` stands for a function that shares its module's name: `deepswap.evaluate` is the module, and stays it.
STABLE = {
    "Swap the faces of photos": "swap_photo swap_face get_swapper SwapResult ClassicalSwapper FaceShifterSwapper HearSwapper PairSwapper load_faceshifter load_hear",
    "Swap the faces of a video": "swap_video VideoResult FaceTracker video_frames",
    "Say, and see, that a result is synthetic": "stamp stamp_video inspect Inspection read_credentials",
    "Find faces": "find_faces choose_faces Face align_photo paste_photo extract_faces",
    "Pictures in and out": "read_image write_image to_tensor to_pil show_images",
    "People who do not exist": "sample_people People render exact_swap attributes scene_path",
    "Data": "open_faces ProceduralFaces FolderFaces PeopleFolders Loader PairLoader split_people quality_filter",
    "Train": "run Trainer Method register load_method GAN CycleGAN ProgressiveCycleGAN AutoencoderSwap FaceSwapGAN FaceShifter Hear",
    "Judge": "evaluate.evaluate evaluation_task photo_task open_report Report get_encoder verify pose_error expression_error psnr",
    "Surroundings": "pick_device seed_everything cache_dir",
    "Errors a user can mend": "DeepswapError UsageError DeviceError ImageError NoFaceError SeveralFacesError DataError WeightsError TrainingError OutputError",
}

PAGE = """# The stable interface

<!-- Made by tools/api.py: change that file, or the docstring in the chapter, and run `make sync`. -->

These names are what a program may count on. Each can be had from the package itself:

```python
from deepswap import swap_photo, stamp

result = swap_photo("anna.jpg", "ben.jpg")
stamp(result.image, "out.png", method=result.method)
```

`import deepswap` alone takes a few milliseconds and loads neither torch nor numpy; what a name needs is loaded when it is first asked for. Modules can be had in the same way: `deepswap.people.render`. Where a function has its module's name, the package's name is the module: `from deepswap.evaluate import evaluate`.

What is promised: within 0.x, a name of this page keeps its meaning, its arguments and their defaults; one that must go is announced by a `DeprecationWarning` for one release first. No name is deprecated now. All other names are the chapters' own; they are public, documented and tested in their module, and may change with their chapter.

"""


def modules():
    "Every module that a notebook exports, by name, as (number of its chapter, tree, names in `__all__`)."
    found = {}
    for path in sorted((ROOT / "deepswap").glob("[!_]*.py")):
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        listed = next(n.value for n in tree.body if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "__all__")
        found[path.stem] = re.search(r"File to edit: \.\./(nbs/\S+\.ipynb)", text)[1], tree, ast.literal_eval(listed)
    return found


def home(name, found):
    "The one module whose `__all__` holds a stable name."
    homes = [m for m, (_, _, names) in found.items() if name in names]
    if len(homes) != 1:
        sys.exit(f"tools/api.py: the stable name {name!r} is in {' and '.join(homes) or 'no module'}; it must be in one.")
    if name in found:
        sys.exit(f"tools/api.py: {name!r} is a module; write {homes[0]}.{name}.")
    return homes[0]


def tables(found):
    "Stable name -> module for the names of the package, and rows (purpose, written name, module) for the page."
    rows = []
    for purpose, words in STABLE.items():
        for word in words.split():
            module, dot, name = word.rpartition(".")
            if dot and name not in found[module][2]:
                sys.exit(f"tools/api.py: {word!r} is not in the module {module}.")
            rows.append((purpose, word, module if dot else home(word, found)))
    return {word: module for _, word, module in rows if "." not in word}, rows


def described(name, tree):
    "A name as it is called, and the first line of its docstring."
    node = next((n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name == name), None)
    if node is None:
        sys.exit(f"tools/api.py: {name!r} is neither a function nor a class.")
    doc = ast.get_docstring(node).split("\n\n")[0].replace("\n", " ")
    if isinstance(node, ast.ClassDef):
        node = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
        if node is None:
            return name, doc
        node.args.args = node.args.args[1:]  # without self
    args = node.args
    for a in (*args.posonlyargs, *args.args, *args.kwonlyargs, *filter(None, (args.vararg, args.kwarg))):
        a.annotation = None
    return f"{name}({ast.unparse(args)})", doc


def files():
    "What is made, as {path: text}."
    found = modules()
    table, rows = tables(found)
    names = "\n".join(f"    {n!r}: {m!r}," for n, m in table.items())
    others = "\n".join(f"    {m!r}: {' '.join(names)!r}," for m, (_, _, names) in found.items())
    note = "Made by tools/api.py from the `__all__` of each module: do not edit."
    code = f'"{note}"\n# fmt: off\nSTABLE = {{ # name -> module\n{names}\n}}\nPUBLIC = {{ # module -> all its public names\n{others}\n}}\n'.replace("'", '"')
    stub = f"# {note}\n" + "".join(f"from . import {m} as {m}\n" for m in found) + "".join(f"from .{m} import {n} as {n}\n" for n, m in table.items())
    stub += "\n__version__: str\n__all__: list[str]\n\ndef __dir__() -> list[str]: ...\n"
    page, last = PAGE, None
    for purpose, word, module in rows:
        if purpose != last:
            page += f"{'' if last is None else chr(10)}## {purpose}\n\n| Name | What it is | Chapter |\n|---|---|---|\n"
            last = purpose
        chapter, tree, _ = found[module]
        call, doc = described(word.rpartition(".")[2], tree)
        page += f"| `{word.rpartition('.')[0] + '.' * ('.' in word)}{call}` | {doc.replace('|', chr(92) + '|')} | [{chapter[4:6]} {module}]({chapter}) |\n"
    return {"deepswap/_api.py": code, "deepswap/__init__.pyi": stub, "api.md": page}


if __name__ == "__main__":
    for name, text in files().items():
        (ROOT / name).write_text(text, encoding="utf-8")
