"""What adaptive dropout costs, and what it brings. Prints JSON.

python benchmarks/standout.py speed      [--device auto] [--rounds 15] [--threads 1]
python benchmarks/standout.py features   [--seeds 5] [--steps 1000]
python benchmarks/standout.py gan        [--seeds 3] [--steps 1200]
All take --fast (a smoke of seconds), --seed N (this seed alone) and --record (merge into benchmarks/results/standout_*.json).

speed: forward and backward of linear + ReLU + `nn.Dropout` (the baseline, 1.0) against `Standout` of the same shape and other ways
to write it, block by block in turn in one process; medians of ratios of neighbouring blocks, on a CPU of processor time. Aim: below 1.3.
features: Ba and Frey's NORB experiment in form. An autoencoder with one hidden layer learns from few faces without labels; a ridge
classifier on its hidden units tells the people apart on new pictures. The classifier's strength is chosen on a third set.
gan: a small GAN on few faces with dropout or standout in its generator, its discriminator or both; distance to new faces.
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from deepswap.core import pick_device, write_json
from deepswap.people import render, sample_people
from deepswap.standout import DenseAutoencoder, Standout, StandoutGAN, StandoutLayer, keep_probability
from deepswap.train import Trainer

RESULTS = Path(__file__).resolve().parent / "results"
SHAPES = ((32, 64, 64), (64, 256, 256), (128, 512, 512), (128, 1024, 1024), (256, 128, 2048))


def processor():
    "The name that the system gives."
    try:
        return next(line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


class MaskedReLU(torch.autograd.Function):
    "A custom function that keeps its own output and nothing else."

    @staticmethod
    def forward(ctx, z):
        h = F.relu(z * (torch.rand_like(z) < torch.sigmoid(z)))
        ctx.save_for_backward(h)
        return h

    @staticmethod
    def backward(ctx, grad):
        (h,) = ctx.saved_tensors
        return grad * (h > 0)


class Naive(nn.Module):
    "The belief network as a second matrix product, everything in the graph, torch.bernoulli."

    def __init__(self, n, m):
        super().__init__()
        self.layer = nn.Linear(n, m)

    def forward(self, x):
        pi = torch.sigmoid(F.linear(x, self.layer.weight, self.layer.bias))
        return torch.bernoulli(pi).detach() * F.relu(self.layer(x))


class After(nn.Module):
    "The mask after the activation."

    def __init__(self, n, m):
        super().__init__()
        self.layer = nn.Linear(n, m)

    def forward(self, x):
        z = self.layer(x)
        with torch.no_grad():
            keep = torch.rand_like(z) < keep_probability(z)
        return F.relu(z) * keep


class Custom(After):
    def forward(self, x):
        return MaskedReLU.apply(self.layer(x))


class UniformDropout(After):
    "Plain dropout from uniform numbers, as standout draws them: what `nn.Dropout` could cost where its Bernoulli numbers are slow."

    def forward(self, x):
        z = self.layer(x)
        return F.relu(z * (torch.rand_like(z) < 0.5)) * 2


WAYS = {
    "linear": lambda n, m: nn.Sequential(nn.Linear(n, m), nn.ReLU()),
    "dropout": lambda n, m: nn.Sequential(nn.Linear(n, m), nn.ReLU(), nn.Dropout(0.5)),
    "standout": Standout,
    "uniform dropout": UniformDropout,
    "mask after": After,
    "custom function": Custom,
    "second product": Naive,
    "standout learned": lambda n, m: Standout(n, m, belief="learned"),
}


def saved_bytes(net, x):
    "Bytes that the graph keeps for the backward pass, beyond input, output and weights."
    kept = {}
    known = {t.untyped_storage().data_ptr() for t in (x, *net.parameters())}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.update({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()}) or t, lambda t: t
    ):
        h = net(x)
        (h @ torch.eye(h.shape[1], device=h.device, requires_grad=True)).sum()
    known.add(h.untyped_storage().data_ptr())
    return sum(n for p, n in kept.items() if p not in known) - 4 * h.shape[1] ** 2


def speed(args, device):
    "Ratios to linear + ReLU + nn.Dropout."
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    rows = []
    for batch, n, m in SHAPES[:1] if args.fast else SHAPES:
        torch.manual_seed(0)
        x, grad = torch.randn(batch, n, device=device, requires_grad=True), torch.randn(batch, m, device=device)
        nets = {k: make(n, m).to(device) for k, make in WAYS.items()}
        block = max(2, int(1.5e7 / (batch * n * m * 3 + batch * m * 50))) if device.type != "cuda" else 100

        def timed(net):
            start = clock()
            for _ in range(block):
                x.grad = None
                net.zero_grad(set_to_none=True)
                net(x).backward(grad)
            if device.type == "cuda":
                torch.cuda.synchronize()
            return (clock() - start) / block

        for net in nets.values():
            timed(net)
        times = {k: [] for k in nets}
        for r in range(3 if args.fast else args.rounds):
            for k in list(nets)[:: 1 if r % 2 else -1]:
                times[k].append(timed(nets[k]))
        ratio = {k: round(statistics.median(a / b for a, b in zip(t, times["dropout"])), 2) for k, t in times.items()}
        extra = {
            k: round(saved_bytes(net, x) / (batch * m), 1) for k, net in nets.items() if k not in ("second product", "standout learned")
        }
        rows.append(
            {
                "batch": batch,
                "inputs": n,
                "outputs": m,
                "dropout_us": round(1e6 * statistics.median(times["dropout"])),
                "ratio": ratio,
                "saved_bytes_per_unit": extra,
            }
        )
    return {"rows": rows, "threads": torch.get_num_threads(), "worst_ratio": max(r["ratio"]["standout"] for r in rows)}


PEOPLE, TRAIN, CHOOSE, TEST = 30, 20, 20, 40  # people, and pictures of each
FEATURES = {
    "none": {"drop": "none"},
    "dropout 0.2": {"drop": "dropout", "rate": 0.2},
    "dropout 0.5": {"drop": "dropout", "rate": 0.5},
    "tied 1, 0": {"drop": "tied", "alpha": 1.0, "beta": 0.0},
    "tied 1, -1": {"drop": "tied", "alpha": 1.0, "beta": -1.0},
    "tied 2, 0": {"drop": "tied", "alpha": 2.0, "beta": 0.0},
    "tied 4, 0": {"drop": "tied", "alpha": 4.0, "beta": 0.0},
    "learned": {"drop": "learned"},
}


def split_faces(seed, people=PEOPLE, size=32):
    "Pictures and names of the same people in three sets."
    n = TRAIN + CHOOSE + TEST
    crowd = sample_people(people, preset="hard", seed=1000 + seed, scenes=n)
    images = render(crowd, size).image.view(people, n, 3, size, size)
    sets = images.split((TRAIN, CHOOSE, TEST), 1)
    return [(x.flatten(0, 1), torch.arange(people).repeat_interleave(x.shape[1])) for x in sets]


def ridge_errors(sets):
    "Error on the last set of a linear classifier fitted on the first; its strength is the one that does best on the second."
    (a, ya), *others = [(x.double(), y) for x, y in sets]
    mean, std = a.mean(0), a.std(0).clamp(min=1e-6)
    a, others = (a - mean) / std, [((x - mean) / std, y) for x, y in others]
    target = F.one_hot(ya).double() - 1 / (int(ya.max()) + 1)
    gram, best = a @ a.T, (2.0, 2.0)
    for strength in (10.0**k for k in range(0, 7)):
        dual = torch.linalg.solve(gram + strength * torch.eye(len(a), dtype=a.dtype), target)
        best = min(best, tuple(((x @ (a.T @ dual)).argmax(1) != y).double().mean().item() for x, y in others))
    return best


def one_autoencoder(sets, seed, steps, **options):
    "Train on the pictures of the first set; reconstruction and classifier errors."
    torch.manual_seed(seed)
    net = DenseAutoencoder(32, 512, **options)
    optimizer, images = torch.optim.Adam(net.parameters(), 1e-3), sets[0][0]
    for _ in range(steps):
        x = images[torch.randint(len(images), (64,))]
        loss = F.mse_loss(net(x)[:, :1], x.mean(1, keepdim=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net.eval()
    with torch.no_grad():
        mse = [F.mse_loss(net(x)[:, :1], x.mean(1, keepdim=True)).item() for x, _ in sets]
        chosen, test = ridge_errors([(net.features(x), y) for x, y in sets])
        pi = net.encoder.probability(sets[2][0].mean(1).flatten(1)).mean().item() if options["drop"] in ("tied", "learned") else None
    return {"mse_train": mse[0], "mse_test": mse[2], "error_choose": chosen, "error_test": test, "kept": pi}


def features(args, seed):
    "One seed of the experiment: name -> numbers."
    sets = split_faces(seed, 4 if args.fast else PEOPLE)
    steps, out = 5 if args.fast else args.steps, {}
    chosen, test = ridge_errors([(x.mean(1).flatten(1), y) for x, y in sets])
    out["pixels"] = {"error_choose": chosen, "error_test": test}
    for name, options in FEATURES.items():
        out[name] = one_autoencoder(sets, seed, steps, **options)
    return out


FACES, FRESH, BATCH = 200, 1000, 32  # pictures the GAN learns from, pictures it never sees, pictures per step
GANS = {
    "none": {"where": "none"},
    "dropout 0.25, D": {"where": "d", "alpha": 0.0, "beta": 1.0986},
    "standout, D": {"where": "d", "alpha": 1.0, "beta": 0.0},
    "dropout 0.5, G": {"where": "g", "alpha": 0.0, "beta": 0.0},
    "standout, G": {"where": "g", "alpha": 1.0, "beta": 0.0},
    "standout, both": {"where": "both", "alpha": 1.0, "beta": 0.0},
}


def one_gan(images, fresh, seed, steps, device, **options):
    "Train a small GAN; distances to new faces, and how far D's logits for known and new faces lie apart."
    from deepswap.classify import fid

    torch.manual_seed(seed)
    method = StandoutGAN(size=32, width=16, latent=64, norm="spectral", lr_g=4e-4, lr_d=4e-4, **options)
    batches = [images[torch.randint(len(images), (BATCH,))] for _ in range(100)]
    trainer = Trainer(method, batches, steps=steps, device=device, seed=seed, progress=False).fit()
    last = trainer.history[-20:]
    method.eval()
    out = {"fid": fid(fresh, method.sample(len(fresh), seed=seed).cpu())}
    if options["where"] in ("g", "both"):
        noisy = [m for m in method.generator.modules() if isinstance(m, StandoutLayer)]
        with torch.no_grad():
            for m in noisy:
                m.training = True  # a mask for every picture, as in training; the norms stay as they are
            out["fid_with_masks"] = fid(fresh, torch.cat([method.generator(z) for z in method.noise(len(fresh), seed).split(250)]).cpu())
            for m in noisy:
                m.training = False
    with torch.no_grad():
        known, new = (torch.cat([method.discriminator(x.to(device)) for x in t.split(200)]) for t in (images, fresh))
        fake = method.discriminator(method.sample(len(images)).to(device))
    gap = (known.mean() - new.mean()) / known.std()  # in standard deviations of the logits
    out |= {"logit_known": known.mean().item(), "logit_new": new.mean().item(), "logit_fake": fake.mean().item(), "overfitting": gap.item()}
    out["d_loss"] = statistics.mean(r["d_adv"] for r in last)
    return out


def gan(args, seed, device):
    "One seed of the experiment: name -> numbers."
    from deepswap.classify import fid

    faces, fresh = (
        render(sample_people(n, seed=s + seed), 32).image
        for n, s in ((BATCH if args.fast else FACES, 2000), (64 if args.fast else FRESH, 3000))
    )
    floor = render(sample_people(len(fresh), seed=4000 + seed), 32).image
    out = {"new faces": {"fid": fid(fresh, floor)}, "training faces": {"fid": fid(fresh, faces)}}
    for name, options in GANS.items():
        out[name] = one_gan(faces, fresh, seed, 3 if args.fast else args.steps, device, **options)
    return out


def merged(path, fresh):
    "The record with these seeds put in; other seeds stay."
    old = json.loads(path.read_text()) if path.exists() else {}
    seeds = {**old.get("seeds", {}), **fresh.get("seeds", {})}
    return {**old, **fresh, **({"seeds": dict(sorted(seeds.items()))} if seeds else {})}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", nargs="?", default="speed", choices=("speed", "features", "gan"))
    p.add_argument("--device", default="auto")
    p.add_argument("--rounds", type=int, default=15)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--seeds", type=int, default=None)
    p.add_argument("--seed", type=int, default=None)
    p.add_argument("--steps", type=int, default=None)
    p.add_argument("--fast", action="store_true")
    p.add_argument("--record", action="store_true")
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    device = pick_device(args.device)
    args.steps = args.steps or {"gan": 1200}.get(args.what, 1000)
    result = {
        "command": f"python benchmarks/standout.py {args.what}",
        "date": time.strftime("%Y-%m-%d"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "torch": torch.__version__,
    }
    if args.what == "speed":
        result |= speed(args, device)
    else:
        seeds = [args.seed] if args.seed is not None else range(1 if args.fast else args.seeds or {"gan": 3}.get(args.what, 5))
        result["steps"] = args.steps
        result["seeds"] = {str(s): features(args, s) if args.what == "features" else gan(args, s, device) for s in seeds}
    if args.record and not args.fast:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"standout_{args.what}.json"
        write_json(merged(path, result), path)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
