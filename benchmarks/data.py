"""How fast do batches come, what does keeping pictures save, how much memory does it take, and does a training step ever wait?

python benchmarks/data.py [--pictures 512] [--size 64] [--batch 16] [--device auto] [--seconds 1.5]      prints one line of JSON

Speeds are pictures a second. `wait` is the share of a training step that a loader adds to the same step on a batch that is already
there: the small autoencoder of chapter 04, fed by a warm loader, with and without augmentation.
"""
import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path


import torch  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from deepswap.core import pick_device, to_pil  # noqa: E402
from deepswap.data import Augment, FolderFaces, PairLoader, ProceduralFaces, batches  # noqa: E402
from deepswap.train import AutoencoderMethod, Trainer  # noqa: E402


def sync(device):
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def rate(loader, seconds, device="cpu", warm=2):
    "Pictures a second out of a loader."
    it, n = iter(loader), 0
    for _ in range(warm):
        next(it)
    sync(device)
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        n += len(next(it))
        sync(device)
    return n / (time.perf_counter() - start)


def once(faces, batch):
    "Pictures a second in the first pass over a data set, and in the second."
    out = []
    for _ in range(2):
        start = time.perf_counter()
        assert sum(len(b) for b in batches(faces, batch, shuffle=False, epochs=1)) == len(faces)
        out.append(len(faces) / (time.perf_counter() - start))
    return out


def write_jpegs(path, faces, side=256):
    "A data set as JPEG files of the size that photographs of faces have."
    for k in range(len(faces)):
        to_pil(faces.batch([k]).image).resize((side, side)).save(Path(path) / f"{k:05d}.jpg", quality=90)


class Held:
    "The same batch again and again: what a step costs when data cost nothing."
    def __init__(self, batch): self.batch = batch
    def __iter__(self):
        while True:
            yield self.batch


def step_seconds(loader, device, steps=30):
    "Best of three: seconds per step of the small autoencoder."
    best = float("inf")
    trainer = Trainer(AutoencoderMethod(64), loader, steps=10**6, device=device, progress=False)
    marks = []
    trainer.callbacks = [type("Watch", (), {"on_step": lambda self, t: (sync(device), marks.append(time.perf_counter()), len(marks) > 3 * steps + 5 and t.request_stop())})()]
    trainer.fit()
    for k in range(3):
        part = marks[5 + k * steps:5 + (k + 1) * steps + 1]
        best = min(best, (part[-1] - part[0]) / (len(part) - 1))
    return best


MEMORY = """
import os, sys
sys.path.insert(0, {root!r})
from deepswap.data import FolderFaces, batches
def resident(): return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
FolderFaces({path!r}, {size}, budget_mb=0.01, check=False).batch(range(32))   # threads and buffers that decoding needs anyway
before = resident()
faces = FolderFaces({path!r}, {size}, budget_mb={budget}, check=False)
for batch in batches(faces, 16, epochs=2): pass
print(resident() - before, faces.store.memory_mb)
"""


def memory(path, size, budget):
    "Resident megabytes that two passes over a folder add, in a fresh process, and megabytes of pictures kept."
    code = MEMORY.format(root=str(Path(__file__).resolve().parents[1]), path=str(path), size=size, budget=budget)
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    return {"budget_mb": budget, "resident_mb": round(float(out[0]), 1), "kept_mb": round(float(out[1]), 2)}


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--pictures", type=int, default=512)
    p.add_argument("--size", type=int, default=64)
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--device", default="auto")
    p.add_argument("--seconds", type=float, default=1.5)
    a = p.parse_args()
    device = pick_device(a.device)
    faces = ProceduralFaces(a.pictures // 4, 4, a.size, seed=0, device=device)
    drawn, kept = once(faces, a.batch)
    result = {"device": str(device), "threads": torch.get_num_threads(), "size": a.size, "batch": a.batch,
              "procedural": {"first_pass": round(drawn), "kept": round(kept), "ratio": round(kept / drawn, 1)}}
    with tempfile.TemporaryDirectory() as folder:
        write_jpegs(folder, faces)
        uncached, _ = once(FolderFaces(folder, a.size, cache=None, check=False), a.batch)
        files = FolderFaces(folder, a.size, check=False)
        first, again = once(files, a.batch)
        result["jpeg_256"] = {"uncached": round(uncached), "first_pass": round(first), "kept": round(again), "ratio": round(again / uncached, 1), "decoded": files.decoded, "pictures": len(files)}
        result["memory"] = [memory(folder, a.size, b) for b in (1, 64)]
    result["loader"] = {name: round(rate(loader, a.seconds, device)) for name, loader in {
        "single": batches(faces, a.batch), "pairs": PairLoader(faces, a.batch),
        "augmented": batches(faces, a.batch, augment=Augment(warp=.03)), "augmented_prefetch": batches(faces, a.batch, augment=Augment(warp=.03), prefetch=2)}.items()}
    still = step_seconds(Held(next(iter(batches(faces, a.batch)))), device)
    result["training_step"] = {"needs": round(a.batch / still)}
    for name, loader in {"plain": batches(faces, a.batch), "augmented": batches(faces, a.batch, augment=Augment(warp=.03))}.items():
        s = step_seconds(loader, device)
        result["training_step"][name] = {"images_per_s": round(a.batch / s), "wait": round(max(0., 1 - still / s), 3)}
    result["peak_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
