"""All adversarial objectives on one budget: modes on a ring of Gaussians, and FID on faces of 32 pixels.

python benchmarks/objectives.py ring --seeds 0 1 2 --save       prints JSON; --save also enters the runs in results/objectives.json
python benchmarks/objectives.py faces --seeds 0 --save          and writes a mosaic of each objective's last faces
python benchmarks/objectives.py ring --fast                     a smoke of seconds

Same networks, same Adam, same learning rate, same batches for all; only the objective changes. Discriminators are plain
(no batch norm, no spectral norm), so that nothing but the objective restrains them; three runs with spectral norm show what
that adds. `WGAN-GP, k = 5` stops when it has used as much processor time as the non-saturating run of its seed: it is
there for the budget in seconds.
"""
import argparse
import datetime
import fcntl
import json
import math
import platform
import statistics
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from deepswap.classify import SPACE, features, frechet_distance  # noqa: E402
from deepswap.core import TrainingError, pick_device  # noqa: E402
from deepswap.gan import GAN, PointGAN, modes_covered  # noqa: E402
from deepswap.people import render, sample_people  # noqa: E402
from deepswap.show import mosaic, to_jpeg  # noqa: E402
from deepswap.train import Trainer  # noqa: E402
import deepswap.objectives  # noqa: E402, F401  (enters its objectives)

RESULTS = Path(__file__).parent / "results"
GP = {"name": "wgan-gp", "weight": 0.1}  # on points: the authors' toy script takes a tenth as well
CONTENDERS = {  # label -> objective, discriminator steps, norm of the discriminator
    "minimax": ("minimax", 1, "none"),
    "non-saturating": ("non-saturating", 1, "none"),
    "least squares 0, 1, 1": ("least-squares", 1, "none"),
    "least squares -1, 1, 0": ({"name": "least-squares", "a": -1., "b": 1., "c": 0.}, 1, "none"),
    "hinge": ("hinge", 1, "none"),
    "WGAN-GP": ("wgan-gp", 1, "none"),
    "WGAN-GP, k = 5": ("wgan-gp", 5, "none"),
}
ON_THE_RING = CONTENDERS | {"WGAN-GP": (GP, 1, "none"), "WGAN-GP, k = 5": (GP, 5, "none"), "WGAN-GP, weight 10": ("wgan-gp", 1, "none")}
ON_FACES = CONTENDERS | {f"{label}, spectral": (*CONTENDERS[label][:2], "spectral") for label in ("non-saturating", "least squares 0, 1, 1", "hinge")}
ORDER = list(ON_FACES | ON_THE_RING)
FACES = dict(size=32, width=16, latent=64, batch=16, lr=5e-4, pictures=4096, judged=1000)
RING = dict(width=64, batch=128, lr=1e-3, judged=2000)


class Watch:
    "Processor seconds of the training alone, and a reading at some steps."
    def __init__(self, at, read, seconds=math.inf):
        self.at, self.read, self.limit, self.rows = set(at), read, seconds, []
    def on_start(self, trainer): self.start, self.paused = time.process_time(), 0.
    def spent(self): return time.process_time() - self.start - self.paused
    def on_step(self, trainer):
        over = self.spent() > self.limit
        if over: trainer.request_stop("the seconds are spent")
        if trainer.step not in self.at and not over: return
        before = time.process_time()
        self.rows.append({"step": trainer.step, "seconds": round(self.spent(), 2), **self.read(trainer.method)})
        self.paused += time.process_time() - before


class Deck:
    "Pictures in a random order of its own, for ever."
    def __init__(self, images, batch, seed): self.images, self.batch, self.dice = images, batch, torch.Generator().manual_seed(seed)
    def __iter__(self):
        while True: yield self.images[torch.randint(len(self.images), (self.batch,), generator=self.dice)]


def covered(x, data):
    "How many modes hold at least 2 % of the points within three sigma, and what share of all points lies so near to any."
    modes, good = modes_covered(x, data.places, reach=3 * data.spread, share=0.02 * data.modes)
    return {"modes": modes, "good": round(good, 4)}


def train(method, data, steps, seed, read, device, seconds=math.inf, readings=4):
    "One run: its readings, or why it failed."
    watch = Watch([steps * i // readings for i in range(1, readings + 1)], read, seconds)
    try: Trainer(method, data, steps=steps, seed=seed, device=device, callbacks=[watch], progress=False).fit()
    except TrainingError as e: return {"failed": str(e), "curve": watch.rows}
    return {"failed": None, "curve": watch.rows, **watch.rows[-1]}


def ring(seed, steps, device, seconds):
    "Every contender on the ring."
    def read(method):
        x = method.generator(torch.randn(RING["judged"], method.config["noise"], generator=torch.Generator().manual_seed(7)).to(device)).detach()
        return covered(x.cpu(), data)
    for label, (objective, k, _) in ON_THE_RING.items():
        torch.manual_seed(seed)
        method = PointGAN(objective, width=RING["width"], k=k, lr_g=RING["lr"], lr_d=RING["lr"])
        data = method.loader("ring", 0, RING["batch"], seed)[0]
        out = train(method, data, steps, seed, read, device, seconds[0] if k > 1 else math.inf)
        if label == "non-saturating": seconds[0] = out.get("seconds", math.inf)
        yield label, out


def faces(seed, steps, device, seconds, settings=FACES, save=False):
    "Every contender on faces."
    s = settings
    images = render(sample_people(s["pictures"], "easy", seed=1), s["size"]).image
    held_out = features(render(sample_people(s["judged"], "easy", seed=2), s["size"]).image)
    other = features(images[:s["judged"]])
    def read(method):
        fake = method.sample(s["judged"], seed=7).cpu()
        f = features(fake)
        return {"fid": round(frechet_distance(held_out, f), 3), "spread": round(float(f.std(0).mean() / held_out.std(0).mean()), 3)}
    mean_face = images.mean(0, keepdim=True).expand(s["judged"], -1, -1, -1)
    yield "yardstick", {"real": round(frechet_distance(held_out, other), 3), "noise": round(frechet_distance(held_out, features(torch.randn_like(images[:s["judged"]]).clamp(-1, 1))), 3),
                        "mean face": round(frechet_distance(held_out, features(mean_face)), 3), "space": SPACE}
    for label, (objective, k, norm) in ON_FACES.items():
        torch.manual_seed(seed)
        method = GAN(objective, latent=s["latent"], size=s["size"], width=s["width"], k=k, norm=norm, lr_g=s["lr"], lr_d=s["lr"])
        out = train(method, Deck(images, s["batch"] * k, seed), steps, seed, read, device, seconds[0] if k > 1 else math.inf)
        if label == "non-saturating": seconds[0] = out.get("seconds", math.inf)
        if save: (RESULTS / f"objectives_{slug(label)}.jpg").write_bytes(to_jpeg(mosaic(method.sample(32, seed=7), 3, 10)))
        yield label, out


def slug(label): return "".join(c if c.isalnum() else "_" for c in label.lower())


def enter(part, runs, settings):
    "Put runs into the results, other runs of other processes untouched."
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "objectives.json"
    with open(RESULTS / ".objectives.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        book = json.loads(path.read_text()) if path.exists() else {}
        old = book.get(part, {"runs": []})
        fresh = {(r["label"], r["seed"]) for r in runs}
        kept = [r for r in old["runs"] if (r["label"], r["seed"]) not in fresh]
        seeds = sorted({r["seed"] for r in kept + runs})
        command = f"python benchmarks/objectives.py {part} --seeds {' '.join(map(str, seeds))} --save"  # or seed by seed
        book[part] = {**settings, "command": command, "runs": sorted(kept + runs, key=lambda r: (ORDER.index(r["label"]), r["seed"]))}
        path.write_text(json.dumps(book, indent=1) + "\n")
    (RESULTS / ".objectives.lock").unlink(missing_ok=True)


def table(runs, key, worse):
    "Mean and spread over the seeds for each objective, failures apart."
    for label in ORDER:
        mine = [r for r in runs if r["label"] == label]
        good = [r[key] for r in mine if not r["failed"]]
        if mine: yield label, {"mean": round(statistics.mean(good), 3) if good else None, "spread": round(statistics.stdev(good), 3) if len(good) > 1 else None,
                               "failures": sum(bool(r["failed"]) or worse(r[key]) for r in mine), "seeds": len(mine)}


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("part", choices=("ring", "faces"))
    p.add_argument("--seeds", type=int, nargs="+", default=[0])
    p.add_argument("--steps", type=int, help="generator steps of each run (default 2000)")
    p.add_argument("--device", default="cpu")
    p.add_argument("--save", action="store_true", help="enter the runs in results/objectives.json, and write mosaics for seed 0")
    p.add_argument("--fast", action="store_true", help="a smoke of seconds; never saved")
    a = p.parse_args()
    steps = a.steps or ((40 if a.part == "ring" else 4) if a.fast else 2000)
    settings = dict(RING if a.part == "ring" else FACES)
    if a.fast and a.part == "faces": settings.update(width=8, batch=8, pictures=64, judged=32)
    device, runs = pick_device(a.device), []
    for seed in a.seeds:
        play = ring(seed, steps, device, [math.inf]) if a.part == "ring" else faces(seed, steps, device, [math.inf], settings, a.save and seed == a.seeds[0] == 0)
        for label, out in play:
            if label == "yardstick": settings["yardstick"] = out; continue
            runs.append({"label": label, "seed": seed, **out})
            print(json.dumps({k: v for k, v in runs[-1].items() if k != "curve"}), file=sys.stderr, flush=True)
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    settings |= dict(steps=steps, device=f"{device.type}, {chip}, {torch.get_num_threads()} thread(s)", torch=torch.__version__, date=datetime.date.today().isoformat())
    if a.save and not a.fast: enter(a.part, runs, settings)
    key, worse = ("modes", lambda v: v < 4) if a.part == "ring" else ("fid", lambda v: v > settings["yardstick"]["mean face"])
    print(json.dumps({"part": a.part, **settings, "table": dict(table(runs, key, worse))}))


if __name__ == "__main__":
    main()
