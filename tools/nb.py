"Text to notebook: merge a jupytext percent script into its notebook (cell ids and outputs stay), then export that notebook alone."

import subprocess
import sys
from pathlib import Path

from nbdev.export import nb_export

USAGE = "usage: python tools/nb.py NN_name [TEXT.py]   (TEXT.py defaults to ./_text/NN_name.py)"
if len(sys.argv) < 2:
    sys.exit(USAGE)
name = sys.argv[1].removesuffix(".ipynb").removeprefix("nbs/")
root = Path(__file__).resolve().parents[1]
nb = root / ("index.ipynb" if name == "index" else f"nbs/{name}.ipynb")
text = Path(sys.argv[2]) if len(sys.argv) > 2 else root / "_text" / f"{name}.py"
if not text.exists():
    sys.exit(f"{text} not found. {USAGE}")
update = ["--update"] if nb.exists() else []
subprocess.run([sys.executable, "-m", "jupytext", *update, "--to", "ipynb", str(text), "-o", str(nb)], check=True)
if name != "index":
    nb_export(nb)
