"""Train the scene reader that ships, and measure the yardsticks of chapter 44.

python benchmarks/yardsticks.py train [--pictures 24000] [--steps 3000] [--cache FOLDER] [--draw SECONDS]   writes deepswap/weights/deepswap-scene-v1.safetensors
python benchmarks/yardsticks.py measure [--shared ../shared] [--record]                                     prints JSON; --record writes benchmarks/results/yardsticks.json

Training. Procedural people who all differ, three quarters from the hard set and a quarter from the easy one, aligned at 64 px, each crop turned,
enlarged and moved a little. --cache keeps drawn pictures in a folder, so that a run that was stopped does not draw them again; --draw stops after that many seconds of drawing.

Measuring. Reading: people that no training used (seed 944,001 on), easy and hard: mean error of each quantity, beside the error of always saying the mean.
Swaps: what the reader says of exact swaps against their targets, whose pose and expression they have: the least that any swapper can get.
With --shared and onnxruntime: the same pose questions to the pose network for photographs.
"""

import argparse
import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from deepswap.classify import WEIGHTS  # noqa: E402
from deepswap.core import write_json  # noqa: E402
from deepswap.data import PixelStore  # noqa: E402
from deepswap.yardsticks import SCENE_READER, SceneReader, TurnedPeople, save_reader  # noqa: E402

RECORD = ROOT / "benchmarks/results/yardsticks.json"


def drawn(faces, folder, limit, start):
    "The training pictures; from the cache what it holds."
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        faces.store = PixelStore(len(faces), faces.size, folder=folder)
    for i in torch.arange(len(faces)).split(512):
        faces.batch(i)
        if time.perf_counter() - start > limit:
            sys.exit(f"drew up to picture {int(i[-1])} of {len(faces)}; run again with the same --cache")
    return faces


class Both:
    "Two sets of pictures as one, for the training."

    def __init__(self, *sets):
        self.sets, self.first = sets, [0, *torch.tensor([len(s) for s in sets]).cumsum(0).tolist()]
        self.truth = torch.cat([s.truth for s in sets])

    def __len__(self):
        return self.first[-1]

    def batch(self, i):
        image = torch.empty(len(i), 3, self.sets[0].size, self.sets[0].size)
        for s, a, b in zip(self.sets, self.first, self.first[1:]):
            here = (i >= a) & (i < b)
            image[here] = s.batch(i[here] - a).image
        return argparse.Namespace(image=image)


def train(a):
    start, easy = time.perf_counter(), a.pictures // 4
    sets = [TurnedPeople(n, 64, preset, a.seed + k) for k, (n, preset) in enumerate(((a.pictures - easy, "hard"), (easy, "easy")))]
    folder = lambda s, name: Path(a.cache) / name if a.cache else None
    faces = Both(*(drawn(s, folder(s, name), a.draw, start) for s, name in zip(sets, ("hard", "easy"))))
    drawing, start = time.perf_counter() - start, time.perf_counter()
    print(f"drawn after {drawing:.0f} s", file=sys.stderr, flush=True)

    def tell(step, loss):
        if step % 100 == 0:
            print(f"{step} {loss:.3f} {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)

    reader = SceneReader(width=a.width).fit(faces, a.steps, a.batch, a.lr, a.seed, tell)
    about = {"pictures": a.pictures, "steps": a.steps, "batch": a.batch, "seed": a.seed, "training_minutes": round((time.perf_counter() - start) / 60, 1)}
    path = save_reader(reader, a.weights, about)
    print(json.dumps({"wrote": path.name, **about, "bytes": path.stat().st_size}))


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=("train", "measure"))
    p.add_argument("--pictures", type=int, default=24_000)
    p.add_argument("--steps", type=int, default=3000)
    p.add_argument("--batch", type=int, default=128)
    p.add_argument("--width", type=int, default=16)
    p.add_argument("--lr", type=float, default=3e-3)
    p.add_argument("--seed", type=int, default=44)
    p.add_argument("--cache")
    p.add_argument("--draw", type=float, default=float("inf"))
    p.add_argument("--weights", default=str(WEIGHTS / f"{SCENE_READER}.safetensors"))
    p.add_argument("--shared", default=str(ROOT.parent / "shared"))
    p.add_argument("--record", action="store_true")
    a = p.parse_args()
    torch.set_num_threads(1)
    {"train": train}[a.what](a)
