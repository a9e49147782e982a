"""Chapter 11 over several seeds: painters from a parts map, and the price of computing a normalisation from its equation.

python benchmarks/norms.py painters --out benchmarks/results/norms_painters.json   (about four minutes on one core)
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



def conv(a, b):
    return nn.Conv2d(a, b, 3, padding=1, padding_mode="replicate")


class InputPainter(nn.Module):
    "The map goes through four convolutions, with a normalisation after each but the last."

    def __init__(self, norm, width=34):
        super().__init__()
        self.convs = nn.ModuleList(conv(a, b) for a, b in ((len(PARTS), width), (width, width), (width, width), (width, 3)))
        self.norms = nn.ModuleList(norm_layer(norm)(width) for _ in range(3))

    def forward(self, m):
        h = m
        for c, norm in zip(self.convs, self.norms):
            h = F.relu(norm(c(h)))
        return self.convs[-1](h).tanh()


class MapPainter(nn.Module):
    "A learned flat start goes through three convolutions; the map modulates the normalisation before each."

    def __init__(self, norm, width=20, hidden=12):
        super().__init__()
        self.start = nn.Parameter(torch.randn(1, width, 1, 1))
        self.spades = nn.ModuleList(SPADE(width, len(PARTS), hidden, norm, pad="replicate") for _ in range(3))
        self.convs = nn.ModuleList(conv(width, b) for b in (width, width, 3))

    def forward(self, m):
        h = self.start.expand(len(m), -1, *m.shape[-2:])
        for spade, c in zip(self.spades, self.convs):
            h = c(F.relu(spade(h, m)))
        return h.tanh()


ARMS = {
    "input, instance": lambda: InputPainter("instance-affine"),
    "input, batch": lambda: InputPainter("batch"),
    "input, none": lambda: InputPainter("none"),
    "SPADE, instance": lambda: MapPainter("instance"),
    "SPADE, batch": lambda: MapPainter("batch-plain"),
}
SITTERS = (19, 10, 1)  # seeds of people without a beard, whose cheeks show
TASKS = {"faces": dict(size=32, crop=32, batch=16, steps=200), "close-ups": dict(size=64, crop=8, batch=48, steps=300)}


def sitting(n, size, seed):
    "One person in n poses before a plain wall: maps (n, 14, S, S) and photos (n, 3, S, S)."
    one, scene = sample_people(1, seed=seed), sample_people(n, seed=seed + 1000).scene
    scene = scene.replace(**{k: getattr(one.scene, k).expand(n) for k in ROOM}).replace(bg_kind=torch.zeros(n))
    shots = render(People(one.identity.repeat(n), one.style.repeat(n), scene), size)
    return label_planes(shots.parts, len(PARTS)), shots.image


def close_ups(maps, photos, which, crop, dice):
    "Squares of `crop` pixels from random places of some of the pictures."
    at = torch.randint(0, maps.shape[-1] + 1 - crop, (2, len(which), 1), generator=dice).to(maps.device)
    y, x = at + torch.arange(crop, device=maps.device)  # (B, crop) each
    place = (which[:, None, None], slice(None), y[:, :, None], x[:, None])
    return tuple(t[place].permute(0, 3, 1, 2) for t in (maps, photos))


def paint(arm, maps, photos, held_out, crop, batch, steps, seed):
    "Train one painter; its error on people's pictures it has not seen, by label, and how far flat maps are told apart."
    torch.manual_seed(seed)
    device = maps.device
    net, dice = ARMS[arm]().to(device), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for i in range(steps):
        which = torch.randint(held_out, len(maps), (batch,), generator=dice).to(device)
        m, photo = close_ups(maps, photos, which, crop, dice)
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1, 2 * (1 - i / steps))
        optimizer.zero_grad()
        (net(m) - photo).abs().mean().backward()
        optimizer.step()
    net.eval()
    with torch.no_grad():
        m, photo = close_ups(maps, photos, torch.arange(held_out, device=device).repeat(max(1, 2000 // (held_out * crop))), crop, dice)
        error = (net(m) - photo).abs().mean((1, 2, 3))
        flat = net(torch.eye(len(PARTS), device=device)[:, :, None, None].expand(-1, -1, crop, crop))
    alone = {name: m[:, k].mean((1, 2)) == 1 for k, name in enumerate(PARTS)}
    return {"weights": sum(p.numel() for p in net.parameters()), "error": error.mean().item(), "flat_spread": flat.std(0).mean().item(),
            "by_label": {k: error[on].mean().item() for k, on in alone.items() if on.sum() >= 5}}


def painters(args):
    n, held_out, rows = (48, 16, []) if args.fast else (320, 64, [])
    for seed in range(args.seeds):
        for task, setting in TASKS.items():
            setting = dict(setting, steps=3) if args.fast else dict(setting)
            maps, photos = (t.to(args.device) for t in sitting(n, setting.pop("size"), SITTERS[seed % len(SITTERS)]))
            rows += [{"arm": arm, "task": task, "seed": seed, **paint(arm, maps, photos, held_out, seed=seed, **setting)} for arm in ARMS]
    return {"pictures": n - held_out, "rows": rows}


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
        write_json(result, Path(args.out))
