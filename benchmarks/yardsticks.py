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
from safetensors.torch import load_file, save_file  # noqa: E402

from deepswap.autoencoder import render_aligned  # noqa: E402
from deepswap.classify import WEIGHTS  # noqa: E402
from deepswap.core import write_json  # noqa: E402
from deepswap.data import PixelStore  # noqa: E402
from deepswap.people import exact_swap, sample_people  # noqa: E402
from deepswap.yardsticks import SCENE_READER, SceneReader, TurnedPeople, expression_error, load_reader, pose_error, pose_reader, save_reader  # noqa: E402

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


def examples(a, reader, start):
    "What the reader sees of the training pictures; from the cache what it holds."
    easy, found = a.pictures // 4, []
    for k, (n, preset) in enumerate(((a.pictures - easy, "hard"), (easy, "easy"))):
        faces = TurnedPeople(n, 64, preset, a.seed + k)
        kept = Path(a.cache) / f"{preset}.safetensors" if a.cache else None
        if kept is None or not kept.is_file():
            z = reader.examples(drawn(faces, Path(a.cache) / preset if a.cache else None, a.draw, start), a.seed + k)
            if kept:
                save_file({"z": z[0], "truth": z[1]}, kept)
        else:
            z = load_file(kept)["z"], load_file(kept)["truth"]
        found.append(z)
        print(f"{preset} seen after {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return tuple(map(torch.cat, zip(*found)))


def train(a):
    start, reader = time.perf_counter(), SceneReader()
    seen = examples(a, reader, start)
    start = time.perf_counter()

    def tell(step, loss):
        if step % 100 == 0:
            print(f"{step} {loss:.3f} {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)

    reader.fit(None, a.steps, a.batch, a.lr, a.seed, tell, seen)
    about = {"pictures": a.pictures, "steps": a.steps, "batch": a.batch, "lr": a.lr, "seed": a.seed, "training_minutes": round((time.perf_counter() - start) / 60, 1)}
    path = save_reader(reader, a.weights, about)
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
    if all(f.is_file() for f in files):
        found["fsanet"] = scores(pose_reader(*files), min(a.n, 200))
    print(json.dumps(found, indent=1))
    if a.record:
        write_json(found, RECORD)


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=("train", "measure"))
    p.add_argument("--pictures", type=int, default=24_000)
    p.add_argument("--steps", type=int, default=3000)
    p.add_argument("--batch", type=int, default=256)
    p.add_argument("--lr", type=float, default=1e-3)
    p.add_argument("--n", type=int, default=500, help="pictures of each measurement")
    p.add_argument("--seed", type=int, default=44)
    p.add_argument("--cache")
    p.add_argument("--draw", type=float, default=float("inf"))
    p.add_argument("--weights", default=str(WEIGHTS / f"{SCENE_READER}.safetensors"))
    p.add_argument("--shared", default=str(ROOT.parent / "shared"))
    p.add_argument("--record", action="store_true")
    a = p.parse_args()
    torch.set_num_threads(1)
    {"train": train, "measure": measure}[a.what](a)
