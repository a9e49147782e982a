"""Run a notebook the way nbdev_test does and keep its outputs, figures as small JPEGs.

python tools/refresh.py nbs/01_people.ipynb        full mode, saved
python tools/refresh.py --dry nbs/01_people.ipynb  run only (DEEPSWAP_FAST=1 for fast mode)
"""

import os
import sys
import time
from pathlib import Path

from execnb.nbio import read_nb, write_nb
from execnb.shell import CaptureShell
from fastcore.xtras import working_directory
from nbdev.clean import clean_nb
from nbdev.config import get_config
from nbdev.process import extract_directives

os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
args = [a for a in sys.argv[1:] if not a.startswith("--")]
dry = "--dry" in sys.argv
if len(args) != 1:
    sys.exit(__doc__)
skip = set(get_config().tst_flags.split())


def no_eval(cell):
    if cell.cell_type != "code":
        return True
    d = extract_directives(cell, remove=False)
    return d.get("eval:", [""])[0].lower() == "false" or bool(skip & d.keys()) or "nbdev_export(" in cell.source


def still(nb):
    "Leave the picture a widget drew and drop its view, which needs a live kernel, and its screen-clearing codes."
    for cell in nb.cells:
        keep = []
        for o in cell.get("outputs", []):
            if "application/vnd.jupyter.widget-view+json" in o.get("data", {}):
                continue
            if o.get("output_type") == "stream":
                o["text"] = [t for t in (line.replace("\x1b[2K", "") for line in o["text"]) if t]
                if not "".join(o["text"]).strip():
                    continue
            keep.append(o)
        if cell.cell_type == "code":
            cell["outputs"] = keep


path = Path(args[0]).resolve()
nb = read_nb(path)
for cell in nb.cells:
    if cell.cell_type == "code":
        cell["outputs"] = []
shell = CaptureShell(path)
shell.run_cell("%config InlineBackend.figure_formats = ['jpeg']")
shell.run_cell("%config InlineBackend.print_figure_kwargs = {'bbox_inches': 'tight', 'pil_kwargs': {'quality': 80}}")
start = time.time()
with working_directory(path.parent):
    shell.run_all(nb, exc_stop=True, preproc=no_eval)
print(f"{path.name}: {time.time() - start:.0f} s")
if not dry:
    still(nb)
    clean_nb(nb, allowed_cell_metadata_keys=get_config().allowed_cell_metadata_keys.split())
    write_nb(nb, path)
    print(f"{path.stat().st_size / 1e3:.0f} kB")
