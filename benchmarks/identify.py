"""Are the procedural people told apart? A small encoder learns 1,000 people for a few minutes and names 200 it has never seen.

python benchmarks/identify.py [--minutes 10] [--device auto] [--people 1000] [--unseen 200]      prints one line of JSON

Protocol. The clock counts rendering and training together. Every training picture is a hard scene, in one of several styles per
person, so hair, beard, glasses and clothes tell nothing. Pictures are aligned by the five points to a canonical crop, as every face
recogniser does. The unseen people's gallery is the mean embedding of four easy pictures each (four styles); a probe is one hard
picture in yet another style; top-1 is the share of probes whose nearest gallery entry (cosine) is the right person. Chance is 1/200.
"""
import argparse
import json
import math
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")      # threads that wait must not spin: on a shared machine that costs most of the speed

import torch  # noqa: E402
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from deepswap.core import CANONICAL5, pick_device  # noqa: E402
from deepswap.people import render, sample_people  # noqa: E402

SIZE = 64


def align(image, points, size=SIZE, tight=1.25):
    "Similarity transform of the five points (B,5,2, pixels) to the canonical ones, seen `tight` times larger."
    S = image.shape[-1]
    src = torch.view_as_complex((points / S * 2 - 1).double().contiguous())
    dst = (CANONICAL5.to(image.device).double() * 2 - 1)
    dst = torch.view_as_complex((dst * tight + torch.tensor([0., -.25], device=image.device)).contiguous())
    a, b = dst - dst.mean(), src - src.mean(1, keepdim=True)
    k = (b * a.conj()).sum(1) / (a * a.conj()).sum()                     # src = k dst + t
    t = src.mean(1) - k * dst.mean()
    theta = torch.stack([torch.stack([k.real, -k.imag, t.real], 1), torch.stack([k.imag, k.real, t.imag], 1)], 1)
    grid = F.affine_grid(theta.float(), (len(image), 3, size, size), align_corners=False)
    return F.grid_sample(image, grid, padding_mode="border", align_corners=False)


def pictures(people, size=SIZE, part=2048):
    "Aligned crops as uint8, part by part."
    out = []
    for k in range(0, len(people), part):
        r = render(people[k:k + part], size)
        out.append(((align(r.image, r.landmarks) + 1) * 127.5).round().clamp(0, 255).byte())
    return torch.cat(out)


class Block(nn.Module):
    def __init__(self, a, b, stride):
        super().__init__()
        self.f = nn.Sequential(nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU(True), nn.Conv2d(b, b, 3, 1, 1, bias=False), nn.BatchNorm2d(b))
        self.skip = nn.Sequential(nn.AvgPool2d(stride) if stride > 1 else nn.Identity(), nn.Conv2d(a, b, 1, bias=False), nn.BatchNorm2d(b)) if a != b or stride > 1 else nn.Identity()

    def forward(self, x): return F.relu(self.f(x) + self.skip(x))


class Encoder(nn.Module):
    "About a million parameters, 64 px to a unit vector of 128."

    def __init__(self, width=40, dim=128):
        super().__init__()
        w = width
        self.body = nn.Sequential(nn.Conv2d(3, w, 5, 2, 2, bias=False), nn.BatchNorm2d(w), nn.ReLU(True), nn.MaxPool2d(2),
                                  Block(w, w, 1), Block(w, 2 * w, 2), Block(2 * w, 4 * w, 2))
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(.2), nn.Linear(4 * w * 16, dim, bias=False), nn.BatchNorm1d(dim))

    def forward(self, x): return self.head(self.body(x))


def batch_of(pool, idx, device, train=True):
    x = pool[idx].to(device, non_blocking=True).float().div_(127.5).sub_(1)
    if train:
        flip = torch.rand(len(x), 1, 1, 1, device=device) < .5
        x = torch.where(flip, x.flip(3), x)
        gain = 1 + .3 * (torch.rand(len(x), 3, 1, 1, device=device) - .5)
        x = F.pad(x, (3, 3, 3, 3), mode="replicate")
        dx, dy = torch.randint(0, 7, (2,)).tolist()
        x = x[:, :, dy:dy + SIZE, dx:dx + SIZE] * gain
    return x.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def embed(net, pool, device):
    net.eval()
    two = lambda x: net(x) + net(x.flip(3))
    out = torch.cat([two(batch_of(pool, slice(k, k + 500), device, False)) for k in range(0, len(pool), 500)])
    net.train()
    return out


def whitening(codes, label, shrink=.1):
    "Linear discriminant: the mean of the codes, and a matrix in which one person's codes scatter equally in all directions."
    mean = torch.zeros(int(label.max()) + 1, codes.shape[1], device=codes.device).index_add_(0, label, codes) / label.bincount()[:, None]
    d = codes - mean[label]
    within = (d.T @ d / len(d)).double()
    within += shrink * within.diagonal().mean() * torch.eye(len(within), device=codes.device)
    values, vectors = torch.linalg.eigh(within)
    return mean.mean(0), (vectors * values.rsqrt()).float()


def name_them(net, gallery, probes, n, device, metric=None):
    g, p = (embed(net, pool, device) for pool in (gallery, probes))
    if metric: g, p = ((x - metric[0]) @ metric[1] for x in (g, p))
    g = F.normalize(F.normalize(g, dim=1).reshape(n, -1, g.shape[1]).mean(1), dim=1)
    best = (F.normalize(p, dim=1) @ g.T).argmax(1)
    right = torch.arange(n, device=device).repeat_interleave(len(p) // n)
    return (best == right).float().mean().item()


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--minutes", type=float, default=10)
    ap.add_argument("--device", default="auto")
    ap.add_argument("--people", type=int, default=1000)
    ap.add_argument("--unseen", type=int, default=200)
    ap.add_argument("--pictures", type=int, default=24, help="training pictures of each person")
    ap.add_argument("--batch", type=int, default=128)
    ap.add_argument("--lr", type=float, default=3e-3)
    ap.add_argument("--labels", type=float, default=.1, help="weight of the large-margin softmax over the people")
    ap.add_argument("--hints", type=float, default=1, help="weight of the second loss: guess the identity's parameters")
    ap.add_argument("--seed", type=int, default=0)
    args = ap.parse_args()
    device = pick_device(args.device)
    torch.manual_seed(args.seed)
    n, total = args.unseen, args.minutes * 60
    gallery = pictures(sample_people(n, "easy", seed=900_001, scenes=4, styles=4).to(device))
    probes = sample_people(n, "hard", seed=900_001, scenes=5, styles=5)
    probes.style = type(probes.style).sample(len(probes), seed=900_002)      # styles that the gallery has not seen
    probes = pictures(probes.to(device))
    start = time.perf_counter()
    people = sample_people(args.people, "hard", seed=1, scenes=args.pictures, styles=args.pictures).to(device)
    pool, known = pictures(people), people.identity.values[::args.pictures]
    label = torch.arange(args.people, device=device).repeat_interleave(args.pictures)
    rendering = time.perf_counter() - start
    print(f"{len(pool)} pictures in {rendering:.0f} s", file=sys.stderr, flush=True)
    net = Encoder().to(device, memory_format=torch.channels_last)
    hint, traits = nn.Linear(128, known.shape[1]).to(device), (known - known.mean(0)) / known.std(0)
    prototypes = nn.Parameter(torch.randn(args.people, 128, device=device) * .05)
    opt = torch.optim.AdamW([{"params": [*net.parameters(), *hint.parameters()]}, {"params": [prototypes], "weight_decay": 0.}], lr=args.lr, weight_decay=.02)
    step, seen, told = 0, 0, time.perf_counter()
    while True:
        share = (time.perf_counter() - start - rendering) / max(1., total * .96 - rendering)
        if share >= 1: break
        for group in opt.param_groups: group["lr"] = args.lr * min(1, step / 100 + .01) * (.5 + .5 * math.cos(math.pi * share))
        idx = torch.randint(len(pool), (args.batch,), device=device)
        y = label[idx]
        code = net(batch_of(pool, idx, device))
        cos = F.normalize(code, dim=1) @ F.normalize(prototypes, dim=1).T
        margin = .30 * min(1, max(0, share - .1) / .5)
        loss = args.labels * F.cross_entropy(24 * (cos - margin * F.one_hot(y, args.people)), y, label_smoothing=.05)
        if args.hints: loss = loss + args.hints * F.mse_loss(hint(code), traits[y])
        opt.zero_grad(set_to_none=True)
        loss.backward()
        opt.step()
        step, seen = step + 1, seen + len(idx)
        if time.perf_counter() - told > 30:
            told = time.perf_counter()
            print(f"{share:.2f} step {step} loss {loss.item():.3f} hint {F.mse_loss(hint(code), traits[y]).item():.3f} top-1 {name_them(net, gallery, probes, n, device):.3f}", file=sys.stderr, flush=True)
    few = torch.arange(len(pool), device=device)[torch.arange(len(pool), device=device) % args.pictures < 10]
    metric = whitening(embed(net, pool[few], device), label[few])
    seconds = time.perf_counter() - start
    plain, top1 = name_them(net, gallery, probes, n, device), name_them(net, gallery, probes, n, device, metric)
    print(json.dumps(dict(benchmark="identify", top1=round(top1, 4), top1_plain_cosine=round(plain, 4), people=args.people, unseen=n, probes=len(probes), gallery_pictures=4, size=SIZE,
                          labels=args.labels, hints=args.hints, parameters=sum(p.numel() for p in net.parameters()), minutes=round(seconds / 60, 2), rendering_seconds=round(rendering, 1),
                          pictures=len(pool), steps=step, images_seen=seen, threads=torch.get_num_threads(), device=str(device))))


if __name__ == "__main__":
    main()
