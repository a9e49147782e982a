"""Bring everything that is made from the notebooks up to date: the library, its table of names, clean metadata, README.md.

python tools/sync.py          write
python tools/sync.py --check  change nothing; exit 1 and name what is out of date
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def copy_of_checkout(folder):
    "The files git knows or would add, as they are now, in `folder`."
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True, text=True
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def write(root):
    "Export, clean, and write the table of names and README.md in the checkout at `root`."
    subprocess.run([sys.executable, "tools/colab.py"], cwd=root, check=True)  # a new chapter gets its link
    for command in ("nbdev_export", "nbdev_clean"):
        subprocess.run([str(Path(sys.executable).with_name(command))], cwd=root, check=True)
    for tool in ("tools/api.py", "tools/readme.py"):
        subprocess.run([sys.executable, tool], cwd=root, check=True)


def differences(a, b):
    "Names of the files under `b` that differ from `a` or are new."
    names = [p.relative_to(b) for p in b.rglob("*") if p.is_file() and p.suffix in (".py", ".pyi", ".ipynb", ".md", ".jpg")]
    names = [n for n in names if n.parts[0] not in ("_proc", "build") and "egg-info" not in n.parts[0]]
    return [n for n in names if not (a / n).exists() or (a / n).read_bytes() != (b / n).read_bytes()]


if __name__ == "__main__":
    if "--check" in sys.argv:
        with tempfile.TemporaryDirectory() as tmp:
            copy_of_checkout(Path(tmp))
            write(Path(tmp))
            stale = differences(ROOT, Path(tmp))
        if stale:
            sys.exit("Out of date, run `make sync` and commit: " + ", ".join(map(str, stale)))
        print("Library, notebooks and README are in sync.")
    else:
        write(ROOT)
