"""The coursework's experiments: Table 1, its research questions, and overfitting, with seeds and exact answers.

python benchmarks/coursework.py --list                        the plan, what is done, and how long the rest takes
python benchmarks/coursework.py --only table1                 what two CPU cores allow; adds to benchmarks/results/coursework.json
python benchmarks/coursework.py --scale short --only questions --seeds 2      shorter runs for the many variants: coursework_short.json
python benchmarks/coursework.py --scale full --device cuda    the coursework's own numbers; writes coursework_full.json
python benchmarks/coursework.py --scale tiny --out DIR        seconds: does it run at all?

Every run is written as soon as it is finished, and a run that stands in the file is not made again: stop it and start it as you like.
`--minutes 20` stops before a run that would not be done in time.
"""

import argparse
import functools
import json
import platform
import time
from pathlib import Path

import torch

from deepswap.classify import RealOrFake
from deepswap.core import cache_dir, pick_device, write_image, write_json
from deepswap.coursework import ASKED_OF, SCALES, VARIANTS, arithmetic, coursework_task, plan, report, set_judge, train_experiment
from deepswap.show import to_grid

RESULTS = Path(__file__).parent / "results"
COST = {"no adversary": 0.8, "dropout": 1.2, "adaptive dropout": 1.2, "pixel shuffle": 1.2, "128 px": 4.5, "2 D steps": 1.5, "5 D steps": 3.1, "WGAN-GP": 1.5, "attention": 1.4, "mask": 1.1}  # of a baseline run, for the first guess


def draw_once(faces, name):
    "Fill a procedural data set's store from the cache, or draw it all and put it there: several programs need the same pictures."
    from safetensors.torch import load_file, save_file

    path = cache_dir("coursework") / f"{name}.safetensors"
    if not path.exists():
        faces.batch(range(len(faces)))
        part = path.with_suffix(".part")
        save_file({"pixels": faces.store.pixels}, part)
        part.replace(path)
    faces.store.put(torch.arange(len(faces)), load_file(path)["pixels"])


@functools.lru_cache(maxsize=3)
def task_of(data, size, seed, test):
    "A set with its tests, drawn."
    task = coursework_task(data, size, test, seed)
    for k in "ab":
        draw_once(getattr(task["own"], k), f"{data} {k} {size} {seed}".replace(" ", "-"))
    return task


@functools.lru_cache(maxsize=1)
def judge_of(seed, steps, test):
    "One judge for all variants of a seed; taught once and kept, as several programs need the same."
    from safetensors.torch import load_file, save_file

    path = cache_dir("coursework") / f"judge-{ASKED_OF}-{seed}-{steps}.safetensors".replace(" ", "-")
    if not path.exists():
        save_file(set_judge(task_of(ASKED_OF, 64, seed, test)["own"], steps).state_dict(), path)
    judge = RealOrFake(size=64)
    judge.load_state_dict(load_file(path))
    return judge


def experiment(e, a):
    "One run, as it is written down, and a strip of its swaps."
    tiny, side = e.scale == "tiny", VARIANTS[e.variant].get("size", 64)
    test = {"tiny": 4, "short": 16}.get(e.scale, 32)
    tests = {s: task_of(e.data, s, e.seed, test) for s in ({64, 128} if e.data == ASKED_OF and e.variant in ("baseline", "128 px") else {64, side})}
    judge = judge_of(e.seed, 2 if tiny else 150, test) if e.data == ASKED_OF else None
    start = time.perf_counter()
    trainer, read = train_experiment(e, tests[side]["own"], device=a.device, **({"precision": a.precision} if a.precision else {}))
    row, swaps = report(e, trainer, read, tests, judge)
    row["minutes"] = (time.perf_counter() - start) / 60
    return row, to_grid(torch.cat([swaps["b"][:: test // 4], swaps["a"][:: test // 4]]), 8, pad=0)


def rounded(x):
    "Five digits are enough."
    if isinstance(x, dict):
        return {k: rounded(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [rounded(v) for v in x]
    return float(f"{x:.5g}") if isinstance(x, float) else x


def machine(device):
    "What it ran on."
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), platform.processor())
    device = pick_device(device)
    return {"cpu": cpu, "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None, "threads": torch.get_num_threads(), "torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}


def read(path, a):
    "The results so far, or an empty book. Runs with other settings are not mixed in."
    if not path.exists():
        return {"scale": a.scale, "setting": SCALES[a.scale], "arithmetic": {k: arithmetic(k) for k in ("full", a.scale)}, "machine": machine(a.device), "command": f"python benchmarks/coursework.py --scale {a.scale}", "runs": []}
    book = json.loads(path.read_text())
    if book["setting"] != SCALES[a.scale]:
        raise SystemExit(f"{path} holds runs with other settings; move it away first.")
    return book


def key(run):
    "What makes a run another one; an `Experiment` or a row."
    return tuple(run[k] if isinstance(run, dict) else getattr(run, k) for k in ("data", "variant", "seed"))


def guess(e, runs):
    "Minutes: as the same variant took, or as the baseline took."
    like = [r["minutes"] for r in runs if r["variant"] == e.variant]
    base = [r["minutes"] for r in runs if r["variant"] == "baseline"] or [0.6]
    return sum(like) / len(like) if like else COST.get(e.variant, 1.0) * sum(base) / len(base)


def show(todo, runs):
    "The plan, and how long it takes."
    done = {key(r): r["minutes"] for r in runs}
    for e in todo:
        print(f"{e.name:40} " + (f"done, {done[key(e)]:.1f} minutes" if key(e) in done else f"about {guess(e, runs):.1f} minutes"))
    left = [guess(e, runs) for e in todo if key(e) not in done]
    print(f"{len(left)} of {len(todo)} runs left, about {sum(left):.0f} minutes")


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--scale", choices=SCALES, default="cpu")
    p.add_argument("--only", choices=("table1", "questions", "gap"), default="")
    p.add_argument("--variant", action="append", choices=VARIANTS, help="this variant alone; may be given several times")
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--device", default="cpu")
    p.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), help="instead of the scale's")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--minutes", type=float, default=float("inf"), help="begin no run that would end later than this")
    p.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    p.add_argument("--list", action="store_true", help="show the plan and stop")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    begun, path = time.perf_counter(), a.out / ("coursework.json" if a.scale == "cpu" else f"coursework_{a.scale}.json")
    todo = [e for e in plan(a.scale, a.only, a.seeds) if not a.variant or e.variant in a.variant]
    if a.list:
        return show(todo, read(path, a)["runs"])
    a.out.mkdir(parents=True, exist_ok=True)
    for e in todo:
        runs = read(path, a)["runs"]
        if key(e) in map(key, runs):
            continue
        if (time.perf_counter() - begun) / 60 + guess(e, runs) > a.minutes:
            break
        row, strip = experiment(e, a)
        book = read(path, a)  # once more: another process may have added its own
        book["runs"] = [r for r in book["runs"] if key(r) != key(e)] + [rounded(row)]
        write_json(book, path)
        if e.seed == 0:
            write_image(strip[None], path.with_name(f"{path.stem}_{e.data}_{e.variant}.jpg".replace(" ", "-").lower()), quality=85)
        print(f"{e.name:40} {row['minutes']:.1f} minutes, face {row['scores']['own']['face']:.2f} dB from {row['scores']['own']['untouched face']:.2f}", flush=True)


if __name__ == "__main__":
    main()
