"""How much the invisible mark survives, how often it accuses the innocent, and what stamping costs. Prints JSON.

python benchmarks/provenance.py [--pictures 200] [--unmarked 300] [--out FILE]
Half of the pictures are computed portraits of 256 pixels, half of 512; every damage is done to every picture.
"""

import argparse
import json
import math
import os
import platform
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch

from deepswap.core import to_pil
from deepswap.people import render, sample_people
from deepswap.provenance import damage, detect_mark, embed_mark, inspect, mark_threshold, pack_payload, stamp

DAMAGES = [("none", ()), ("jpeg 95", (("jpeg", 95),)), ("jpeg 75", (("jpeg", 75),)), ("jpeg 50", (("jpeg", 50),)),
           ("resize 0.5", (("resize", 0.5),)), ("resize 0.75", (("resize", 0.75),)), ("resize 1.5", (("resize", 1.5),)),
           ("crop 5 %", (("crop", 0.05),)), ("crop 10 %", (("crop", 0.1),)), ("crop 20 %", (("crop", 0.2),)),
           ("blur sigma 1", (("blur", 1),)), ("noise sigma 5", (("noise", 5),)), ("mirror", (("mirror", 0),)),
           ("crop 10 %, resize 0.75, jpeg 75", (("crop", 0.1), ("resize", 0.75), ("jpeg", 75))), ("turn 2 degrees", (("turn", 2),))]


def portraits(n, size, seed):
    "n computed people, a few at a time."
    people = sample_people(n, preset="hard", seed=seed)
    for i in range(0, n, 16):
        for x in render(people[i:i + 16], size).image: yield to_pil(x)


def psnr(a, b):
    d = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    return 20 * math.log10(255 / math.sqrt((d * d).mean()))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--unmarked", type=int, default=300)
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    torch.set_num_threads(1)
    load = pack_payload("classical", date(2026, 1, 1))
    rows = {name: {256: [], 512: []} for name, _ in DAMAGES}
    decibels, seconds = {256: [], 512: []}, {"embed": [], "detect": []}
    for size in (256, 512):
        for i, original in enumerate(portraits(a.pictures // 2, size, seed=1000 + size)):
            start = time.perf_counter()
            marked = embed_mark(original, load)
            seconds["embed"].append(time.perf_counter() - start)
            decibels[size].append(psnr(original, marked))
            for name, steps in DAMAGES:
                image = marked
                for kind, amount in steps: image = damage(image, kind, amount, i)
                start = time.perf_counter()
                r = detect_mark(image)
                seconds["detect"].append(time.perf_counter() - start)
                rows[name][size].append((r.found, r.found and r.payload == load, r.score))
    null = [detect_mark(i).score for size in (256, 512) for i in portraits(a.unmarked // 2, size, seed=5000 + size)]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DEEPSWAP_CACHE"] = folder
        times = {"stamp": [], "inspect": []}
        for i, image in enumerate(portraits(12, 512, seed=1)):
            start = time.perf_counter()
            out = stamp(image, Path(folder) / f"{i}.jpg")
            times["stamp"].append(time.perf_counter() - start)
            start = time.perf_counter()
            assert inspect(out).ours
            times["inspect"].append(time.perf_counter() - start)
    survival = {name: {f"{size} px": {"pictures": len(r), "found": round(np.mean([x[0] for x in r]), 4), "all bits read": round(np.mean([x[1] for x in r]), 4),
                                      "lowest score": round(min(x[2] for x in r), 2)} for size, r in sizes.items()} for name, sizes in rows.items()}
    result = {
        "survival": survival,
        "psnr_db": {f"{size} px": {"lowest": round(min(d), 2), "mean": round(np.mean(d), 2)} for size, d in decibels.items()},
        "unmarked": {"pictures": len(null), "false alarms": sum(z >= mark_threshold() for z in null), "highest score": round(max(null), 2), "mean score": round(np.mean(null), 2)},
        "threshold": round(mark_threshold(), 3), "false alarm bound": 1e-6,
        "milliseconds": {k: round(1000 * float(np.median(v)), 1) for k, v in {**seconds, **{f"{k} a 512 px file": v[2:] for k, v in times.items()}}.items()},
        "machine": {"processor": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__},
    }
    text = json.dumps(result, indent=1)
    print(text)
    if a.out: a.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
