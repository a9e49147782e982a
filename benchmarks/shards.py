"""A million tiny records in shards: how long to open, how much memory, is each seen once, and what does it gain over single files?

python benchmarks/shards.py --record                     a million records, some minutes and 3 GB of disk; writes benchmarks/results/shards.json
python benchmarks/shards.py --records 20000 [--folder F]  fewer, prints only

Opening and reading are done in fresh processes. Reading means: bytes from the disk, records taken apart; `--decode` adds pixels. Memory is what the process holds beyond what `import deepswap.shards` alone needs, and its own
memory in all (RssAnon), sampled while it works: the pages of torch's library files, shared by all processes and dropped when room is short,
are given beside it. The picture of every record is one of 64 tiny JPEG files.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from deepswap.core import write_json  # noqa: E402
from deepswap.shards import Record, ShardFaces, write_index, write_shard  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
PER_SHARD = 10_000
CHILD = """
import json, os, sys, threading, time
sys.path.insert(0, {root!r})
import numpy as np, torch
torch.set_num_threads(1)
from deepswap.data import batches
from deepswap.shards import ShardFaces
def memory(key):
    with open("/proc/self/status") as f: return int(next(l for l in f if l.startswith(key)).split()[1]) / 1024
before, peak, done = memory("VmRSS"), [0., 0.], False
def watch():
    while not done:
        peak[:] = [max(p, memory(k)) for p, k in zip(peak, ("VmRSS", "RssAnon"))]
        time.sleep(.02)
threading.Thread(target=watch, daemon=True).start()
rank, world, decode = json.loads(sys.argv[1])
start = time.perf_counter(); faces = ShardFaces({folder!r}, 16, workers=1); opened = time.perf_counter() - start
loader = batches(faces, 64 * world, seed=0, epochs=1).shard(rank, world)
start = time.perf_counter(); batch = next(iter(loader)); first = time.perf_counter() - start
at_open, seen, bad = peak[0], [], 0
start = time.perf_counter()
if decode:
    loader.position = 0
    for batch in loader: seen.append(batch.index.numpy().astype(np.int32))
else:
    order = loader.order(0)[rank::world]
    for i in order.split(64):
        faces._shelve(i.tolist())
        bad += sum(isinstance(faces.sample(k), str) for k in i.tolist())
        for k in i.tolist(): faces._hand_out(k)
        seen.append(i.numpy().astype(np.int32))
spent = time.perf_counter() - start; time.sleep(.05); done = True
np.concatenate(seen).tofile(sys.argv[2])
print(json.dumps(dict(opened=opened, first=first, spent=spent, records=sum(map(len, seen)), before=before, peak=peak[0], anon=peak[1], bad=bad + len(faces.bad), evicted=faces.evicted, reads=faces.reads)))
"""


def tiny_jpegs():
    "64 tiny pictures, as JPEG files."
    g = np.random.default_rng(0)
    out = []
    for _ in range(64):
        b = io.BytesIO()
        Image.fromarray(g.integers(0, 255, (2, 2, 3), dtype=np.uint8)).resize((16, 16)).save(b, "JPEG", quality=40)
        out.append(b.getvalue())
    return out


def write(folder, n, workers):
    "The shards, in several processes."
    pictures = tiny_jpegs()
    jobs = list(range(-(-n // PER_SHARD)))
    pids, start = [], time.perf_counter()
    for w in range(workers):
        if not (pid := os.fork()):
            for s in jobs[w::workers]:
                records = (Record(pictures[k % 64], "jpg", {"person": f"p{k // 20}"}) for k in range(s * PER_SHARD, min(n, (s + 1) * PER_SHARD)))
                (folder / f"{s:06d}.line").write_text(json.dumps(write_shard(folder / f"faces-{s:06d}.tar", records)))
            os._exit(0)
        pids.append(pid)
    assert not any(os.waitpid(p, 0)[1] for p in pids)
    written = time.perf_counter() - start
    lines = [json.loads((folder / f"{s:06d}.line").read_text()) for s in jobs]
    write_index(folder, lines)
    for f in folder.glob("*.line"):
        f.unlink()
    return written


def read(folder, world, decode, scratch):
    "An epoch by several processes at once, and how often each record was seen."
    code = CHILD.format(root=str(ROOT), folder=str(folder))
    start = time.perf_counter()
    ps = [subprocess.Popen([sys.executable, "-c", code, json.dumps([r, world, decode]), str(scratch / f"seen{r}")], stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}) for r in range(world)]
    out = [json.loads(p.communicate()[0].splitlines()[-1]) for p in ps]
    total = time.perf_counter() - start
    seen = np.concatenate([np.frombuffer((scratch / f"seen{r}").read_bytes(), np.int32) for r in range(world)])
    return out, np.bincount(seen, minlength=int(seen.max()) + 1), total


def forget(files):
    "Drop files from the system's memory."
    for f in files:
        with open(f, "rb") as h:
            os.fsync(h.fileno())
            os.posix_fadvise(h.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def singles(shards, scratch, n):
    "The same records as single files, two for each, read in random order; and as shards in their own order. Microseconds per record, from the disk and from memory."
    faces = ShardFaces(shards, 16, workers=1)
    n = min(n, len(faces))
    folder = scratch / "single"
    folder.mkdir()
    for k in range(n):
        x = faces.sample(k)
        (folder / f"{k:07d}.jpg").write_bytes(x["jpg"])
        (folder / f"{k:07d}.json").write_bytes(x["json"])
    order = torch.randperm(n).tolist()
    result = {}
    for state in ("from the disk", "from memory"):
        if state == "from the disk":
            forget(sorted(folder.iterdir()))
            forget([shards / s["name"] for s in faces.shards])
        start = time.perf_counter()
        for k in order:
            with open(folder / f"{k:07d}.jpg", "rb") as f:
                f.read()
            with open(folder / f"{k:07d}.json", "rb") as f:
                f.read()
        single = 1e6 * (time.perf_counter() - start) / n
        faces, stream = ShardFaces(shards, 16, workers=1), None
        stream = faces.order(0, 0)[:n]
        start = time.perf_counter()
        for i in stream.split(64):
            numbers = i.tolist()
            faces._shelve(numbers)
            for k in numbers:
                faces.sample(k)
                faces._hand_out(k)
        result[state] = {"single_us": round(single, 1), "shards_us": round(1e6 * (time.perf_counter() - start) / n, 1)}
    return result


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--records", type=int, default=1_000_000)
    p.add_argument("--folder", help="where the shards lie, or shall lie; they stay there")
    p.add_argument("--processes", type=int, default=4)
    p.add_argument("--decode", action="store_true", help="let the processes decode the pictures too, which takes several times as long")
    p.add_argument("--record", action="store_true")
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        folder = Path(a.folder) if a.folder else scratch / "shards"
        r = {"records": a.records}
        if not (folder / "index.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            r["write_s"] = round(write(folder, a.records, os.cpu_count() or 1), 1)
        r["gigabytes"] = round(sum(f.stat().st_size for f in folder.glob("*.tar")) / 1e9, 2)
        r["shards"] = len(list(folder.glob("*.tar")))
        parts, seen, total = read(folder, a.processes, a.decode, scratch)
        r["one_process"] = {k: round(v, 3) if isinstance(v, float) else v for k, v in max(parts, key=lambda x: x["opened"]).items()}
        r["processes"] = {"count": a.processes, "once": int((seen == 1).sum()), "not_once": int((seen != 1).sum()), "wall_s": round(total, 1), "open_s": round(max(x["opened"] for x in parts), 2),
                          "anon_mb": round(max(x["anon"] for x in parts)), "added_mb": round(max(x["peak"] - x["before"] for x in parts)), "per_second": round(len(seen) / max(x["spent"] for x in parts)), "evicted": sum(x["evicted"] for x in parts), "bad": sum(x["bad"] for x in parts)}
        r["against_files"] = singles(folder, scratch, 5_000)
    o, m, f = r["one_process"], r["processes"], r["against_files"]
    r["said"] = {"records; shards; gigabytes": f"{r['records']:,}; {r['shards']}; {r['gigabytes']}",
                 "seconds to open": f"{o['opened']:.2f}, and {o['first']:.2f} to the first batch",
                 "memory of a process": f"{o['anon']:.0f} MB of its own; {o['peak'] - o['before']:.0f} MB more than the import (peak {o['peak']:.0f} MB with the pages of torch's library, {o['before']:.0f} before opening)",
                 f"an epoch over {m['count']} processes{', decoded' if a.decode else ''}": f"seen once {m['once']:,}, not once {m['not_once']}; {m['per_second']:,} a second on {os.cpu_count()} cores, {m['anon_mb']} MB each",
                 **{f"microseconds per record {k}": f"{v['single_us']} as single files, {v['shards_us']} from shards: {v['single_us'] / v['shards_us']:.1f} times as fast" for k, v in f.items()}}
    print(json.dumps(r, indent=1))
    if a.record:
        write_json(r, ROOT / "benchmarks" / "results" / "shards.json")


if __name__ == "__main__":
    main()
