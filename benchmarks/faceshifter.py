"""Trains FaceShifter's first stage: on procedural people, or on folders that hold one folder of pictures per person.

python benchmarks/faceshifter.py --out runs/fs                                      procedural people, any machine
python benchmarks/faceshifter.py --out runs/fs --data VGGFACE CELEBA --size 256 --width 32 --batch 16 --steps 500000 --device cuda --precision bf16
torchrun --nproc_per_node 4 benchmarks/faceshifter.py ...                           the same on four GPUs; --batch is for all of them together

The same command again goes on where the run stopped. Several folders are mixed: their people are taken to be different people. Further options of the method
are given as --set name=value, such as --set encoder=mobilefacenet.safetensors supervised=10. At the end the network is scored on 128 unseen procedural people
(with a foreign encoder the retrieval is that encoder's own). It needs torch, torchvision, numpy, safetensors, accelerate and tqdm beside deepswap.

The weights that the package ships, about 75 minutes on one core of two:
python benchmarks/faceshifter.py --out runs/ship --preset taught --width 12 --steps 7500 --device cpu --precision auto --set lr=0.002 beta=0.9 decay=0.4 keep=true
    --data procedural:n=10000,scenes=3,preset=easy procedural:n=3333,scenes=3,preset=hard,seed=1 --save deepswap/weights/deepswap-faceshifter-v1.safetensors

python benchmarks/faceshifter.py --record     about sixteen minutes on one core: two self-supervised runs and two taught by the exact swap, 32 pixels, scored
                                              on the way; runs that are in it already are kept; writes benchmarks/results/faceshifter.json
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch

from deepswap.autoencoder import AlignedPeople
from deepswap.core import DeepswapError, UsageError, seed_everything, write_json
from deepswap.data import Faces
from deepswap.faceshifter import FaceShifter, save_faceshifter, score_swap, swap_task
from deepswap.identity import get_encoder, identity_faces
from deepswap.people import People
from deepswap.train import Trainer, run

RESULTS = Path(__file__).parent / "results" / "faceshifter.json"


class Mixed(Faces):
    "Several data sets as one; nobody is in two of them."

    def __init__(self, sets):
        super().__init__([n for s in sets for n in s.names], sets[0].size)
        self.sets, self.starts = sets, torch.tensor([0, *(len(s) for s in sets)]).cumsum(0)
        who, people = [], 0
        for s in sets:
            names, known = s.person.unique(return_inverse=True)
            who.append(known + people)
            people += len(names)
        self.person = torch.cat(who)

    def _pixels(self, i):
        which, out = torch.searchsorted(self.starts, i, right=True) - 1, torch.empty(len(i), 3, self.size, self.size, dtype=torch.uint8)
        keep = torch.ones(len(i), dtype=torch.bool)
        for k, s in enumerate(self.sets):
            mine = (which == k).nonzero()[:, 0]
            if len(mine):
                pixels, got = s._pixels(i[mine] - self.starts[k])
                if len(got) == len(mine):
                    out[mine] = pixels.cpu()
                else:  # a file went bad since it was listed
                    good = torch.isin(i[mine] - self.starts[k], got.cpu())
                    out[mine[good]], keep[mine[~good]] = pixels.cpu(), False
        return out[keep], i[keep]


def procedural(sources, size):
    "Several kinds of procedural people as one, in other styles; nobody is in two of them."
    kinds, people = [identity_faces(s, size).people for s in sources], 0
    for k in kinds:
        k.person = k.person + people
        people = int(k.person.max()) + 1
    return AlignedPeople(People.cat(kinds), size, budget_mb=8192)


def data_of(sources, size):
    "What `run` is given: a name or a folder, or several of them as one."
    if len(sources) > 1 and all(s.startswith("procedural") for s in sources):
        return procedural(sources, size)
    return sources[0] if len(sources) == 1 else Mixed([identity_faces(s, size) for s in sources])


def scored(method, size, n=128):
    "The method on unseen people, beside the untouched target and the exact swap."
    task, encoder = swap_task(n, size), get_encoder("own", "cpu")
    swapped = method.swap(task.source, task.target.image).cpu()
    return {"swapped": score_swap(swapped, task, encoder), "untouched": score_swap(task.target.image, task, encoder), "exact": score_swap(task.exact.image, task, encoder)}


class Watch:
    "Scores a run on its way."

    def __init__(self, at, size, n):
        self.at, self.task, self.encoder, self.rows, self.size = at, swap_task(n, size), get_encoder("own", "cpu"), [], size

    def on_step(self, trainer):
        if trainer.step in self.at:
            swapped = trainer.method.swap(self.task.source, self.task.target.image)
            self.rows.append({"step": trainer.step} | score_swap(swapped, self.task, self.encoder))


RUNS = {
    "self-supervised": {},
    "self-supervised, reconstruction over all pairs": {"rec": 2.0},  # what 10 weighs there: a fifth of the pairs are same ones
    "taught by the exact swap": {"supervised": 10.0, "id": 0.0, "adv": 0.0, "att": 0.0, "rec": 0.0},
    "taught, and asked for the identity": FaceShifter.presets["taught"],
}


def record(steps, people, n=128, size=32, before=None):
    "All ways to teach: the same networks, data and steps. Runs that were recorded with the same settings are kept."
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    faces = identity_faces(f"procedural:n={people},scenes=4,preset=easy", size)
    out = {"steps": steps, "people": people, "size": size, "batch": 16, "pairs": n}
    kept = before["runs"] if before and before.items() >= out.items() else {}
    out["runs"] = {name: kept.get(name) or one_run(more, faces, steps, n, size) for name, more in RUNS.items()}
    ends = scored(FaceShifter(size=size, **FaceShifter.presets["quick"]), size, n)
    return out | {k: ends[k] for k in ("untouched", "exact")}


def one_run(more, faces, steps, n, size):
    "A run from its seed, scored five times."
    seed_everything(0)
    method = FaceShifter(size=size, **FaceShifter.presets["quick"] | more)
    watch = Watch([steps * k // 10 for k in (1, 2, 4, 7, 10)], size, n)
    start = time.process_time()
    Trainer(method, method.loader(faces, size, 16, 0)[0], steps=steps, seed=0, device="cpu", progress=False, callbacks=[watch]).fit()
    print(more, watch.rows[-1], flush=True)
    return {"processor seconds": round(time.process_time() - start), "rows": watch.rows}


def value(text):
    "name=value of the method's options."
    name, _, v = text.partition("=")
    if name not in FaceShifter.options or not v:
        raise UsageError(f"{text!r} sets no option of faceshifter; write name=value with one of {', '.join(FaceShifter.options)}.")
    try:
        return name, json.loads(v)
    except json.JSONDecodeError:
        return name, v


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", nargs="+", default=["procedural"], help="'procedural...' or folders of people")
    p.add_argument("--out", help="folder of the run")
    for name, default in {"size": 64, "width": 16, "ndf": 32, "batch": 16, "steps": 20000, "seed": 0}.items():
        p.add_argument(f"--{name}", type=int, default=default)
    p.add_argument("--set", nargs="*", default=[], metavar="name=value")
    p.add_argument("--preset", default="")
    p.add_argument("--save", metavar="FILE", help="write what a swap needs, in half precision, as the package ships it (.safetensors)")
    p.add_argument("--device", default="auto")
    p.add_argument("--precision", default="fp32")
    p.add_argument("--ema", type=float, default=0.999)
    p.add_argument("--record", action="store_true")
    p.add_argument("--record-steps", type=int, default=1000)
    a = p.parse_args()
    if a.record:
        return write_json(record(a.record_steps, 256, before=json.loads(RESULTS.read_text()) if RESULTS.exists() else None), RESULTS)
    if not a.out:
        p.error("--out is missing")
    sizes = {} if a.preset == "quick" else {"width": a.width, "ndf": a.ndf}
    options = sizes | dict(value(s) for s in a.set)
    settings = {"precision": a.precision, "ema": a.ema or None, "channels_last": a.device.startswith("cuda")}
    t = run("faceshifter", data_of(a.data, a.size), a.size, a.batch, a.steps, a.seed, a.device, a.out, resume=(Path(a.out) / "last.safetensors").exists(), options=options, preset=a.preset, **settings)
    if t.status == "done" and t.processes.main:
        with t.averaged():
            found = scored(t.method, a.size)
            if a.save:
                save_faceshifter(t.method, a.save, {"steps": a.steps, "batch": a.batch, "seed": a.seed, "data": a.data, "precision": a.precision, "ema": a.ema})
        write_json(found, Path(a.out) / "score.json")
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    try:
        main()
    except DeepswapError as e:
        sys.exit(str(e))
