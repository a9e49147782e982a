"""Make the reference pages of the site, in reference/ (not kept in git): every public name, the model cards, a gallery, the benchmarks.

python tools/pages.py
"""

import ast
import base64
import hashlib
import html
import json
import re
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "reference"
PAGES = {"api": "Every public name", "models": "Model cards", "gallery": "Gallery", "benchmarks": "Benchmarks"}


def chapters():
    "(notebook, module) of every chapter that exports one, in the order of the course."
    for nb in sorted((ROOT / "nbs").glob("[0-9]*.ipynb")):
        cells = json.loads(nb.read_text())["cells"]
        found = re.search(r"#\| default_exp (\w+)", "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code"))
        if found and (ROOT / "deepswap" / f"{found[1]}.py").exists():
            yield nb, ROOT / "deepswap" / f"{found[1]}.py", cells


def title(cells):
    "The heading of a notebook."
    return next(m[1] for c in cells if (m := re.search(r"^# (.+)", "".join(c["source"]))))


def first_line(node):
    return (ast.get_docstring(node) or "").split("\n")[0].replace("|", "\\|")


def arguments(node):
    "The arguments of a function or a class as text."
    if isinstance(node, ast.ClassDef):
        node = next((f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"), None)
        if node is None:
            return ""
    text = ast.unparse(node.args)
    return re.sub(r"^self(: \w+)?(, )?", "", text).replace("|", "\\|")


def shown(text, most=160):
    "Code for a table, cut where a name ends."
    if len(text) > most:
        text = text[:most].rpartition(",")[0] + ", ..."
    return f"`{text}`" if text else ""


def api():
    "A table of public names for each module, with a link to the chapter that builds it."
    lines = [f"# {PAGES['api']}", "", "Each name is built, tried and tested in its chapter, where its arguments are described one by one. `from deepswap.MODULE import NAME`.", ""]
    for nb, module, cells in chapters():
        tree = ast.parse(module.read_text())
        public = next((ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "__all__"), [])
        nodes = {n.name: n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
        lines += [f"## {module.stem}", "", f"[{title(cells)}](../nbs/{nb.name})", "", "| Name | Takes | Does |", "|---|---|---|"]
        lines += [f"| `{name}` | {shown(arguments(nodes[name]))} | {first_line(nodes[name])} |" for name in public if name in nodes and not name.startswith("_")]
        lines.append("")
    return "\n".join(lines)


def models():
    "The cards of all weights in the package, after a table of what they are."
    lines = [f"# {PAGES['models']}", "", "Weights that come inside the package, each made by a command of the repository from people who don't exist.", "", "| Weights | MB | SHA-256 |", "|---|---|---|"]
    cards = sorted((ROOT / "deepswap" / "weights").glob("*.md"))
    for card in cards:
        data = card.with_suffix(".safetensors").read_bytes()
        lines.append(f"| `{card.stem}` | {len(data) / 1e6:.1f} | `{hashlib.sha256(data).hexdigest()[:16]}…` |")
    for card in cards:
        lines += ["", re.sub(r"^(#+) ", r"#\1 ", card.read_text(), flags=re.M)]
    return "\n".join(lines)


def pictures(cell):
    "The figures that a cell shows, each as (kind, data, the text for those who can't see it)."
    said = re.search(r'#\| fig-alt: "?(.+?)"?$', "".join(cell["source"]), re.M)
    for o in cell.get("outputs", []):
        for kind in ("image/jpeg", "image/png"):
            if kind in o.get("data", {}):
                yield kind[6:], base64.b64decode("".join(o["data"][kind])), said[1] if said else o.get("metadata", {}).get(kind, {}).get("alt")
                break


def gallery():
    "The figures of the course that its authors tagged, each with the text for those who can't see it."
    lines = [f"# {PAGES['gallery']}", "", "A few figures of the course, as the chapters' last full runs drew them. Everybody here is computed; nobody was photographed.", ""]
    (OUT / "images").mkdir(parents=True, exist_ok=True)
    for nb, _, cells in chapters():
        figures = []
        for c in cells:
            if "gallery" not in c.get("metadata", {}).get("tags", []):
                continue
            found = list(pictures(c))
            for i, (kind, data, said) in enumerate(found):
                name = f"{nb.stem}_{c['id']}{f'_{i}' if i else ''}.{kind}"
                (OUT / "images" / name).write_bytes(data)
                text = html.escape(said or title(cells), quote=True)
                caption = f"<figcaption>{text}</figcaption>" if said not in [s for *_, s in found[i + 1:]] else ""  # one text may speak of several figures
                figures.append(f'<figure><img src="images/{name}" alt="{text}" loading="lazy">{caption}</figure>')
        if figures:
            lines += [f"## [{nb.name[:2]} {title(cells)}](../nbs/{nb.name})", "", '<div class="gallery">', *figures, "</div>", ""]
    return "\n".join(lines)


def benchmarks():
    "The page that benchmarks/all.py wrote."
    return (ROOT / "benchmarks" / "README.md").read_text()


if __name__ == "__main__":
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    for name in PAGES:
        (OUT / f"{name}.md").write_text(globals()[name]())
