"""Are the procedural people told apart? A small encoder learns 1,000 people for ten minutes and names 200 it has never seen.

python benchmarks/identify.py [--minutes 10] [--device auto] [--people 1000] [--unseen 200]      prints one line of JSON

Protocol. The clock counts everything: drawing, features, solving. Every training picture is a hard scene in a style of its own, so
hair, beard, glasses and clothes tell nothing. Naming is chapter 40's: the gallery of the unseen people is the mean of four easy
pictures each, in four styles; a probe is one hard picture in yet another style; top-1 is the share of probes whose nearest gallery
entry (cosine) is the right person. Chance is 1/200.

Encoder. Chapter 40's filters, which need no learning, and Fisher's discriminant to 128 numbers, solved exactly from the scatter of
the training pictures, which are drawn, used once and forgotten. On two busy cores this learns far more in ten minutes than gradient
descent.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from deepswap.autoencoder import render_aligned  # noqa: E402
from deepswap.core import pick_device  # noqa: E402
from deepswap.identity import OWN_SQUARE, FaceEncoder, FaceFilters, Fisher, crop_square, name_people, naming_task, new_styles  # noqa: E402
from deepswap.people import sample_people  # noqa: E402

SIZE, SEEN, CODE, PART = 64, 48, 128, 250  # side of the crops, of what the encoder sees of them, numbers in a code, pictures at a time


def encoder(filters, fisher):
    "What was learnt so far, as an encoder; a code is the mean of both mirror images."
    layer = nn.Linear(fisher.sums.shape[1], CODE)
    layer.weight.data, layer.bias.data = fisher.solve(CODE)
    net = nn.Sequential(filters, nn.Flatten(), layer)
    return FaceEncoder(net, "fisher", SEEN, CODE, OWN_SQUARE, mirror=True).to(filters.kernel.device)


def top1(filters, fisher, task):
    return float((name_people(encoder(filters, fisher).embed, task) == task.probes.person).float().mean())


@torch.no_grad()
def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--minutes", type=float, default=10)
    ap.add_argument("--device", default="auto")
    ap.add_argument("--people", type=int, default=1000)
    ap.add_argument("--unseen", type=int, default=200)
    ap.add_argument("--pictures", type=int, default=400, help="of each person, at most")
    args = ap.parse_args()
    device, task = pick_device(args.device), naming_task(args.unseen, SIZE)
    filters, fisher = FaceFilters(SEEN).to(device), Fisher(args.people, FaceFilters.CHANNELS * FaceFilters.PLACES**2)
    start = told = time.perf_counter()
    people = new_styles(sample_people(args.people, "hard", seed=1, scenes=args.pictures), 2)
    for k in range(args.pictures):  # one picture of everybody a round
        for person in torch.arange(args.people).split(PART):
            image = render_aligned(people[person * args.pictures + k].to(device), SIZE)[0].image
            fisher.add(filters(crop_square(image.flip(3) if k % 2 else image, OWN_SQUARE, SEEN)).flatten(1), person)
        spent = time.perf_counter() - start
        if time.perf_counter() - told > 60:
            told = time.perf_counter()
            print(f"{spent:.0f} s, {int(fisher.n.sum())} pictures, top-1 {top1(filters, fisher, task):.3f}", file=sys.stderr, flush=True)
        if spent > args.minutes * 60 * 0.95 - 5:
            break
    learnt = encoder(filters, fisher)
    minutes = (time.perf_counter() - start) / 60
    print(json.dumps(dict(benchmark="identify", top1=round(top1(filters, fisher, task), 4), people=args.people, unseen=args.unseen, probes=len(task.probes), gallery_pictures=4,
                          size=SIZE, parameters=sum(p.numel() for p in learnt.parameters()), minutes=round(minutes, 2), pictures=int(fisher.n.sum()),
                          threads=torch.get_num_threads(), device=str(device))))  # fmt: skip


if __name__ == "__main__":
    main()
