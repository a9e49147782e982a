"""Train the feature space that deepswap ships: an attribute network on procedural people.

python benchmarks/classify_features.py                      # a few minutes on one core; writes build/deepswap-attributes-v1.safetensors
python benchmarks/classify_features.py --fast --out /tmp    # seconds: shows that it runs

The file in deepswap/weights was made by this command and is never written again: distances are comparable only within one version.
Prints JSON: the accuracy of every attribute on people it has not seen, beside that of the constant answer.
"""

import argparse
import json
import platform
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from deepswap.classify import AttributeCNN
from deepswap.core import pick_device, seed_everything
from deepswap.data import dequantise, quantise
from deepswap.people import ATTRIBUTES, People, attributes, render, sample_people
from deepswap.train import write_tensors

HELD_OUT = ("mouth_open", "long_hair", "thick_brows", "big_lips")  # never shown to the network, so that transfer to them is honest
BEHIND = {"hair_cut", "brow_thickness", "lip_upper", "lip_lower", "mouth_open"}  # the fields those four are read from
SIGNED = ("yaw", "roll", "gaze_x", "light_x", "shift_x", "hair_part")  # change sign in a mirror
MIRROR = {"looks_left": "looks_right", "lit_from_left": "lit_from_right"}


def picture_attributes(people):
    "What can be said of the picture and not of the person: name -> (N,) bool."
    s = people.scene
    return {
        "looks_left": s.yaw < -7, "looks_right": s.yaw > 7, "looks_up": s.pitch > 3, "looks_down": s.pitch < -3, "tilted": s.roll.abs() > 4,
        "lit_from_left": s.light_x < -0.3, "lit_from_right": s.light_x > 0.3, "warm_light": s.light_warmth > 0.3, "dim_light": s.light_power < 0.75,
        "small_face": s.zoom < 0.92, "bright_background": s.bg_light > 0.5, "colourful_background": s.bg_color > 0.4, "plain_background": s.bg_kind < 1.5,
        "blurred": s.blur > 0.15, "noisy": s.noise > 0.3, "hidden_part": s.occluder > 0.5, "grey_picture": s.grey > 0.5, "watermark": s.watermark > 0.3,
        "filter": s.filter > 0.3, "brows_raised": s.brow_raise > 0.25, "dark_clothes": people.style.clothes_light < 0.4,
        "colourful_clothes": people.style.clothes_color > 0.5,
    }  # fmt: skip


def graded(people):
    "Amounts, for a second head that only training has: how wide, how far turned, how bright. Standardised (N, G), signs in a mirror (G,)."
    columns, signs = [], []
    for params in (people.identity, people.style, people.scene):
        for f in params.FIELDS:
            v = getattr(params, f.name)
            if f.kind in ("bell", "uniform") and f.name not in BEHIND and not f.name.endswith(("_hue", "_seed")) and f.name[:5] not in ("mole_", "occlu"):
                columns.append((v - v.mean()) / v.std().clamp(min=1e-6))
                signs.append(-1.0 if f.name in SIGNED else 1.0)
    return torch.stack(columns, 1), torch.tensor(signs)


def draw(n, seed, size):
    "Half easy, half hard people: pictures as bytes, targets, names, people."
    people = People.cat([sample_people(n // 2, "easy", seed), sample_people(n - n // 2, "hard", seed + 1)])
    known = dict(zip(ATTRIBUTES, attributes(people).T)) | {k: v.float() for k, v in picture_attributes(people).items()}
    targets = torch.stack([v for k, v in known.items() if k not in HELD_OUT], 1)
    return quantise(render(people, size).image), targets, [k for k in known if k not in HELD_OUT], people


def train(pixels, targets, names, people, args):
    "Attributes, and amounts on a head that is then thrown away. AdamW, one cycle of the rate, mirrored pictures; channels-last."
    device = pick_device(args.device)
    net = AttributeCNN(names, args.depth, args.width, args.size, args.hidden, norm=True).to(device, memory_format=torch.channels_last)
    amounts, signs = graded(people)
    head = torch.nn.Linear(args.hidden, len(signs)).to(device)
    left, right = (torch.tensor([names.index(n) for n in side]) for side in (MIRROR, MIRROR.values()))
    swap = torch.arange(len(names))
    swap[left], swap[right] = right, left
    steps, n = args.epochs * (len(pixels) // args.batch), len(pixels)
    opt = torch.optim.AdamW([*net.parameters(), *head.parameters()], weight_decay=0.05, betas=(0.9, 0.99))
    rate = torch.optim.lr_scheduler.OneCycleLR(opt, args.lr, total_steps=steps, pct_start=0.2)
    dice, order, losses, start = torch.Generator().manual_seed(args.seed), None, [], time.process_time()
    for step in range(steps):
        k = step % (n // args.batch)
        order = torch.randperm(n, generator=dice) if k == 0 else order
        i = order[k * args.batch : (k + 1) * args.batch]
        x, y, z = dequantise(pixels[i]), targets[i], amounts[i]
        flip = torch.rand(len(i), generator=dice) < 0.5
        x[flip], y[flip], z[flip] = x[flip].flip(-1), y[flip][:, swap], z[flip] * signs
        found = net.features(x.to(device, memory_format=torch.channels_last))
        told, measured = F.binary_cross_entropy_with_logits(net.answers(found), y.to(device)), F.mse_loss(head(found), z.to(device))
        loss = told + 0.5 * measured
        opt.zero_grad(set_to_none=True)
        loss.backward()
        opt.step()
        rate.step()
        losses.append(told.item())
        if step % 25 == 0:
            print(f"step {step}/{steps} attributes {told:.4f} amounts {measured:.4f} {time.process_time() - start:.0f} s", flush=True, file=args.log)
    return net.eval(), losses, time.process_time() - start


@torch.no_grad()
def report(net, pixels, targets, names):
    "Accuracy, that of the constant answer, and balanced accuracy: name -> three numbers."
    device = next(net.parameters()).device
    said = torch.cat([net(dequantise(p).to(device)).cpu() > 0 for p in pixels.split(256)])
    true, rows = targets > 0.5, {}
    for k, name in enumerate(names):
        s, t = said[:, k], true[:, k]
        parts = [(s[w] == t[w]).double().mean() for w in (t, ~t) if w.any()]
        rows[name] = [round(float(v), 4) for v in ((s == t).double().mean(), max(t.double().mean(), 1 - t.double().mean()), sum(parts) / len(parts))]
    return rows


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--people", type=int, default=30000, help="pictures to learn from, each of another person")
    p.add_argument("--test", type=int, default=2000, help="pictures to be judged by")
    p.add_argument("--epochs", type=int, default=10)
    p.add_argument("--batch", type=int, default=128)
    p.add_argument("--lr", type=float, default=3e-3)
    p.add_argument("--size", type=int, default=64)
    p.add_argument("--depth", type=int, default=4)
    p.add_argument("--width", type=int, default=16)
    p.add_argument("--hidden", type=int, default=128)
    p.add_argument("--seed", type=int, default=12)
    p.add_argument("--device", default="cpu")
    p.add_argument("--out", default="build", help="folder for the weights")
    p.add_argument("--fast", action="store_true", help="seconds instead of minutes")
    args = p.parse_args()
    args.log = sys.stderr
    if args.fast:
        args.people, args.test, args.epochs, args.size = 256, 128, 2, 32
    seed_everything(args.seed)
    start = time.process_time()
    pixels, targets, names, people = draw(args.people, 100_000 + args.seed, args.size)
    drawing = time.process_time() - start
    net, losses, seconds = train(pixels, targets, names, people, args)
    tensors = {f"network/{k}": v.half() if v.is_floating_point() else v for k, v in net.state_dict().items()}
    config = {"attributes": names, "depth": args.depth, "width": args.width, "size": args.size, "hidden": args.hidden, "norm": True}
    net.load_state_dict({k.removeprefix("network/"): v.float() if v.is_floating_point() else v for k, v in tensors.items()})
    test = report(net, *draw(args.test, 200_000 + args.seed, args.size)[:2], names)
    Path(args.out).mkdir(parents=True, exist_ok=True)
    path = write_tensors(Path(args.out) / "deepswap-attributes-v1.safetensors", tensors, {"attribute_cnn": config, "held_out": list(HELD_OUT)})
    result = {
        "command": f"python benchmarks/classify_features.py --people {args.people} --epochs {args.epochs} --seed {args.seed}",
        "torch": torch.__version__, "machine": platform.machine(), "cpu_seconds_drawing": round(drawing, 1), "cpu_seconds_training": round(seconds, 1),
        "steps": len(losses), "loss_first": round(losses[0], 4), "loss_last": round(sum(losses[-20:]) / len(losses[-20:]), 4),
        "parameters": sum(v.numel() for v in net.parameters()), "bytes": path.stat().st_size, "held_out": HELD_OUT,
        "columns": ["accuracy", "accuracy of the constant answer", "balanced accuracy"], "test": test,
    }  # fmt: skip
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
