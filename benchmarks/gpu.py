"""What each lever of a training step buys, where its milliseconds and its memory go, and two processes against one. Prints JSON.

python benchmarks/gpu.py --device cuda --record     on a GPU, in under eight minutes; writes benchmarks/results/gpu_cuda.json
python benchmarks/gpu.py --device cpu --record      on one core and at 64 px, about eight minutes; writes benchmarks/results/gpu_cpu.json
python benchmarks/gpu.py --fast                     a smoke of seconds; writes nothing unless --out names a file

Each row is written to the file as soon as it is measured, so that a run that is cut off leaves what it had. A row that runs out of memory or
fails says so in its note. A step with torch.compile or a CUDA graph is measured in a process of its own with a time limit, because compiling can
fail and hang, and a recording that fails spoils what comes after it. Past --limit seconds no new row is begun. Contenders take turns where they fit into memory together (CPU); on a GPU, which nobody else
uses, they follow one another. On one core of a CPU the clock is of processor time; that of two
processes is the wall's. It needs torch, torchvision, numpy, safetensors, accelerate and tqdm beside deepswap.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from deepswap.core import pick_device, seed_everything, write_json
from deepswap.cyclegan import CycleGAN
from deepswap.faceshifter import FaceShifter
from deepswap.gan import GAN
from deepswap.gpu import Machine, Step, allowed_ms, hot_spots, in_turn, measure_machine, noise_batch
from deepswap.train import AutoencoderMethod, Trainer

RESULTS = Path(__file__).parent / "results"
METHODS = {
    "faceshifter": lambda size, width: FaceShifter(size, width, 2 * width),
    "autoencoder": lambda size, width: AutoencoderMethod(size, width),
    "gan": lambda size, width: GAN(size=size, width=width),
    "cyclegan": lambda size, width: CycleGAN(size, ngf=width, ndf=width),
}
CASES = {  # device -> name of the method -> size, width, batch; FaceShifter's comes first and is taken apart
    "cpu": {"faceshifter": (64, 16, 8), "autoencoder": (64, 32, 16), "gan": (64, 32, 16), "cyclegan": (64, 16, 2)},
    "cuda": {"faceshifter": (256, 32, 16), "autoencoder": (64, 32, 64), "gan": (64, 64, 128), "cyclegan": (256, 64, 4)},
    "fast": {"faceshifter": (32, 4, 2), "gan": (32, 8, 4)},
}
# In the order of the waterfall: each on top of those before. A name in brackets is measured alone only.
CPU_LEVERS = {
    "freeze": {"freeze": True},
    "bf16": {"precision": "bf16"},
    "channels-last": {"channels_last": True},
    "fused Adam": {"fused": True},
    "compile": {"compile": True},
}
GPU_LEVERS = {
    "freeze": {"freeze": True},
    "tf32": {"tf32": True},
    "bf16": {"precision": "bf16"},
    "channels-last": {"channels_last": True},
    "cuDNN search": {"search": True},
    "batch there": {"feed": "there"},
    "fused Adam": {"fused": True},
    "compile": {"compile": True},
    "CUDA graph": {"graph": True},
}
SECTIONS = ("waterfall", "anatomy", "batches", "feed", "processes", "compile")
ONLY_ALONE = {"in two pieces": {"accumulate": 2}}


class Book:
    "The record, written to its file after every row."

    def __init__(self, path, limit, about):
        self.path, self.end, self.found = path, time.monotonic() + limit, about

    def left(self):
        return self.end - time.monotonic()

    def keep(self, *where, value):
        at = self.found
        for k in where[:-1]:
            at = at.setdefault(k, {})
        at[where[-1]] = value
        print(json.dumps({"/".join(where): value})[:300], flush=True)
        if self.path:
            write_json(self.found, self.path)


def tidy(device):
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def build(case, levers, device):
    "A step of a case, from its seed."
    name, size, width, batch = case
    seed_everything(0)
    method = METHODS[name](size, width)
    return Step(method, [noise_batch(method, batch, k) for k in range(2)], device, **levers)


def guarded(make):
    "What `make` gives, or a row with a note in place of it."
    try:
        return make()
    except Exception as e:  # a compiler raises what it likes
        text = (str(e).strip() or "no message").splitlines()[0][:120]
        return {"note": "out of memory" if "out of memory" in str(e).lower() else f"failed: {type(e).__name__}: {text}"}


def measured(case, levers, device, seconds=1.5):
    "Milliseconds of a step, the median of as many as fit into the time, and the allocator's peak."
    tidy(device)
    step = build(case, levers, device)
    first = in_turn({"": step}, device, rounds=1, warm=3 if device.type == "cuda" else 1)[""]
    rounds = max(5, min(200, int(1e3 * seconds / max(first, 1e-3))))
    row = {"ms": in_turn({"": step}, device, rounds, warm=0)[""], "rounds": rounds}
    if device.type == "cuda":
        row["peak MB"] = round(torch.cuda.max_memory_allocated(device) / 2**20)
    return row


def in_a_process(case, levers, args, limit):
    "The same in a process of its own, which may fail or be stopped."
    if limit < 20:
        return {"note": "not measured: out of time"}
    command = [sys.executable, __file__, "--device", str(args.device), "--one", json.dumps([case, levers])]
    env = {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "1"} if str(args.device) == "cpu" else None
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"note": f"stopped after {limit:.0f} s"}
    try:
        return json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        return {"note": f"failed: {(done.stderr.strip() or 'no output').splitlines()[-1][:120]}"}


def both(case, levers, device, rounds=5):
    "Compiled and not, in alternation: for a CPU that others use."
    ways = {"eager ms": {k: v for k, v in levers.items() if k != "compile"}, "ms": levers}
    steps = {k: build(case, chosen, device) for k, chosen in ways.items()}
    return in_turn(steps, device, rounds, warm=2) | {"rounds": rounds}


def beside(row, eager):
    "The milliseconds of a row from another process, as if it had taken turns with the one that is not compiled here."
    if "eager ms" not in row or not eager.get("ms"):
        return row
    return row | {"ms": eager["ms"] * row["ms"] / row["eager ms"], "ms there": row["ms"]}


def row_of(case, levers, args, device, book, compile_limit):
    "One row, in this process or in its own."
    if book.left() < 10:
        return {"note": "not measured: out of time"}
    if levers.get("compile") or levers.get("graph"):
        return in_a_process(case, levers, args, min(compile_limit, book.left() - 5))
    return guarded(lambda: measured(case, levers, device))


def taking_turns(case, contenders, device, rounds):
    "Milliseconds of several contenders that are in memory together, in alternation; for a machine that others use."
    tidy(device)
    steps, rows = {}, {}
    for name, levers in contenders.items():
        step = guarded(lambda: build(case, levers, device))
        rows[name] = step if isinstance(step, dict) else guarded(step) or {}
        if not rows[name]:
            steps[name] = step
    ms = in_turn(steps, device, rounds)
    return {k: {"ms": ms[k], "rounds": rounds} if k in ms else rows[k] for k in contenders}


def cumulative(levers):
    "name -> all levers so far."
    out, so_far = {"plain": {}}, {}
    for name, lever in levers.items():
        so_far = so_far | lever
        out[f"+ {name}"] = {k: v for k, v in so_far.items() if not (k == "tf32" and so_far.get("precision") == "bf16")}
    return out


def without_compile(contenders):
    return {k: v for k, v in contenders.items() if not v.get("compile")}


def shares(rows, matrix, machine, levers):
    "Share of the measured matrix peak, of the precision in use: the operations of the work that is asked for, over the time."
    for name, row in rows.items():
        if row.get("ms"):
            precision = levers[name].get("precision", "fp32")
            row["share of peak"] = matrix["freeze" if levers[name].get("freeze") else "plain"] / (row["ms"] / 1e3) / machine.peak(precision)
    return [{"name": k, **v} for k, v in rows.items()]


def counted(case, machine, levers, device):
    "Operations of the step, its parts against the roof, and its memory."
    precision = levers.get("precision", "fp32")
    step = build(case, levers, device)
    parts = step.counted().parts()
    for r in parts:
        r["allowed"] = allowed_ms(r, machine, precision)
    return step, parts


def worker(args):
    "One of the processes of `two_processes`: steps of a FaceShifter, timed; the first one prints."
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    name, size, width, batch = json.loads(args.worker)
    seed_everything(0)
    method = METHODS[name](size, width)
    trainer = Trainer(method, [noise_batch(method, batch)], steps=10**9, device=args.device, progress=False, log_every=10**6)
    trainer._begin()
    trainer._use(trainer.wrapped)
    times = []
    for _ in range(args.rounds + 1):
        trainer.processes.wait()
        start = time.perf_counter()
        trainer._one_step()
        times.append(1e3 * (time.perf_counter() - start))
    if trainer.processes.main:
        print(
            json.dumps({"ms": times[1:], "megabytes": sum(p.nbytes for n in method.networks().values() for p in n.parameters()) / 1e6}),
            flush=True,
        )
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def two_processes(case, args, turns=2, rounds=4):
    "The same training by one process with one core, one with two, and two with one core each; in turn, several times, medians."
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    ways = {
        "one process, one core": ([sys.executable], 1),
        "one process, two cores": ([sys.executable], 2),
        "two processes, one core each": (run, 1),
    }
    times, megabytes = {k: [] for k in ways}, 0
    for _ in range(turns):
        for name, (start, threads) in ways.items():
            env = {
                **os.environ,
                "OMP_NUM_THREADS": str(threads),
                "OMP_WAIT_POLICY": "PASSIVE",
            }  # on a busy machine, spinning threads stop each other
            command = [*start, __file__, "--device", "cpu", "--worker", json.dumps(case), "--rounds", str(rounds)]
            done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
            found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"ms"')))
            times[name] += found["ms"]
            megabytes = found["megabytes"]
    median = {k: sorted(v)[len(v) // 2] for k, v in times.items()}
    return {"ms": median, "steps of each": turns * rounds, "megabytes": megabytes, "backend": "gloo", "case": case}


def levers_of(args, device):
    return GPU_LEVERS if device.type == "cuda" else CPU_LEVERS


def begin(args, device):
    "The record's head, and the machine."
    peak = {"n": 256, "megabytes": 8, "rounds": 1} if args.fast else {}
    machine = measure_machine(device, **peak)
    words = [
        "python benchmarks/gpu.py",
        "--device",
        str(args.device),
        *(["--record"] if args.record else []),
        *(["--fast"] if args.fast else []),
    ]
    about = {
        "command": " ".join(words),
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": vars(machine),
    }
    return machine, about


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--device", default="cpu")
    p.add_argument("--record", action="store_true")
    p.add_argument("--fast", action="store_true")
    p.add_argument("--out", type=Path, help="another file for the record")
    p.add_argument("--limit", type=float, default=0, help="seconds after which no row is begun (default: 440 on a GPU, 1500 on a CPU)")
    p.add_argument("--compile-limit", type=float, default=0, help="seconds for one compiled row (default: 170 on a GPU, 300 on a CPU)")
    p.add_argument("--threads", type=int, default=1, help="on a CPU")
    p.add_argument("--rounds", type=int, default=5, help="of all contenders, on a CPU")
    p.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="SECTION",
        help=f"go on with a record that is there: {', '.join(SECTIONS)}, or a method's name",
    )
    p.add_argument("--one", help=argparse.SUPPRESS)
    p.add_argument("--worker", help=argparse.SUPPRESS)
    args = p.parse_args()
    device = pick_device(args.device)
    if args.worker:
        return worker(args)
    if device.type == "cpu":
        torch.set_num_threads(args.threads)
    if args.one:
        case, levers = json.loads(args.one)
        turns = device.type == "cpu" and "compile" in levers
        return print(json.dumps(guarded(lambda: both(case, levers, device) if turns else measured(case, levers, device))))
    record(args, device)


def record(args, device):
    "Everything, the most important first."
    gpu = device.type == "cuda"
    cases = CASES["fast" if args.fast else device.type]
    first = ("faceshifter", *cases["faceshifter"])
    path = args.out or (RESULTS / f"gpu_{device.type}.json" if args.record and not args.fast else None)
    wanted = set(args.only) if args.only else {*SECTIONS, *cases}
    if args.only and path and path.exists():
        about = json.loads(path.read_text())
        machine = Machine(**about["machine"])
    else:
        machine, about = begin(args, device)
    book = Book(path, args.limit or (440 if gpu else 1500), {**about, "case": dict(zip(("method", "size", "width", "batch"), first))})
    compile_limit, rounds = args.compile_limit or (170 if gpu else 300), 1 if args.fast else args.rounds
    levers = levers_of(args, device)
    if args.fast:
        levers = {k: v for k, v in levers.items() if k != "compile"}

    matrix = book.found.get("operations") or {}
    for name, lever in {"plain": {}, "freeze": {"freeze": True}}.items():
        if name not in matrix:
            matrix[name] = sum(r["matrix"] for r in counted(first, machine, lever, device)[1])
            tidy(device)
    book.keep("operations", value=matrix)
    best = {"freeze": True, "precision": "bf16", "channels_last": True}
    if "waterfall" in wanted:
        waterfall(first, levers, matrix, machine, args, device, book, rounds, compile_limit, {}, compiling=gpu)
    if "anatomy" in wanted:
        anatomy(first, machine, best, device, book)
    if gpu and "batches" in wanted:
        batches(first, best, machine, matrix, args, device, book)
    if gpu and "feed" in wanted:
        feeds(first, best, args, device, book)
    if not gpu and "processes" in wanted:
        book.keep("two processes", value=two_processes(first, args, *((1, 1) if args.fast else ())))
    for name, case in cases.items():
        if name in wanted:
            alone((name, *case), levers, args, device, book, rounds, compile_limit)
    if not gpu and "compile" in wanted:  # it takes long on one core: everything else goes first
        before = {row["name"]: {k: v for k, v in row.items() if k != "name"} for row in book.found["waterfall"]}
        waterfall(first, levers, matrix, machine, args, device, book, rounds, compile_limit, before, compiling=True)


def waterfall(case, levers, matrix, machine, args, device, book, rounds, compile_limit, known, compiling):
    "Each lever on top of those before it; `known` are rows that were measured before."
    ways, before = cumulative(levers), {}
    rows = {k: {"note": "not measured yet"} for k in ways} | known
    if device.type == "cpu" and not known:
        rows |= taking_turns(case, without_compile(ways), device, rounds)
    for name, chosen in ways.items():
        if rows[name].get("note") == "not measured yet" and (compiling or not chosen.get("compile")):
            rows[name] = beside(row_of(case, chosen, args, device, book, compile_limit), before)
        before = rows[name] if rows[name].get("ms") else before
        if chosen.get("compile") and not rows[name].get("ms"):  # later rows go on without it
            for later in ways.values():
                later.pop("compile", None) if later is not chosen else None
        book.keep("waterfall", value=shares(rows, matrix, machine, ways))


def anatomy(case, machine, levers, device, book):
    "Parts against the roof, memory by part, the profiler's first rows; plain and with the levers that can be looked into."
    found = guarded(lambda: counted(case, machine, levers, device))
    if isinstance(found, dict):
        return book.keep("parts", value=found["note"])
    book.keep("parts", value=found[1])
    book.keep("memory", value=guarded(found[0].memory))
    book.keep("hot spots", value=guarded(lambda: hot_spots(found[0], 12, device=device)))
    found = None
    tidy(device)
    plain = guarded(lambda: counted(case, machine, {}, device)[1])
    book.keep("parts of the plain loop", value=plain)


def feeds(case, levers, args, device, book):
    "The same step with each feed."
    for how in ("sent", "pinned", "there"):
        row = row_of(case, levers | {"feed": how}, args, device, book, 0)
        book.keep("feed", how, value=row.get("ms") or row["note"])


def alone(case, levers, args, device, book, rounds, compile_limit):
    "Each lever by itself against the plain loop of this method."
    ways = {"plain": {}, **levers, **ONLY_ALONE}
    if case[0] == "cyclegan":
        ways.pop("CUDA graph", None)  # its pool of old pictures tosses a coin in Python
    rows = {k: {"note": "not measured"} for k in ways}
    compiled = case[0] == "autoencoder"  # compiling takes minutes; FaceShifter's is in the waterfall
    if device.type == "cpu":
        rows |= taking_turns(case, without_compile(ways), device, rounds)
    for name, chosen in ways.items():
        if chosen.get("compile") and not compiled:
            rows[name] = {"note": "not measured alone"}
        elif rows[name].get("note") == "not measured":
            rows[name] = beside(row_of(case, chosen, args, device, book, compile_limit), rows["plain"])
        book.keep("alone", case[0], value=[{"name": k, **v} for k, v in rows.items()])


def batches(case, levers, machine, matrix, args, device, book):
    "Larger batches: until memory ends."
    rows = []
    for batch in (4, 8, 32, 64, 128):
        row = row_of((*case[:3], batch), levers, args, device, book, 0)
        if row.get("ms"):
            row["share of peak"] = matrix["freeze"] * batch / case[3] / (row["ms"] / 1e3) / machine.flops["bf16"]
        rows.append({"batch": batch, **row})
        book.keep("batches", value=rows)


if __name__ == "__main__":
    main()
