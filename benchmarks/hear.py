"""HEAR-Net: makes the shipped weights, and measures what the second stage brings back.

python benchmarks/hear.py blind          two FaceShifters of 32 pixels that never saw an occluder, self-supervised and taught; a HEAR-Net of each kind on top
python benchmarks/hear.py ship           HEAR-Net for the shipped FaceShifter: a run in --out, and deepswap/weights/deepswap-hear-v1.safetensors
python benchmarks/hear.py shipped        the shipped FaceShifter, which saw occluders, with and without the shipped HEAR-Net, and seconds of a swap

"blind" and "shipped" write their half of benchmarks/results/hear.json and keep the other; without a part both are measured. About six, six and one minutes of one core.
For photographs: python -c "from deepswap.train import run; import deepswap.hear; run('hear', 'FOLDER', 256, 16, 100000, out='RUN', options={'faceshifter': 'FIRST_RUN', 'keep': False})"
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import torch

from deepswap.autoencoder import AlignedPeople
from deepswap.classify import WEIGHTS
from deepswap.core import DeepswapError, seed_everything, write_json
from deepswap.cyclegan import psnr
from deepswap.faceshifter import FACESHIFTER, FaceShifter, load_faceshifter
from deepswap.hear import HEAR, Hear, HearLoader, heuristic_error, load_hear, occluded_task, save_hear, score_occluded, with_occluders
from deepswap.identity import get_encoder, identity_faces
from deepswap.people import OCCLUDERS, People
from deepswap.train import Trainer

RESULTS = Path(__file__).parent / "results" / "hear.json"
KINDS = {"HEAR, as printed": Hear.presets["paper"], "HEAR, self-supervised": {}, "HEAR, taught": Hear.presets["taught"]}
QUICK = FaceShifter.presets["quick"]
STAGES = {"self-supervised": QUICK, "taught": QUICK | FaceShifter.presets["taught"] | {"keep": True}}
EDGE = 0.3  # of the error, from which the plain gate opens


def plain(model, task):
    "What needs no second network: nothing, the first stage, the error added, and a gate that opens where the error is large."
    target = task.target.image
    swap, error = model.swap(task.source, target), heuristic_error(model, target)
    gate = (error.abs().amax(1, keepdim=True) > EDGE).float()
    return {"target untouched": target, "FaceShifter": swap, "error added": (swap + error).clamp(-1, 1), "gate on the error": torch.lerp(swap, target, gate)}


def fitted(method, loader, steps, **more):
    "A run on a loader that may have served before."
    loader.position = 0
    return Trainer(method, loader, steps=steps, seed=0, device="cpu", progress=False, **more).fit()


def blind_stage(name, options, steps, hear_steps, people, n):
    "A first stage without occluders, and three second stages on the same pairs."
    faces = identity_faces(f"procedural:n={people},scenes=4,preset=easy", 32)
    seed_everything(0)
    model = FaceShifter(32, **options)
    fitted(model, model.loader(faces, 32, 16, 0)[0], steps)
    model.eval()
    task, encoder = occluded_task(n, 32), get_encoder("own", "cpu")
    covered = AlignedPeople(with_occluders(faces.people, 0.5, 1), 32)
    loader, results = HearLoader(covered, model, 16, 0.5, 0, taught=True), plain(model, task)
    for kind, more in KINDS.items():
        seed_everything(0)
        method = Hear(32, model, width=8, **more)
        results[kind] = fitted(method, loader, hear_steps).method.swap(task.source, task.target.image)
    results["exact swap"] = task.exact.image
    return {"steps": steps, "hear steps": hear_steps, "people": people, "pairs": n, "rows": {k: score_occluded(x, task, encoder) for k, x in results.items()}}


def record_blind(steps=500, hear_steps=300, people=256, n=128):
    "Both first stages."
    out = {}
    for name, options in STAGES.items():
        out[name] = blind_stage(name, options, steps, hear_steps, people, n)
        print(name, json.dumps(out[name]["rows"]), flush=True)
    return out


def by_kind(results, task):
    "dB in the occluder for each kind of occluder: {kind: {result: dB}}."
    which = {OCCLUDERS[k]: task.kind == k for k in range(1, len(OCCLUDERS))}
    return {name: {k: float(psnr(x[i], task.exact.image[i], task.where[i])) for k, x in results.items()} for name, i in which.items()}


def seconds(f, n=5):
    "Median of some calls, after one to get warm."
    f()
    found = []
    for _ in range(n):
        start = time.perf_counter()
        f()
        found.append(time.perf_counter() - start)
    return sorted(found)[n // 2]


def record_shipped(n=256):
    "The shipped first stage alone and with the shipped second one, with something in front of every target's face, and with nothing."
    hear, encoder, out = load_hear(device="cpu"), get_encoder("own", "cpu"), {"pairs": n}
    model = hear.faceshifter
    for name, share in {"occluded": 1.0, "nothing in front": 0.0}.items():
        task = occluded_task(n, model.config["size"], share=share)
        results = plain(model, task) | {"with HEAR": hear.swap(task.source, task.target.image), "exact swap": task.exact.image}
        out[name] = {k: score_occluded(x, task, encoder) for k, x in results.items()}
        if share:
            out["by kind"] = by_kind({k: results[k] for k in ("FaceShifter", "with HEAR")}, task)
    one = task.source[:1], task.target.image[:1]
    return out | {"seconds": {"FaceShifter": seconds(lambda: model.swap(*one)), "with HEAR": seconds(lambda: hear.swap(*one))}, "parameters": sum(p.numel() for p in hear.net.parameters())}


def ship(out, steps, people, width, **options):
    "Train for the shipped first stage, and write the weights."
    size = load_faceshifter(device="cpu").config["size"]
    kinds = [identity_faces(f"procedural:n={k},scenes=4,preset={preset},seed={seed}", size).people for k, preset, seed in ((people, "easy", 50), (people // 3, "hard", 51))]
    kinds[1].person = kinds[1].person + people
    covered = with_occluders(People.cat(kinds), 0.5, 1)
    seed_everything(0)
    method = Hear(size, width=width, **Hear.presets["taught"] | options)
    start = time.process_time()
    t = Trainer(method, method.loader(AlignedPeople(covered, size), size, 16, 0)[0], out=out, steps=steps, seed=0, device="cpu", ema=0.99, log_every=20, progress=False)
    (t.resume() if (Path(out) / "last.safetensors").exists() else t).fit()
    about = {"steps": steps, "people": people + people // 3, "pictures": len(covered), "batch": 16, "processor seconds": round(time.process_time() - start), "first stage": FACESHIFTER}
    with t.averaged():
        print(save_hear(method, WEIGHTS / f"{HEAR}.safetensors", about), about)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("part", nargs="?", default="all", choices=("blind", "ship", "shipped", "all"))
    p.add_argument("--out", default=str(Path(tempfile.gettempdir()) / "deepswap-hear"), help="folder of the run")
    for name, default in {"steps": 800, "people": 600, "width": 16, "pairs": 256}.items():
        p.add_argument(f"--{name}", type=int, default=default)
    p.add_argument("--id", type=float, default=Hear(32, FaceShifter(32, width=2, ndf=4)).config["id"])
    a = p.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if a.part == "ship":
        return ship(a.out, a.steps, a.people, a.width, id=a.id)
    for part in ("blind", "shipped") if a.part == "all" else (a.part,):
        before = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        write_json(before | {part: record_blind() if part == "blind" else record_shipped(a.pairs)}, RESULTS)


if __name__ == "__main__":
    try:
        main()
    except DeepswapError as e:
        sys.exit(str(e))
