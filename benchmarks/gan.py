"""What chapter 20 claims, measured: modes on the ring, five seeds on faces, and speed. Prints JSON.

python benchmarks/gan.py ring --record        # ten seeds of four setups on eight Gaussians, about three minutes on one core
python benchmarks/gan.py seeds --record       # FID and coverage of five seeds at 32 px, about five minutes on one core
python benchmarks/gan.py speed --record       # images/s against the textbook loop, and the trainer's own share, about two minutes
Each takes --fast for a smoke of seconds, and --device; --record writes benchmarks/results/gan_<name>.json, which the chapter reads.

`speed`: the textbook loop is float32 and eager: D on reals and on fakes apart, all of D's weights collecting gradients in G's step too.
Every contender is built from the same networks, and they take turns in one process. On a CPU, processor time on `--threads` cores.
`overhead_percent` compares the trainer with a bare loop that does the same work (frozen D, one pass): the cost of the trainer alone.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import nn

from deepswap.classify import features, frechet_distance
from deepswap.core import pick_device, seed_everything
from deepswap.data import batches, open_faces
from deepswap.gan import GAN, PointGAN, coverage, js_divergence, modes_covered, points
from deepswap.train import Trainer, frozen

RESULTS = Path(__file__).parent / "results"
SETUPS = {
    "greedy G": {"lr_g": 5e-3},
    "greedy G, k = 5 and R1": {"lr_g": 5e-3, "k": 5, "r1": 0.1},
    "sure D, minimax": {"objective": "minimax", "k": 5, "lr_d": 5e-3},
    "sure D, non-saturating": {"k": 5, "lr_d": 5e-3},
}
QUIET = {"progress": False, "checkpoint_every": 10**9, "log_every": 100}


def about(args):
    cpu = (
        next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if "model name" in line), platform.processor())
        if sys.platform == "linux"
        else platform.processor()
    )
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    given = {k: getattr(args, k) for k in ("size", "steps", "norm")} | {
        k: getattr(args, k) for k in ("batch", "width") if args.what == "speed"
    }
    words = [
        "python benchmarks/gan.py",
        args.what,
        *(f"--{k} {v}" for k, v in given.items() if v),
        *(["--compile"] if args.compile else []),
        "--record",
    ]
    return {
        "command": " ".join(words),
        "date": time.strftime("%Y-%m-%d"),
        "cpu": cpu,
        "gpu": gpu,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def ring(args):
    "Modes covered at the end of a run, for each setup and seed."
    seeds, steps, rows = (2, 40, []) if args.fast else (10, args.steps or 1000, [])
    for name, options in SETUPS.items():
        found = []
        for seed in range(seeds):
            torch.manual_seed(seed)
            game = PointGAN(**options)
            data = points("ring", 128 * game.k, seed=seed)
            Trainer(game, data, steps=steps, seed=seed, device=args.device, preview_every=10**9, **QUIET).fit()
            x = game.generator(game.noise(1000)).detach().cpu()
            found.append((*modes_covered(x, data.centres()), js_divergence(x, data.sample(1000))))
        modes, near, js = zip(*found)
        rows.append({"name": name, **options, "modes": modes, "modes_median": statistics.median(modes), "modes_min": min(modes), "modes_max": max(modes),
                     "on_a_mode": round(statistics.median(near), 3), "js": round(statistics.median(js), 3)})  # fmt: skip
    return {"seeds": seeds, "steps": steps, "rows": rows}


class Score:
    "FID and coverage of the averaged generator after given steps."

    def __init__(self, real, at):
        self.real, self.at, self.found = real, at, {}

    def on_step(self, trainer):
        if trainer.step not in self.at:
            return
        with trainer.averaged():
            fake = features(trainer.method.sample(len(self.real), seed=1))
        self.found[trainer.step] = frechet_distance(self.real, fake), coverage(self.real[:1000], fake[:1000])


def seeds(args):
    "The recommended setup with five seeds, and a greedy one that collapses."
    size, people, steps = (16, 200, 24) if args.fast else (args.size or 32, 4000, args.steps or 1500)
    epoch, rows = people // 32, []
    faces = open_faces(f"procedural:n={people}", size)
    real = features(torch.cat([faces.batch(torch.arange(i, min(i + 200, people))).image for i in range(0, people, 200)]))
    half = people // 2
    others = [("spectral norm in D", {"norm": "spectral"}, 0), ("greedy G, lr_g x 10", {"lr_g": 10 * GAN(size=8, width=1).config["lr_g"]}, 0)]
    runs = [("recommended", {}, s) for s in range(2 if args.fast else 5)] + others
    for setup, options, seed in runs:
        seed_everything(seed)
        gan, score, start = GAN(size=size, width=8 if args.fast else 32, **options), Score(real[:half], (epoch, steps)), time.perf_counter()
        Trainer(gan, batches(faces, 32, seed), steps=steps, seed=seed, device=args.device, precision="auto", channels_last=True, ema=0.995,
                preview_every=10**9, callbacks=[score], **QUIET).fit()  # fmt: skip
        (first, _), (last, share) = score.found[epoch], score.found[steps]
        rows.append(
            {
                "setup": setup,
                "seed": seed,
                "fid_epoch_1": round(first, 2),
                "fid": round(last, 2),
                "coverage": round(share, 3),
                "seconds": round(time.perf_counter() - start),
            }
        )
        print(rows[-1], file=sys.stderr, flush=True)
    return {"size": size, "people": people, "steps": steps, "batch": 32, "space": "deepswap-attributes-v1", "samples": half, "config": GAN(size=8, width=1).config | {"size": size, "width": 32},
            "fid_real": round(frechet_distance(real[:half], real[half:]), 2), "coverage_real": round(coverage(real[:1000], real[half:][:1000]), 3), "rows": rows}  # fmt: skip


def textbook(gan, real):
    "The loop of every tutorial; returns the three losses."
    G, D, opt, loss = gan.generator, gan.discriminator, gan.optimizers(), nn.BCEWithLogitsLoss()
    one, zero = torch.ones(len(real), device=real.device), torch.zeros(len(real), device=real.device)

    def step():
        opt["d"].zero_grad()
        on_real = loss(D(real), one)
        on_fake = loss(D(G(gan.noise(len(real))).detach()), zero)
        (on_real + on_fake).backward()
        opt["d"].step()
        opt["g"].zero_grad()
        fooled = loss(D(G(gan.noise(len(real)))), one)
        fooled.backward()
        opt["g"].step()
        return float(on_real.detach() + on_fake.detach()), float(fooled.detach())

    return step


def bare(gan, real):
    "The same work as the trainer's, by hand."
    opt = gan.optimizers()

    def play(player, losses):
        opt[player].zero_grad()
        other = gan.generator if player == "d" else gan.discriminator
        with frozen(other):
            found = losses()
            next(v for k, v in found.items() if k.endswith("_adv")).backward()
        opt[player].step()

    def step():
        play("d", lambda: gan.d_losses(real, gan.noise(len(real))))
        play("g", lambda: gan.g_losses(gan.noise(len(real))))

    return step


def speed(args):
    "Turn by turn, medians."
    device = pick_device(args.device)
    size, batch, width, turns = (16, 8, 8, 3) if args.fast else (args.size or 64, args.batch, args.width, args.turns)
    real = (torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1).to(device)

    def make(**options):
        seed_everything(0)
        return GAN(size=size, width=width, **options).to(device)

    def ours(**settings):
        trainer = Trainer(make(**args.options), [real], steps=10**9, device=device, preview_every=10**9, **{**QUIET, **settings})
        trainer._begin()
        return trainer._one_step

    contenders = {
        "textbook": textbook(make(**args.options), real),
        "trainer": ours(),
        "trainer, channels-last": ours(channels_last=True),
        "trainer, bf16": ours(precision="bf16"),
        "trainer, bf16, channels-last": ours(precision="bf16", channels_last=True),
    }
    if args.compile:
        contenders["trainer, bf16, channels-last, compiled"] = ours(precision="bf16", channels_last=True, compile=True)
    by_hand = bare(make(**args.options), real)
    clock = time.process_time if device.type == "cpu" else time.perf_counter

    def timed(step):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = clock()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return clock() - start

    times, shares = {k: [] for k in contenders}, []
    for turn in range(turns + 2):
        for name, step in contenders.items():
            t = timed(step)
            times[name] += [t] if turn > 1 else []
        if turn > 1:
            pair = {}
            for name, step in [("hand", by_hand), ("ours", contenders["trainer"])][:: 1 if turn % 2 else -1]:
                pair[name] = timed(step)
            shares.append(pair["ours"] / pair["hand"] - 1)
    seconds = {k: statistics.median(v) for k, v in times.items()}
    rows = [
        {
            "name": k,
            "images_per_s": round(batch / v / (1 / torch.get_num_threads() if clock is time.process_time else 1), 1),
            "ratio": round(seconds["textbook"] / v, 2),
        }
        for k, v in seconds.items()
    ]
    tiny = tiny_overhead(device) if device.type == "cpu" else None
    return {"size": size, "batch": batch, "width": width, "turns": turns, "rows": rows, "step_ms": round(seconds["trainer"] * 1e3, 1), "fixed_ms": tiny,
            "overhead_percent": round(100 * statistics.median(shares), 2), "fixed_percent": tiny and round(100 * tiny / (seconds["trainer"] * 1e3), 2), "parity": parity(real, size, width, args.options)}  # fmt: skip


def tiny_overhead(device, turns=60):
    "Milliseconds that the trainer adds to a step, from networks so small that little else is left."
    real, gans = torch.rand(2, 3, 8, 8), [GAN(latent=2, size=8, width=1) for _ in "ab"]
    trainer = Trainer(gans[0], [real], steps=10**9, device=device, preview_every=10**9, **QUIET)
    trainer._begin()
    hand, found = bare(gans[1], real), []
    for _ in range(turns):
        pair = []
        for step in (trainer._one_step, hand):
            start = time.process_time()
            step()
            pair.append(time.process_time() - start)
        found.append(pair[0] - pair[1])
    return round(1e3 * statistics.median(found), 3)


def parity(real, size, width, options, steps=3):
    "How far the losses of the textbook loop and of the trainer in float32 differ, step by step from the same weights."
    seed_everything(0)
    gan = GAN(size=size, width=width, **options).to(real.device)
    trainer = Trainer(gan, [real], steps=steps, device=real.device, preview_every=10**9, progress=False)
    seed_everything(0)
    twin = GAN(size=size, width=width, **options).to(real.device)
    step = textbook(twin, real)
    torch.manual_seed(1)
    book = [step() for _ in range(steps)]
    torch.manual_seed(1)
    trainer.fit()
    rows = zip(book, trainer.history)
    return [max(abs(a - row[k]) for a, k in zip(pair, ("d_adv", "g_adv"))) for pair, row in rows]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("ring", "seeds", "speed"))
    parser.add_argument("--fast", action="store_true", help="a smoke of seconds")
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/gan_<what>.json")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--norm", default=None, help="of D in `speed`; the method's own if missing")
    parser.add_argument("--compile", action="store_true", help="torch.compile too; takes minutes to start")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.options = {"norm": args.norm} if args.norm else {}
    result = {**about(args), **{"ring": ring, "seeds": seeds, "speed": speed}[args.what](args)}
    print(json.dumps(result, indent=1))
    if args.record and not args.fast:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"gan_{args.what}.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
