"""Train the scene reader that ships, and measure the yardsticks of chapter 44.

python benchmarks/yardsticks.py train [--cache FOLDER] [--out FOLDER]             writes deepswap/weights/deepswap-scene-v2.safetensors; about forty minutes of one core
python benchmarks/yardsticks.py measure [--shared ../shared] [--record]           prints JSON; --record writes benchmarks/results/yardsticks.json

Training. Procedural people who all differ, three quarters from the hard set and a quarter from the easy one, aligned at 64 px, each crop turned,
enlarged and moved a little. --cache keeps drawn pictures in a folder and --out the run, so that the same command goes on where it was stopped.

Measuring. Reading: people that no training used (seed 944,001 on), easy and hard: mean error of each quantity, beside the error of always saying the mean.
Swaps: what the reader says of exact swaps against their targets, whose pose and expression they have: the least that any swapper can get.
With --shared and onnxruntime: the same pose questions to the pose network for photographs.
"""

import argparse
import json
import sys
import time
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from deepswap.autoencoder import render_aligned  # noqa: E402
from deepswap.classify import WEIGHTS  # noqa: E402
from deepswap.core import seed_everything, write_json  # noqa: E402
from deepswap.data import PixelStore, batches  # noqa: E402
from deepswap.people import exact_swap, sample_people  # noqa: E402
from deepswap.train import Trainer  # noqa: E402
from deepswap.yardsticks import SCENE_READER, ReaderMethod, TurnedPeople, expression_error, load_reader, pose_error, pose_reader, save_reader  # noqa: E402

RECORD = ROOT / "benchmarks/results/yardsticks.json"


def drawn(faces, folder):
    "The training pictures; from the cache what it holds."
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        faces.store = PixelStore(len(faces), faces.size, folder=folder)
    start = time.perf_counter()
    for i in torch.arange(len(faces)).split(512):
        faces.batch(i)
        if int(i[0]) % 5120 == 0:
            print(f"picture {int(i[0]):,} of {len(faces):,} after {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return faces


def train(a):
    faces = drawn(TurnedPeople(a.pictures, 64, "mixed", a.seed), a.cache)
    seed_everything(a.seed)
    t = Trainer(ReaderMethod(64, a.width, a.lr), batches(faces, a.batch), a.out, a.steps, a.seed, "cpu", "auto", channels_last=True, ema=0.999, progress=False)
    t = t.resume() if a.out and (Path(a.out) / "last.safetensors").exists() else t
    start = time.process_time()
    t.fit()
    if t.status == "done":
        about = {"pictures": a.pictures, "steps": a.steps, "batch": a.batch, "lr": a.lr, "seed": a.seed, "processor minutes": round((time.process_time() - start) / 60, 1)}
        with t.averaged():
            path = save_reader(t.method.reader.eval(), a.weights, about)
        path.chmod(0o644)
        print(json.dumps({"wrote": path.name, **about, "bytes": path.stat().st_size}))


def scores(reader, n):
    "How well poses are read, by whom: exact swaps against their targets, and against the truth."
    found = {}
    for preset in ("easy", "hard"):
        source, target = sample_people(n, preset, 945_001), sample_people(n, preset, 946_001)
        seen, matrix = render_aligned(target, 64)
        exact, scene = render_aligned(exact_swap(source, target), 64, matrix)[0].image, target.scene
        row = {name: float(pose_error(reader, exact, x).mean()) for name, x in (("pose, target", seen.image), ("pose, truth", scene), ("pose, another target", seen.image.roll(1, 0)))}
        row["pose, median"] = float(pose_error(reader, exact, seen.image).median())
        if hasattr(reader, "expression"):
            row |= {name: float(expression_error(reader, exact, x).mean()) for name, x in (("expression, target", seen.image), ("expression, truth", scene), ("expression, another target", seen.image.roll(1, 0)))}
        found[preset] = row
    return found


def measure(a):
    reader, reading = load_reader(), {}
    for preset in ("easy", "hard"):
        faces = TurnedPeople(a.n, 64, preset, 944_001, turn=0.)
        error, constant = (reader(faces.batch(range(a.n)).image) - faces.truth).abs().mean(0), (faces.truth - faces.truth.mean(0)).abs().mean(0)
        reading[preset] = {k: {"error": float(e), "constant": float(c)} for k, e, c in zip(reader.NAMES, error, constant)}
    found = {"n": a.n, "reading": reading, "own": scores(reader, a.n)}
    files = [Path(a.shared) / "data/weights" / f"fsanet_{k}.onnx" for k in ("1x1", "var")]
    if all(f.is_file() for f in files) and find_spec("onnxruntime"):
        found["fsanet"] = scores(pose_reader(*files), min(a.n, 120))
    print(json.dumps(found, indent=1))
    if a.record:
        write_json(found, RECORD)


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=("train", "measure"))
    p.add_argument("--pictures", type=int, default=40_000)
    p.add_argument("--steps", type=int, default=3500)
    p.add_argument("--batch", type=int, default=128)
    p.add_argument("--width", type=int, default=20, help="channels of the first convolution")
    p.add_argument("--lr", type=float, default=2e-3)
    p.add_argument("--n", type=int, default=500, help="pictures of each measurement")
    p.add_argument("--seed", type=int, default=44)
    p.add_argument("--cache")
    p.add_argument("--out")
    p.add_argument("--weights", default=str(WEIGHTS / f"{SCENE_READER}.safetensors"))
    p.add_argument("--shared", default=str(ROOT.parent / "shared"))
    p.add_argument("--record", action="store_true")
    a = p.parse_args()
    torch.set_num_threads(1)
    {"train": train, "measure": measure}[a.what](a)
