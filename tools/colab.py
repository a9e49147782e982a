"""Give every chapter its link to Colab and the cell that installs deepswap there; both are made from settings.ini, so they can't point elsewhere.

python tools/colab.py          write
"""

import hashlib
import json
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
INSTALL = """#| hide
# On Colab: install deepswap and go to its chapters. Elsewhere this does nothing.
if "google.colab" in str(get_ipython()):
    get_ipython().system("pip install -q git+{git} && deepswap lab /content/course --unpack-only")
    get_ipython().run_line_magic("cd", "/content/course/nbs")"""


def cells_for(path):
    "The two cells of a notebook of the repository: the link and the installation."
    ini = ConfigParser(delimiters=["="])
    ini.read(ROOT / "settings.ini", encoding="utf-8")
    cfg = ini["DEFAULT"]
    name = path.relative_to(ROOT).as_posix()
    link = f"[Open in Colab](https://colab.research.google.com/github/{cfg['user']}/{cfg['repo']}/blob/{cfg['branch']}/{name})"
    ids = [hashlib.sha256(f"{kind} {name}".encode()).hexdigest()[:8] for kind in ("link", "install")]
    return [
        {"cell_type": "markdown", "id": ids[0], "metadata": {}, "source": [link]},
        {"cell_type": "code", "execution_count": None, "id": ids[1], "metadata": {}, "outputs": [], "source": INSTALL.format(git=cfg["git_url"]).splitlines(keepends=True)},
    ]


def with_cells(path):
    "The notebook's text with both cells where they belong: after the cell that names the module."
    text = path.read_text(encoding="utf-8")
    nb = json.loads(text)
    wanted = cells_for(path)
    at = 1 + next(i for i, c in enumerate(nb["cells"]) if "".join(c["source"]).startswith("#| default_exp"))
    if nb["cells"][at : at + 2] == wanted:
        return text
    old = {c["id"] for c in wanted}
    cells = [c for c in nb["cells"] if c["id"] not in old]
    nb["cells"] = cells[:at] + wanted + cells[at:]
    return json.dumps(nb, indent=1, ensure_ascii=False) + "\n"


def chapters():
    return sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))


if __name__ == "__main__":
    for chapter in chapters():
        text = with_cells(chapter)
        if text != chapter.read_text(encoding="utf-8"):
            chapter.write_text(text, encoding="utf-8")
