"""Experiments and speeds of chapter 12.

python benchmarks/classify.py                              # speeds, as ratios to a baseline in the same run
python benchmarks/classify.py --depth                      # DeepRecognition's table of 1 to 4 layers: minutes
python benchmarks/classify.py --depth --norm               # the same with batch normalisation
python benchmarks/classify.py --depth --data CELEBA_FOLDER --attributes Smiling,Eyeglasses
python benchmarks/classify.py --fast [--depth]             # seconds: shows that it runs

Prints JSON; --out writes it to a file too. The feature space that ships is trained by benchmarks/classify_features.py.
"""

import argparse
import json
import platform
import statistics
import time
from datetime import date
from pathlib import Path

import torch
import torch.nn.functional as F

from deepswap.classify import AttributeCNN, FeatureSpace, attribute_scores, depth_table, frechet_distance, targets_of
from deepswap.core import pick_device
from deepswap.data import ProceduralFaces, open_faces, split_people
from deepswap.people import ATTRIBUTES


def depths(args):
    "Validation chooses, the test set is asked once; several seeds."
    faces = ProceduralFaces(n_people=args.people, size=args.size, seed=1200) if args.data == "procedural" else open_faces(args.data, args.size)
    train, valid, test = split_people(faces, (0.6, 0.2, 0.2), seed=0)
    names = args.attributes.split(",") if args.attributes else list(ATTRIBUTES if args.data == "procedural" else faces.attribute_names)
    names = [n for n in names if 0.01 < targets_of(train, [n]).mean() < 0.99]
    truth = targets_of(valid, names)
    constant = statistics.fmean(s["constant"] for s in attribute_scores(truth, truth, names).values())
    table = {d: {"train": [], "valid": [], "balanced": [], "test": []} for d in args.depths}
    start = time.process_time()
    for seed in range(args.seeds):
        for row in depth_table(train, valid, names, args.depths, steps=args.steps, seed=seed, test=test, width=args.width, norm=args.norm, flip=False, device=args.device):
            for k in ("train", "valid", "balanced", "test"):
                table[row["depth"]][k].append(round(row[k], 4))
            table[row["depth"]]["parameters"] = row["parameters"]
    return {"data": args.data, "pictures": [len(train), len(valid), len(test)], "size": args.size, "width": args.width, "norm": args.norm, "steps": args.steps,
            "attributes": names, "constant": round(constant, 4), "seconds": round(time.process_time() - start), "depths": table}  # fmt: skip


def alternate(functions, repeats, device):
    "Median seconds of each, taken in turns: the load of others hits all alike."
    times = {k: [] for k in functions}
    for _ in range(repeats + 1):
        for k, f in functions.items():
            start = time.perf_counter()
            f()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times[k].append(time.perf_counter() - start)
    return {k: statistics.median(v[1:]) for k, v in times.items()}


def speeds(args):
    "Training step by memory layout, features by batch, and two ways to the Frechet distance."
    device, batch = pick_device(args.device), 16 if args.fast else 128
    x, y = torch.rand(batch, 3, 64, 64, device=device) * 2 - 1, torch.randint(0, 2, (batch, 46), device=device).float()

    def stepper(layout):
        net = AttributeCNN([str(k) for k in range(46)], 4, 16, norm=True).to(device, memory_format=layout)
        opt, image = torch.optim.AdamW(net.parameters()), x.to(memory_format=layout)

        def step():
            opt.zero_grad()
            F.binary_cross_entropy_with_logits(net(image), y).backward()
            opt.step()

        return step

    repeats = 2 if args.fast else 15
    train = alternate({"plain": stepper(torch.contiguous_format), "channels_last": stepper(torch.channels_last)}, repeats, device)
    space = FeatureSpace().to(device)
    look = alternate({"features": lambda: space(x)}, repeats, device)
    a, b = torch.rand(300, 128), torch.rand(300, 128)

    def product_root():
        "The textbook way: eigenvalues of the product, which is not symmetric."
        c, d = a.double().T.cov(), b.double().T.cov()
        return (a.double().mean(0) - b.double().mean(0)).square().sum() + c.trace() + d.trace() - 2 * torch.linalg.eigvals(c @ d).real.clamp(min=0).sqrt().sum()

    assert abs(float(product_root()) - frechet_distance(a, b)) < 1e-6
    root = alternate({"eigenvalues of the product": product_root, "symmetric root": lambda: frechet_distance(a, b)}, repeats, device)
    start = time.perf_counter()
    FeatureSpace()
    return {"training step, images/s": {k: round(batch / v) for k, v in train.items()}, "channels_last against plain": round(train["plain"] / train["channels_last"], 2),
            "features, images/s": round(batch / look["features"]), "frechet distance, ms": {k: round(1000 * v, 1) for k, v in root.items()},
            "loading the feature space, ms": round(1000 * (time.perf_counter() - start), 1)}  # fmt: skip


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--depth", action="store_true", help="the table of 1 to 4 layers")
    p.add_argument("--norm", action="store_true", help="batch normalisation, which the paper does not have")
    p.add_argument("--data", default="procedural", help="or a folder that holds CelebA")
    p.add_argument("--attributes", default="", help="names with commas; all if empty")
    p.add_argument("--people", type=int, default=4000)
    p.add_argument("--size", type=int, default=48)
    p.add_argument("--width", type=int, default=16)
    p.add_argument("--steps", type=int, default=300)
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--depths", type=int, nargs="+", default=[1, 2, 3, 4])
    p.add_argument("--device", default="cpu")
    p.add_argument("--out", help="write the JSON here too")
    p.add_argument("--fast", action="store_true")
    args = p.parse_args()
    if args.fast:
        args.people, args.size, args.steps, args.seeds = 150, 16, 4, 2
    began = {"command": "python benchmarks/classify.py" + " --depth" * args.depth + " --norm" * args.norm, "date": str(date.today()), "torch": torch.__version__, "machine": platform.machine(), "device": args.device}
    result = json.dumps(began | (depths(args) if args.depth else speeds(args)), indent=1)
    print(result)
    if args.out:
        Path(args.out).write_text(result + "\n")


if __name__ == "__main__":
    main()
