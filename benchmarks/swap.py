"""How good is the classical swap? Prints JSON.

Procedural pairs: PSNR to the exact swap inside the face, against the untouched target (what any swapper must beat).
London pairs (only where ../shared holds them): identity similarity to source and target by a MobileFaceNet used for checks only,
and how far the pose moved, in degrees of the five-point parallax.

How long one swap takes, detection apart, from two aligned 256 px crops to the swapped crop and its mask, identity encoder included: the classical
swap, the network that is shipped (it works at 64 px), and a network of its width that works at 256 px (untrained: the time is the same).

    python benchmarks/swap.py [--pairs 64] [--size 128] [--shared ../shared]
    python benchmarks/swap.py --speed [--threads 2]      half a minute; writes benchmarks/results/swap_speed.json
"""

import argparse
import json
import os
import random
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from deepswap.core import read_image, write_json  # noqa: E402
from deepswap.classical import ClassicalSwapper  # noqa: E402
from deepswap.faces import align_photo, find_faces, parallax, refine_landmarks  # noqa: E402
from deepswap.faceshifter import FaceShifter, FaceShifterSwapper  # noqa: E402
from deepswap.identity import get_encoder  # noqa: E402
from deepswap.people import exact_swap, render, sample_people  # noqa: E402
from deepswap.swap import open_shipped  # noqa: E402

SKIN = ("skin_tone", "skin_warmth", "rosiness", "freckles")  # the classical swap keeps the target's skin


def psnr(a, b, mask):
    "In decibels inside a mask, one number per picture."
    mse = ((a - b).square() * mask).sum((1, 2, 3)) / (3 * mask.sum((1, 2, 3)))
    return 10 * torch.log10(4 / mse)


def summary(x): return {"mean": round(x.mean().item(), 3), "worst": round(x.min().item(), 3), "best": round(x.max().item(), 3)}


def procedural(pairs, size, swapper, preset, seed=0):
    people = sample_people(2 * pairs, preset, seed=seed)
    source, target = people[torch.arange(pairs)], people[torch.arange(pairs, 2 * pairs)]
    s, t = render(source, size).image, render(target, size).image
    start = time.perf_counter()
    swapped = torch.cat([swapper(s[i:i + 16], t[i:i + 16])[0] for i in range(0, pairs, 16)])
    out = {"pairs": pairs, "size": size, "seconds_per_swap": round((time.perf_counter() - start) / pairs, 4)}
    for name, move in (("skin_stays", SKIN), ("skin_swapped", ())):
        exact = render(exact_swap(source, target, move), size)
        a, b = psnr(swapped, exact.image, exact.mask), psnr(t, exact.image, exact.mask)
        out[name] = {"psnr_swap": summary(a), "psnr_target_untouched": summary(b), "better_than_untouched": round((a > b).float().mean().item(), 3)}
    return out


def london(shared, pairs, size, swapper, seed=0):
    net = get_encoder(shared / "data/weights/mobilefacenet_foamliu.safetensors", "cpu")
    files = sorted((shared / "data/london/neutral").glob("*.jpg"))
    random.Random(seed).shuffle(files)

    def crop(path):
        image = read_image(path)
        return align_photo(image, find_faces(image)[0].landmarks, size)[0]
    s = torch.cat([crop(f) for f in files[:pairs]])
    smiling = shared / "data/london/smiling"
    t = torch.cat([crop(smiling / f.name if (smiling / f.name).exists() and i % 2 else f) for i, f in enumerate(files[pairs:2 * pairs])])
    swapped = torch.cat([swapper(s[i:i + 8], t[i:i + 8])[0] for i in range(0, len(s), 8)])
    with torch.no_grad():
        es, et, ex = net.embed(s), net.embed(t), net.embed(swapped)
    nearest = (ex @ es.T).argmax(1)
    pose = [parallax(refine_landmarks(x)[0])[:, 0] for x in (s, t, swapped)]
    return {
        "pairs": len(s), "size": size,
        "identity_similarity_to_source": summary((ex * es).sum(1)),
        "identity_similarity_to_target": summary((ex * et).sum(1)),
        "similarity_source_to_target_before": summary((es * et).sum(1)),
        "nearer_to_source_than_to_target": round(((ex * es).sum(1) > (ex * et).sum(1)).float().mean().item(), 3),
        "source_retrieved_first": round((nearest == torch.arange(len(s))).float().mean().item(), 3),
        "parallax_change_from_target": round((pose[2] - pose[1]).abs().mean().item(), 4),
        "parallax_source_to_target": round((pose[0] - pose[1]).abs().mean().item(), 4),
    }


def speed(threads, times=15):
    "Milliseconds of one swap of 256 px crops: the median, the quickest, and the load of the machine."
    torch.set_num_threads(threads)
    s, t = render(sample_people(2, seed=3), 256).image.split(1)
    large, out = FaceShifter(size=256, width=12).eval(), {}
    ways = {"classical": ClassicalSwapper(device="cpu"), "shipped network, 64 px": open_shipped("cpu"), "network at 256 px": FaceShifterSwapper(large),
            "network at 256 px, whole crop pasted": FaceShifterSwapper(large, mask="crop")}
    for name, swapper in ways.items():
        took = []
        for _ in range(times + 2):
            start = time.perf_counter()
            swapper(s, t)
            took.append(1000 * (time.perf_counter() - start))
        took = sorted(took[2:])
        out[name] = {"median ms": round(took[times // 2], 1), "quickest ms": round(took[0], 1)}
    start = time.perf_counter()
    with torch.no_grad():
        large.code(s)
    return {"threads": threads, "load before": round(os.getloadavg()[0], 1), "parameters at 256 px": sum(p.numel() for n in (large.attributes, large.generator) for p in n.parameters()),
            "identity encoder alone, ms": round(1000 * (time.perf_counter() - start), 1), "swaps": out}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--pairs", type=int, default=64)
    p.add_argument("--size", type=int, default=128)
    p.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    p.add_argument("--speed", action="store_true")
    p.add_argument("--threads", type=int, default=2)
    a = p.parse_args()
    if a.speed:
        out = speed(a.threads)
        print(json.dumps(out, indent=1))
        return write_json(out, ROOT / "benchmarks/results/swap_speed.json")
    swapper = ClassicalSwapper(device="cpu")
    out = {"swapper": "classical", "easy": procedural(a.pairs, a.size, swapper, "easy"), "hard": procedural(a.pairs, a.size, swapper, "hard", 1)}
    if (a.shared / "data/london").is_dir():
        out["london"] = london(a.shared, min(a.pairs, 40), 256, swapper)
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
