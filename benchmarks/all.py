"""All benchmarks with one command, and one page that says what was asked for and what was reached.

python benchmarks/all.py                     runs what measures speed and memory (about 40 minutes of one core), gathers, writes results/all.json and README.md
python benchmarks/all.py --only train swap   some of them
python benchmarks/all.py --list              what there is, how long it takes, what it needs
python benchmarks/all.py --page              runs nothing: gathers what is recorded and writes the page

A benchmark either records itself in results/NAME.json or prints JSON, which is kept here. What trains for a long time (five seeds of a GAN, the one table ...)
is run by its own command, which the page names. A row without a figure says what is missing, and `reached` is computed from the figure and the goal, never typed.
"""

import argparse
import json
import operator
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
GPU = "no GPU was at hand"

# name: (arguments, minutes of one core, needs)
RUNS = {
    "train": ("train.py --threads 1", 2, ""),
    "data": ("data.py", 2, ""),
    "people": ("people.py --faces 1000", 8, ""),
    "identify": ("identify.py", 12, ""),
    "faces": ("faces.py --people 100 --threads 1", 3, ""),
    "gan": ("gan.py speed --record", 2, ""),
    "standout": ("standout.py speed --record", 2, ""),
    "aei": ("aei.py --record", 4, ""),
    "swap": ("swap.py --speed", 1, ""),
    "imports": ("imports.py --record", 1, ""),
    "shards": ("shards.py --folder build/million --record", 12, "3 GB of disk"),
    "gpu": ("gpu.py --device cpu --record", 8, ""),
    "disk": ("robustness.py disk --record", 3, "root, on Linux"),
    "kill": ("robustness.py kill --record", 10, ""),
    "fuzz": ("robustness.py fuzz --record", 20, ""),
    "visitors": ("robustness.py visitors --record", 4, ""),
    "tracking": ("tracking.py --data ../shared/data/video --out benchmarks/results/tracking.json", 8, "clips"),
}


def recorded(name):
    "The JSON that a benchmark wrote about itself, or what it printed here last."
    path = RESULTS / f"{name}.json"
    if path.exists():
        return json.loads(path.read_text())
    mine = RESULTS / "all.json"
    return json.loads(mine.read_text())["printed"][name]["result"] if mine.exists() else {}


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def line(protocol, method):
    return next(r["numbers"] for r in recorded("evaluate")["lines"] if (r["protocol"], r["method"]) == (protocol, method))


def known(task, arm="full"):
    return [r for r in recorded("cyclegan")["known"] if (r["task"], r["arm"]) == (task, arm)]


def seeds():
    return [r for r in recorded("gan_seeds")["rows"] if r["setup"] == "recommended"]


def steps_of(result, *names):
    return min(r["ratio"] for k, r in recorded(result)["step"][0]["ways"].items() if isinstance(r, dict) and k not in names)


def tracked(key, pick, *without):
    return pick(w["ways"]["every 5, delay 3"][key] for name, w in recorded("tracking")["real"].items() if not name.startswith(without or "\n"))


def gpu(name):
    "A figure that the GPU machine recorded."
    return recorded("gpu_cuda")[name]


def best(method):
    "The quickest of a method's levers alone, against its plain loop, on the CPU."
    rows = recorded("gpu_cpu")["alone"][method]
    return rows[0]["ms"] / min(r["ms"] for r in rows if "ms" in r and "note" not in r)


def broken(part):
    "Everything in a robustness record that should not have happened."
    found = recorded("robustness")[part]
    if part == "visitors":
        counts = found["counts"]
        return sum(counts.get(k, 0) for k in ("another's picture", "served", "server errors", "broken connections", "good refused")) + len(found["left"]) + len(found["escaped"]) + found["tracebacks"]
    rows = next(v for k, v in found.items() if k in ("readers", "jobs", "commands")).values()
    unlike = sum(r["finished"] - r["equal"] + len(r["refused"]) for r in rows if "finished" in r)  # a resumed run that ended otherwise, or not at all
    return unlike + sum(r.get(k, 0) for r in rows for k in ("fault", "crash", "hang", "half", "lost"))


# (chapter, what, against what, (relation, goal, unit), the figure, how to get it)
ROWS = [
    ("55", "`import deepswap`, without torch, seconds", "`import torch`", ("<=", 0.2, "s"), lambda: recorded("imports")["import_deepswap_s"], "imports.py"),
    ("01", "people drawn a second, easy, 64 px, 2 cores", "", (">=", 500, "/s"), lambda: recorded("people")["speed_64_easy"]["per_second"], "people.py"),
    ("01", "people drawn a second on an H200", "", (">=", 50_000, "/s"), lambda: gpu("people per second"), "people.py --device cuda --compile"),
    ("01", "hard faces that MTCNN finds, of 1,000", "", (">=", 0.99, ""), lambda: recorded("people")["mtcnn"]["found"], "people.py"),
    ("01", "unseen people named right after ten minutes of learning", "chance: 1 of 200", (">=", 0.90, ""), lambda: recorded("identify")["top1"], "identify.py"),
    ("04", "the trainer's fixed cost, of a step", "a bare loop, same networks", ("<=", 3, "%"), lambda: recorded("train")["fixed_cost_percent_of_a_step"], "train.py"),
    ("04", "bf16 and channels-last, images/s", "the same step in fp32", (None, None, "times"), lambda: recorded("train")["ratio_to_fp32"]["bf16 channels-last"], "train.py"),
    ("03", "pictures from a folder, kept against decoded again", "decoding each time", (None, None, "times"), lambda: recorded("data")["jpeg_256"]["ratio"], "data.py"),
    ("20", "DCGAN, 64 px: images/s", "textbook loop, eager fp32", (">=", 1.5, "times"), lambda: max(r["ratio"] for r in recorded("gan_speed")["rows"]), "gan.py speed"),
    ("20", "FID against epoch 1, worst of 5 seeds", "epoch 1", ("<=", 0.5, "times"), lambda: max(r["fid"] / r["fid_epoch_1"] for r in seeds()), "gan.py seeds"),
    ("22", "CycleGAN step, 128 px: time", "plain eager fp32 port", ("<=", 0.8, "times"), lambda: steps_of("cyclegan", "port"), "cyclegan.py"),
    ("22", "CycleGAN step: peak memory of the fastest", "plain eager fp32 port", ("<=", 1.0, "times"),
     lambda: (w := recorded("cyclegan")["step"][0]["ways"])["batched calls, bf16"]["memory_mb"] / w["port"]["memory_mb"], "cyclegan.py"),
    ("22", "person A to B: dB above the untouched input, mean of seeds", "untouched input", (">=", 3, "dB"),
     lambda: mean(r["translated"]["ab"] - r["untouched"]["ab"] for r in known("person")), "cyclegan.py --known person"),
    ("24", "adaptive dropout, tied: forward and backward, worst shape", "nn.Dropout", ("<=", 1.3, "times"), lambda: recorded("standout_speed")["worst_ratio"], "standout.py speed"),
    ("32", "pair, easy set: dB above the untouched target, mean of seeds", "untouched target", (">=", 4, "dB"),
     lambda: mean(v["whole"]["psnr"] - v["whole"]["untouched"] for r in recorded("faceswap_gan")["pair"] for v in r["to"].values()), "faceswap_gan.py --pair"),
    ("32", "pair, easy set: dB above the classical swap", "classical swap", (">=", 3, "dB"),
     lambda: mean(v["whole"]["psnr"] - v["classical"]["psnr"] for r in recorded("faceswap_gan")["pair"] for v in r["to"].values()), "faceswap_gan.py --pair"),
    ("32", "pair: share of frames nearer to the source than to the target", "", (">=", 0.95, ""),
     lambda: mean(v["whole"]["identity"] for r in recorded("faceswap_gan")["pair"] for v in r["to"].values()), "faceswap_gan.py --pair"),
    ("32", "face-swap GAN step: time", "textbook loop, eager fp32", (None, None, "times"), lambda: steps_of("faceswap_gan", "textbook"), "faceswap_gan.py"),
    ("34", "jitter with the filter, worst of the clips of talking heads", "MTCNN in each frame", ("<=", 0.5, "times"), lambda: tracked("jitter_share", max, "intel_female"), "tracking.py"),
    ("34", "jitter with the filter, a head that turns all the time", "MTCNN in each frame", ("<=", 0.5, "times"), lambda: tracked("jitter_share", max, "grid", "intel_male"), "tracking.py"),
    ("34", "lag, worst of the real clips, frames", "", ("<=", 1, ""), lambda: tracked("lag_frames", lambda v: max(map(abs, v))), "tracking.py"),
    ("34", "finding with tracking, least of the real clips", "MTCNN in each frame", (">=", 3, "times"), lambda: tracked("faster", min), "tracking.py"),
    ("34", "landmarks off by, of the eye distance, worst median", "MTCNN in each frame", ("<=", 0.03, ""),
     lambda: max(w["ways"]["every 5, delay 3"]["distance"]["median"] for w in recorded("tracking")["real"].values()), "tracking.py"),
    ("37", "a million records: seconds to open", "", ("<=", 3, "s"), lambda: recorded("shards")["one_process"]["opened"], "shards.py --record"),
    ("37", "... memory of a reading process's own, MB", "", ("<=", 500, "MB"), lambda: recorded("shards")["processes"]["anon_mb"], "shards.py --record"),
    ("37", "... records not seen exactly once per epoch by 4 processes", "", ("<=", 0, ""), lambda: recorded("shards")["processes"]["not_once"] + 1_000_000 - recorded("shards")["processes"]["once"], "shards.py --record"),
    ("37", "... time per tiny record, cold disk", "single files", (None, None, "times"), lambda: (r := recorded("shards")["against_files"]["from the disk"])["shards_us"] / r["single_us"], "shards.py --record"),
    ("52", "video, 360 x 288, 128 px swapper: frames/s", "", (">=", 5, "/s"), lambda: recorded("video")["runs"]["faceswap 75"]["fps"], "video.py"),
    ("52", "classical swap of a video: frames/s", "a loop that finds and swaps frame by frame", (None, None, "times"),
     lambda: (r := recorded("video")["runs"])["classical 75"]["fps"] / r["naive 75"]["fps"], "video.py"),
    ("52", "peak memory at 1,500 frames, MB", "", ("<=", 1500, "MB"), lambda: max(r["peak_mb"] for k, r in recorded("video")["runs"].items() if k.endswith("1500")), "video.py"),
    ("52", "video at 720p on an H200, frames/s", "", (">=", 60, "/s"), lambda: gpu("video 720p frames per second"), "video.py --device cuda"),
    ("50", "identity retrieval among 1,000, paper's protocol", "", (">=", 0.95, ""), lambda: line("normal", "FaceShifter")["teacher: same picture"], "evaluate.py --record"),
    ("50", "FaceShifter: dB above the untouched target", "untouched target", (">=", 5, "dB"), lambda: line("normal", "FaceShifter")["psnr"] - line("normal", "untouched")["psnr"], "evaluate.py --record"),
    ("50", "FaceShifter: dB above the classical swap", "classical swap", (">=", 3, "dB"), lambda: line("normal", "FaceShifter")["psnr"] - line("normal", "classical")["psnr"], "evaluate.py --record"),
    ("50", "FaceShifter: pose error, degrees", "", ("<=", 2, "degrees"), lambda: line("normal", "FaceShifter")["pose"], "evaluate.py --record"),
    ("51", "one 256 px swap, encoder included, 2 cores, whole crop", "", ("<=", 200, "ms"), lambda: recorded("swap_speed")["swaps"]["network at 256 px, whole crop pasted"]["median ms"], "swap.py --speed"),
    ("41", "FaceShifter training step, best of the measured widths", "equations as written, fp32", (">=", 1.5, "times"),
     lambda: max(r["ms"]["as written"] / min(r["ms"].values()) for r in recorded("aei")["step"]), "aei.py --record"),
    ("51", "one 256 px swap on an H200", "", ("<=", 5, "ms"), lambda: gpu("one swap, ms"), "gpu.py --device cuda --record"),
    ("42", "FaceShifter training at 256 px on an H200, share of the matrix peak", "", (">=", 0.4, ""), lambda: gpu("share of peak"), "gpu.py --device cuda --record"),
    ("56", "FaceShifter step at 64 px, best lever alone", "plain loop", (None, None, "times"), lambda: best("faceshifter"), "gpu.py --device cpu --record"),
    ("56", "GAN step, best lever alone", "plain loop", (None, None, "times"), lambda: best("gan"), "gpu.py --device cpu --record"),
    ("56", "two processes on two cores: images/s", "one process on one core", (None, None, "times"),
     lambda: (r := recorded("gpu_cpu")["two processes"]["ms"])["one process, one core"] / r["two processes, one core each"], "gpu.py --device cpu --record"),
    ("55", "wheel: Pythons on which everything worked in a bare environment", "", (">=", 3, ""), lambda: sum(r["ok"] for r in recorded("wheel").values()), "../tools/wheel_check.py PYTHON --record"),
    ("55", "spoiled inputs read by all readers", "", (">=", 10_000, ""), lambda: recorded("robustness")["fuzz"]["inputs"], "robustness.py fuzz --record"),
    ("55", "... that crashed, hung or gave anything but a result or one sentence", "", ("<=", 0, ""), lambda: broken("fuzz"), "robustness.py fuzz --record"),
    ("55", "kill -9 in training, extraction and video", "", (">=", 50, ""), lambda: recorded("robustness")["kill"]["kills"], "robustness.py kill --record"),
    ("55", "... half-written files, or ends unlike the uninterrupted run's", "", ("<=", 0, ""), lambda: broken("kill"), "robustness.py kill --record"),
    ("55", "full disk: files half written or lost", "", ("<=", 0, ""), lambda: broken("disk"), "robustness.py disk --record"),
    ("54", "ten visitors: wrong pictures, leaks, errors, leftovers", "", ("<=", 0, ""), lambda: broken("visitors"), "robustness.py visitors --record"),
    ("53", "video mark: frames/s at 360 x 288", "the mark for photos, frame by frame", (None, None, "times"),
     lambda: recorded("provenance_video")["speed, frames a second"]["360 x 288"]["ratio"], "provenance.py --video"),
]
RELATION = {">=": operator.ge, "<=": operator.le}


def gather():
    "Every row with its figure, whether the goal is reached, and why there is none."
    out = []
    for chapter, what, baseline, (relation, goal, unit), figure, command in ROWS:
        row = {"chapter": chapter, "what": what, "baseline": baseline, "goal": None if relation is None else f"{relation} {goal:g}", "unit": unit, "command": f"python benchmarks/{command}"}
        try:
            row["figure"] = round(float(figure()), 4)
            row["reached"] = RELATION[relation](row["figure"], goal) if relation else None
        except (KeyError, FileNotFoundError, StopIteration, ValueError):
            row["figure"], row["reached"] = None, None
            row["missing"] = GPU if "cuda" in command or "H200" in what else "not recorded"
        out.append(row)
    return out


def shown(x):
    "Three figures are enough to read."
    return "" if x is None else f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.3g}"


def wanted(goal):
    "'>= 50000' as 'at least 50,000'."
    relation, _, number = (goal or "").partition(" ")
    return f"{'at least' if relation == '>=' else 'at most'} {f'{int(number):,}' if number.isdecimal() else number}" if goal else ""


def page(data):
    "The page, as markdown."
    rows = data["rows"]
    reached = sum(r["reached"] is True for r in rows)
    missed = [r["what"] for r in rows if r["reached"] is False]
    lines = [
        "# Benchmarks",
        "",
        "What was asked for and what was reached, gathered by `python benchmarks/all.py` from the results that each script recorded; nothing on this page is typed by hand. "
        "*times* is a ratio, taken in one run against the named baseline, on the machine named in the script's own file in `results/`. "
        "A row's command is to be read after `python benchmarks/`.",
        "",
        f"{len(rows)} figures: {reached} goals reached, {len(missed)} missed, {sum(r['figure'] is None for r in rows)} not measured, the rest for information. Gathered on {data['date']}.",
        "",
        "| Chapter | Figure | Measured | Goal | Reached | Against | Command |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        verdict = {True: "yes", False: "**no**", None: "" if r["figure"] is not None else r["missing"]}[r["reached"]]
        unit = f" {r['unit']}" if r["unit"] and r["figure"] is not None else ""
        lines.append(f"| {r['chapter']} | {r['what']} | {shown(r['figure'])}{unit} | {wanted(r['goal'])} | {verdict} | {r['baseline']} | `{r['command'].removeprefix('python benchmarks/')}` |")
    lines += ["", "## All scripts", "", "| Script | What it measures |", "|---|---|"]
    for path in sorted(HERE.glob("*.py")):
        head = path.read_text().split('"""')[1].strip().splitlines()[0]
        lines.append(f"| `{path.name}` | {head} |")
    return "\n".join(lines) + "\n"


def run(name):
    "One benchmark as a process of its own; what it prints is kept if it prints JSON."
    arguments, minutes, _ = RUNS[name]
    print(f"{name}: about {minutes} minutes", flush=True)
    started = time.time()
    done = subprocess.run([sys.executable, *f"benchmarks/{arguments}".split()], cwd=HERE.parent, capture_output=True, text=True)
    entry = {"command": f"python benchmarks/{arguments}", "seconds": round(time.time() - started), "date": str(date.today()), "exit": done.returncode}
    if done.returncode:
        entry["error"] = (done.stderr.strip().splitlines() or ["nothing said"])[-1][:300]
    else:
        try:
            entry["result"] = json.loads(done.stdout[done.stdout.index("{"):])
        except ValueError:
            pass  # it records itself
    print(f"  {entry['seconds']} s" + (f", failed: {entry['error']}" if done.returncode else ""), flush=True)
    return entry


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--only", nargs="+", choices=RUNS, help="run these alone")
    ap.add_argument("--list", action="store_true")
    ap.add_argument("--page", action="store_true", help="run nothing")
    a = ap.parse_args()
    if a.list:
        print("\n".join(f"{n:10} {m:3} min  {args}{'   needs ' + need if need else ''}" for n, (args, m, need) in RUNS.items()))
        return
    store = RESULTS / "all.json"
    data = json.loads(store.read_text()) if store.exists() else {"printed": {}}
    failed = []
    for name in [] if a.page else a.only or [n for n in RUNS if (HERE / RUNS[n][0].split()[0]).exists()]:
        entry = run(name)
        failed += [name] * bool(entry["exit"])
        if not entry["exit"]:
            data["printed"][name] = entry
            store.write_text(json.dumps(data, indent=1) + "\n")  # gather() reads it
    data["rows"], data["date"] = gather(), str(date.today())
    store.write_text(json.dumps(data, indent=1) + "\n")
    (HERE / "README.md").write_text(page(data))
    print(f"{sum(r['reached'] is True for r in data['rows'])} of {sum(r['goal'] is not None for r in data['rows'])} goals reached; see benchmarks/README.md")
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
