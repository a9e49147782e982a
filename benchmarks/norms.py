"""Chapter 11 over several seeds: painters from a parts map, and the price of computing a normalisation from its equation.

python benchmarks/norms.py painters --out benchmarks/results/norms_painters.json   (about five minutes on one core)
python benchmarks/norms.py speed
python benchmarks/norms.py painters --fast
"""

import argparse
import json
import platform
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from deepswap.core import pick_device, write_json
from deepswap.norms import SPADE, BatchNorm, InstanceNorm, label_planes, norm_layer
from deepswap.people import PARTS, ROOM, People, render, sample_people

SIZE = 32


def conv(a, b):
    return nn.Conv2d(a, b, 3, padding=1, padding_mode="replicate")


class InputPainter(nn.Module):
    "A learned start and the map side by side, through three convolutions with a normalisation each."

    def __init__(self, norm, width=42, start=8):
        super().__init__()
        self.start = nn.Parameter(torch.randn(1, start, SIZE, SIZE) / 2)
        widths = (start + len(PARTS), width, width, width)
        self.convs = nn.ModuleList(conv(a, b) for a, b in zip(widths, (*widths[1:], 3)))
        self.norms = nn.ModuleList(norm_layer(norm)(width) for _ in range(3))

    def forward(self, m):
        h = torch.cat([self.start.expand(len(m), -1, -1, -1), m], 1)
        for c, norm in zip(self.convs, self.norms):
            h = F.relu(norm(c(h)))
        return self.convs[-1](h).tanh()


class MapPainter(nn.Module):
    "The start alone goes through the layers; the map modulates each normalisation."

    def __init__(self, norm, width=20, hidden=12):
        super().__init__()
        self.start = nn.Parameter(torch.randn(1, width, SIZE, SIZE) / 2)
        self.spades = nn.ModuleList(SPADE(width, len(PARTS), hidden, norm, pad="replicate") for _ in range(3))
        self.convs = nn.ModuleList(conv(width, b) for b in (width, width, 3))

    def forward(self, m):
        h = self.start.expand(len(m), -1, -1, -1)
        for spade, c in zip(self.spades, self.convs):
            h = c(F.relu(spade(h, m)))
        return h.tanh()


ARMS = {
    "map as input, instance": lambda: InputPainter("instance-affine"),
    "map as input, batch": lambda: InputPainter("batch"),
    "map as input, none": lambda: InputPainter("none"),
    "SPADE, instance": lambda: MapPainter("instance"),
    "SPADE, batch": lambda: MapPainter("batch-plain"),
}


def sitter(n, seed):
    "One person in n poses: maps (n, 14, 32, 32) and pictures (n, 3, 32, 32)."
    one, poses = sample_people(1, seed=seed), sample_people(n, seed=seed + 1000).scene
    poses = poses.replace(**{k: getattr(one.scene, k).expand(n) for k in ROOM})
    shots = render(People(one.identity.repeat(n), one.style.repeat(n), poses), SIZE)
    return label_planes(shots.parts, len(PARTS)), shots.image


def paint(arm, maps, photos, steps, seed, device, held_out):
    "Train one painter; its error on maps it has not seen, and how far flat maps are told apart."
    torch.manual_seed(seed)
    net = ARMS[arm]().to(device)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    dice = torch.Generator().manual_seed(seed)
    for i in range(steps):
        k = torch.randint(held_out, len(maps), (16,), generator=dice).to(device)
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1, 2 * (1 - i / steps))
        optimizer.zero_grad()
        (net(maps[k]) - photos[k]).abs().mean().backward()
        optimizer.step()
    net.eval()
    with torch.no_grad():
        flat = net(torch.eye(len(PARTS), device=device)[:, :, None, None].expand(-1, -1, SIZE, SIZE))
        error = (net(maps[:held_out]) - photos[:held_out]).abs().mean().item()
    return {"weights": sum(p.numel() for p in net.parameters()), "error": error, "flat_spread": flat.std(0).mean().item()}


def painters(args):
    n, steps, held_out = (48, 3, 16) if args.fast else (480, 300, 64)
    rows = []
    for seed in range(args.seeds):
        maps, photos = (t.to(args.device) for t in sitter(n, seed + 6))
        for arm in ARMS:
            rows.append({"arm": arm, "seed": seed, **paint(arm, maps, photos, steps, seed, args.device, held_out)})
    return {"steps": steps, "pictures": n - held_out, "rows": rows}


def speed(args):
    "CPU seconds forwards and backwards: ours over torch's, runs in turn, the fastest of each."
    x = torch.randn(8, 64, 32, 32, device=args.device, requires_grad=True)
    out = {}
    for name, ours, theirs in (("batch", BatchNorm(64), nn.BatchNorm2d(64)), ("instance", InstanceNorm(64), nn.InstanceNorm2d(64))):
        best = {}
        for _ in range(3 if args.fast else 30):
            for who, layer in (("ours", ours.to(args.device)), ("torch", theirs.to(args.device))):
                start = time.perf_counter() if args.device.type != "cpu" else time.process_time()
                layer(x).sum().backward()
                if args.device.type == "cuda":
                    torch.cuda.synchronize()
                now = time.perf_counter() if args.device.type != "cpu" else time.process_time()
                best[who] = min(best.get(who, 9e9), now - start)
        out[f"{name}: equation over torch"] = round(best["ours"] / best["torch"], 2)
    return out


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["painters", "speed"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--fast", action="store_true", help="seconds, to see that it runs")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", help="write the result here as JSON")
    args = parser.parse_args()
    args.device = pick_device(args.device)
    args.seeds = 1 if args.fast else args.seeds
    result = {"painters": painters, "speed": speed}[args.what](args)
    result |= {"command": f"python benchmarks/norms.py {args.what}", "date": time.strftime("%Y-%m-%d"), "torch": torch.__version__,
               "device": torch.cuda.get_device_name() if args.device.type == "cuda" else platform.machine()}
    print(json.dumps(result, indent=1))
    if args.out:
        write_json(Path(args.out), result)
