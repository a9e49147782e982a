"index.ipynb becomes README.md; its pictures go to images/."

import re
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import TagRemovePreprocessor
from traitlets.config import Config

ROOT = Path(__file__).resolve().parents[1]


def render():
    "README text and its pictures as {name: bytes}."
    nb = nbformat.read(ROOT / "index.ipynb", 4)
    alts = []
    for cell in nb.cells:  # directives are for nbdev, not for readers
        if cell.cell_type == "code":
            alt = re.search(r"#\| fig-alt: (.+)", cell.source)
            alts += [alt[1] if alt else "figure" for o in cell.outputs if "image/jpeg" in o.get("data", {})]
            hidden = "#| hide" in cell.source or "#| echo: false" in cell.source
            cell.source = "\n".join(line for line in cell.source.splitlines() if not line.startswith("#|"))
            cell.metadata["tags"] = ["no-input"] if hidden else []
    nb.metadata["language_info"] = {"name": "python"}  # for the colours of the code
    config = Config()
    config.ExtractOutputPreprocessor.enabled = True
    exporter = MarkdownExporter(config=config)
    exporter.register_preprocessor(TagRemovePreprocessor(remove_input_tags={"no-input"}), enabled=True)
    text, resources = exporter.from_notebook_node(nb, {"unique_key": "index", "output_files_dir": "images"})
    for alt in alts:
        text = text.replace("![jpeg]", f"![{alt}]", 1)
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in text.splitlines()))
    note = "<!-- Made from index.ipynb by tools/readme.py: edit the notebook. -->\n"
    return note + text.strip() + "\n", resources.get("outputs", {})


if __name__ == "__main__":
    text, pictures = render()
    for name, data in pictures.items():
        (ROOT / name).parent.mkdir(exist_ok=True)
        (ROOT / name).write_bytes(data)
    (ROOT / "README.md").write_text(text, encoding="utf-8")
