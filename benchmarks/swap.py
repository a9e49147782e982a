"""How good is the classical swap? Prints JSON.

Procedural pairs: PSNR to the exact swap inside the face, against the untouched target (what any swapper must beat).
London pairs (only where ../shared holds them): identity similarity to source and target by a MobileFaceNet used for checks only,
and how far the pose moved, in degrees of the five-point parallax.

    python benchmarks/swap.py [--pairs 64] [--size 128] [--shared ../shared]
"""

import argparse
import json
import random
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from deepswap.core import ARCFACE5, read_image  # noqa: E402
from deepswap.classical import ClassicalSwapper  # noqa: E402
from deepswap.faces import (  # noqa: E402
    CANONICAL5, align_photo, find_faces, parallax, refine_landmarks, similarity, warp)
from deepswap.people import exact_swap, render, sample_people  # noqa: E402

SKIN = ("skin_tone", "skin_warmth", "rosiness", "freckles")  # the classical swap keeps the target's skin


class Block(nn.Sequential):
    "1x1 expansion, depthwise 3x3, 1x1 projection."

    def __init__(self, cin, cout, stride, t):
        def unit(a, b, k, s, g): return nn.Sequential(nn.Conv2d(a, b, k, s, k // 2, groups=g, bias=False), nn.BatchNorm2d(b), nn.ReLU6())
        super().__init__()
        self.conv = nn.Sequential(unit(cin, cin * t, 1, 1, 1), unit(cin * t, cin * t, 3, stride, cin * t), nn.Conv2d(cin * t, cout, 1, bias=False), nn.BatchNorm2d(cout))
        self.add = stride == 1 and cin == cout

    def forward(self, x): return x + self.conv(x) if self.add else self.conv(x)


class Depthwise(nn.Module):
    def __init__(self, c, k, padding, pointwise=False):
        super().__init__()
        self.depthwise = nn.Conv2d(c, c, k, padding=padding, groups=c, bias=False)
        if pointwise:
            self.pointwise, self.bn1, self.bn2 = nn.Conv2d(c, c, 1, bias=False), nn.BatchNorm2d(c), nn.BatchNorm2d(c)
        else:
            self.bn = nn.BatchNorm2d(c)

    def forward(self, x):
        x = self.depthwise(x)
        if hasattr(self, "bn"):
            return self.bn(x)
        return F.relu6(self.bn2(self.pointwise(F.relu6(self.bn1(x)))))


class MobileFaceNet(nn.Module):
    "Identity encoder for checks: RGB 112 x 112 on the ArcFace template -> 128 numbers of length 1."

    def __init__(self):
        super().__init__()
        def unit(a, b, k, s): return nn.Sequential(nn.Conv2d(a, b, k, s, k // 2, bias=False), nn.BatchNorm2d(b), nn.ReLU6())
        self.conv1, self.dw_conv = unit(3, 64, 3, 2), Depthwise(64, 3, 1, True)
        blocks, c = [], 64
        for t, cout, n, s in ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1)):
            for i in range(n):
                blocks.append(Block(c, cout, s if i == 0 else 1, t))
                c = cout
        self.features = nn.Sequential(*blocks)
        self.conv2, self.gdconv = unit(128, 512, 1, 1), Depthwise(512, 7, 0)
        self.conv3, self.bn = nn.Conv2d(512, 128, 1), nn.BatchNorm1d(128)

    def forward(self, crops):  # (B, 3, S, S) canonical crops in [-1, 1]
        to112 = similarity(CANONICAL5 * crops.shape[-1], ARCFACE5)
        x = (warp(crops, to112, (112, 112)).clamp(-1, 1) + 1) / 2
        x = (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
        x = self.conv3(self.gdconv(self.conv2(self.features(self.dw_conv(self.conv1(x))))))
        return F.normalize(self.bn(x.flatten(1)))


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
    from safetensors.torch import load_file
    net = MobileFaceNet()
    net.load_state_dict(load_file(shared / "data/weights/mobilefacenet_foamliu.safetensors"), strict=False)
    net.eval()
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
        es, et, ex = net(s), net(t), net(swapped)
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


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--pairs", type=int, default=64)
    p.add_argument("--size", type=int, default=128)
    p.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    a = p.parse_args()
    swapper = ClassicalSwapper(device="cpu")
    out = {"swapper": "classical", "easy": procedural(a.pairs, a.size, swapper, "easy"), "hard": procedural(a.pairs, a.size, swapper, "hard", 1)}
    if (a.shared / "data/london").is_dir():
        out["london"] = london(a.shared, min(a.pairs, 40), 256, swapper)
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
