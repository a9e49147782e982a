"Write the pictures among a notebook's outputs to files, to look at them: python tools/figures.py NOTEBOOK FOLDER"

import base64
import io
import sys
from pathlib import Path

import nbformat
from PIL import Image

nb, out = nbformat.read(sys.argv[1], 4), Path(sys.argv[2])
out.mkdir(parents=True, exist_ok=True)
for i, cell in enumerate(nb.cells):
    for j, o in enumerate(cell.get("outputs", [])):
        for mime in ("image/jpeg", "image/png"):
            if mime in o.get("data", {}):
                image = Image.open(io.BytesIO(base64.b64decode(o.data[mime]))).convert("RGB")
                image.save(out / f"{i:03d}_{j}.png")
                print(out / f"{i:03d}_{j}.png", image.size, len(o.data[mime]) * 3 // 4, "bytes")
                break
