"""How much the invisible mark survives, how often it accuses the innocent, and what stamping costs. Prints JSON.

python benchmarks/provenance.py [--pictures 200] [--unmarked 300] [--out FILE]
Half of the pictures are computed portraits of 256 pixels, half of 512; every damage is done to every picture.

python benchmarks/provenance.py --video [--clips 5] [--out benchmarks/results/provenance_video.json]
python benchmarks/provenance.py --video --real FOLDER [--out benchmarks/results/provenance_video.json]
python benchmarks/provenance.py --cost [--out benchmarks/results/provenance_video.json]
Clips instead: computed talkers, or every .mpg of FOLDER; each goes through H.264 at several strengths and sizes. And what it costs:
frames a second, and the memory that signing takes. OUT keeps what the other calls wrote.
"""

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from deepswap.core import to_pil
from deepswap.people import People, render, sample_people, scene_path
from deepswap.provenance import FrameMark, clip_frames, damage, detect_mark, detect_mark_frames, embed_mark, inspect, label_frames, mark_threshold, pack_payload, stamp

DAMAGES = [("none", ()), ("jpeg 95", (("jpeg", 95),)), ("jpeg 75", (("jpeg", 75),)), ("jpeg 50", (("jpeg", 50),)),
           ("resize 0.5", (("resize", 0.5),)), ("resize 0.75", (("resize", 0.75),)), ("resize 1.5", (("resize", 1.5),)),
           ("crop 5 %", (("crop", 0.05),)), ("crop 10 %", (("crop", 0.1),)), ("crop 20 %", (("crop", 0.2),)),
           ("blur sigma 1", (("blur", 1),)), ("noise sigma 5", (("noise", 5),)), ("mirror", (("mirror", 0),)),
           ("crop 10 %, resize 0.75, jpeg 75", (("crop", 0.1), ("resize", 0.75), ("jpeg", 75))), ("turn 2 degrees", (("turn", 2),))]


def portraits(n, size, seed):
    "n computed people, a few at a time."
    people = sample_people(n, preset="hard", seed=seed)
    for i in range(0, n, 16):
        for x in render(people[i:i + 16], size).image: yield to_pil(x)


def psnr(a, b):
    d = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    return 20 * math.log10(255 / math.sqrt((d * d).mean()))


LOAD = pack_payload("faceswap", date(2026, 1, 1))
COUNTS = (1, 4, 24)
CASES = {f"crf {crf}, {size} size": (crf, scale, slice(None)) for size, scale in (("full", 1.0), ("half", 0.5)) for crf in (18, 23, 28)}
CASES["crf 23, last second only"] = (23, 1.0, slice(-25, None))


def talker(n, size, seed):
    "n frames of a computed person who talks and looks about: uint8 (n, size, size, 3)."
    one = sample_people(1, preset="hard" if seed % 2 else "easy", seed=seed)
    people = People(one.identity.repeat(n), one.style.repeat(n), scene_path(n, seed, base=one.scene))
    return np.stack([np.asarray(to_pil(x)) for k in range(0, n, 25) for x in render(people[k:k + 25], size).image])


def write(path, frames, crf, scale):
    "An H.264 video as libx264 makes it by default."
    import av
    with av.open(str(path), "w") as file:
        v = file.add_stream("libx264", rate=25, options={"crf": str(crf)})
        v.width, v.height = (round(n * scale) // 2 * 2 for n in (frames.shape[2], frames.shape[1]))
        for f in frames: file.mux(v.encode(av.VideoFrame.from_ndarray(f, format="rgb24").reformat(v.width, v.height, "yuv420p", interpolation="BICUBIC")))
        file.mux(v.encode(None))
    return path


def survival(clips, folder):
    "For each case: share of clips found and read with the default number of frames, and the smallest number that finds all."
    out, decibels = {}, []
    marked = []
    for frames in clips:
        marked.append(FrameMark(*frames.shape[1:3], LOAD).embed(frames))
        decibels += [psnr(a, b) for a, b in zip(frames[::10], marked[-1][::10])]
    for name, (crf, scale, part) in CASES.items():
        rows = [[detect_mark_frames(clip_frames(write(folder / "m.mp4", m[part], crf, scale), k)) for k in COUNTS] for m in marked]
        enough = [k for i, k in enumerate(COUNTS) if all(r[j].found for r in rows for j in range(i, len(COUNTS)))]
        out[name] = {"found": float(np.mean([r[-1].found for r in rows])), "read": float(np.mean([r[-1].found and r[-1].payload == LOAD for r in rows])),
                     "lowest score": round(min(r[-1].score for r in rows), 2), "frames needed": min(enough, default=None)}
        print(name, out[name], file=sys.stderr, flush=True)
    return out, decibels


def seconds(f, times=3):
    "The best of a few runs."
    best = math.inf
    for _ in range(times):
        start = time.perf_counter()
        f()
        best = min(best, time.perf_counter() - start)
    return best


def speed():
    "Frames a second of embedding, on one core, listening included as often as it is done by default."
    out = {}
    for h, w in ((288, 360), (720, 1280)):
        frames = np.repeat(np.asarray(Image.fromarray(talker(1, 256, 3)[0]).resize((w, h)))[None], 8, 0)
        mark = FrameMark(h, w, LOAD)
        listen, quick = seconds(lambda: mark.listen(frames[0])), seconds(lambda: mark.embed(frames), 9) / 8
        slow = seconds(lambda: embed_mark(frames[0], LOAD))
        out[f"{w} x {h}"] = {"FrameMark": round(1 / (quick + listen / mark.every), 1), "embed_mark": round(1 / slow, 1), "ratio": round(slow / (quick + listen / mark.every), 1),
                             "label_frames, ms": round(1000 * seconds(lambda: label_frames(frames), 9) / 8, 2)}
    return out


def signing(folder, megabytes=800):
    "How much more memory a long file takes to sign and to check than a short one, each in a process of its own."
    short = write(folder / "short.mp4", talker(25, 64, 0), 23, 1.0)
    long = folder / "long.mp4"
    with open(long, "wb") as f:
        f.write(short.read_bytes())
        f.write((megabytes * 2**20).to_bytes(4, "big") + b"mdat")
        f.truncate(short.stat().st_size + megabytes * 2**20)
    def peak(path):
        code = "import sys; from deepswap.provenance import sign_file, read_credentials; f = sign_file(sys.argv[1], sys.argv[1] + '.mp4'); assert read_credentials(f).ours; print(*[x.split()[1] for x in open('/proc/self/status') if x.startswith('VmHWM')])"
        start = time.perf_counter()
        said = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
        return int(said.stdout) / 1024, time.perf_counter() - start
    (low, _), (high, took) = peak(short), peak(long)
    return {"file MB": megabytes, "more memory MB": round(high - low), "seconds": round(took, 1)}


def video(a):
    "Everything about clips; one group of clips per call, so that a call takes minutes."
    with tempfile.TemporaryDirectory() as name:
        os.environ["DEEPSWAP_CACHE"], folder = name, Path(name)
        if a.real:
            files = sorted(Path(a.real).glob("*.mpg"))
            group, clips, more = f"{len(files)} real, 360 x 288", [np.stack([np.asarray(i) for i in clip_frames(f, 75)]) for f in files], []
            result = {}
        else:
            group, clips = f"{a.clips} computed, 288 px", [talker(75, 288, s) for s in range(a.clips)]
            more = [talker(8, 192, 1000 + s) for s in range(24)]
            result = {"threshold": round(mark_threshold(), 3)}
        survived, d = survival(clips, folder)
        null = [inspect(write(folder / "n.mp4", c, crf, 1.0)).mark for c in clips for crf in (18, 28)] + [inspect(write(folder / "n.mp4", c, 23, 1.0)).mark for c in more]
        result |= {"survival": {group: survived}, "psnr_db": {group: {"lowest": round(min(d), 2), "mean": round(float(np.mean(d)), 2)}},
                   "unmarked": {group: {"clips": len(null), "false alarms": sum(m.found for m in null), "highest score": round(max(m.score for m in null), 2)}}}
    return result


def cost():
    "What it takes."
    with tempfile.TemporaryDirectory() as name:
        os.environ["DEEPSWAP_CACHE"] = name
        return {"speed, frames a second": speed(), "signing": signing(Path(name))}


def merged(old, new):
    "A table with another's entries added, at every level."
    return {**old, **{k: merged(old[k], v) if isinstance(v, dict) and isinstance(old.get(k), dict) else v for k, v in new.items()}}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--unmarked", type=int, default=300)
    parser.add_argument("--video", action="store_true")
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--clips", type=int, default=5)
    parser.add_argument("--real")
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    torch.set_num_threads(1)
    result = cost() if a.cost else video(a) if a.video else pictures(a)
    result["machine"] = {"processor": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    text = json.dumps(merged(json.loads(a.out.read_text()), result) if a.out and a.out.exists() else result, indent=1)
    print(text)
    if a.out: a.out.write_text(text + "\n")


def pictures(a):
    "Everything about single pictures."
    load = pack_payload("classical", date(2026, 1, 1))
    rows = {name: {256: [], 512: []} for name, _ in DAMAGES}
    decibels, seconds = {256: [], 512: []}, {"embed": [], "detect": []}
    for size in (256, 512):
        for i, original in enumerate(portraits(a.pictures // 2, size, seed=1000 + size)):
            start = time.perf_counter()
            marked = embed_mark(original, load)
            seconds["embed"].append(time.perf_counter() - start)
            decibels[size].append(psnr(original, marked))
            for name, steps in DAMAGES:
                image = marked
                for kind, amount in steps: image = damage(image, kind, amount, i)
                start = time.perf_counter()
                r = detect_mark(image)
                seconds["detect"].append(time.perf_counter() - start)
                rows[name][size].append((r.found, r.found and r.payload == load, r.score))
    null = [detect_mark(i).score for size in (256, 512) for i in portraits(a.unmarked // 2, size, seed=5000 + size)]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DEEPSWAP_CACHE"] = folder
        times = {"stamp": [], "inspect": []}
        for i, image in enumerate(portraits(12, 512, seed=1)):
            start = time.perf_counter()
            out = stamp(image, Path(folder) / f"{i}.jpg")
            times["stamp"].append(time.perf_counter() - start)
            start = time.perf_counter()
            assert inspect(out).ours
            times["inspect"].append(time.perf_counter() - start)
    survived = {name: {f"{size} px": {"pictures": len(r), "found": round(np.mean([x[0] for x in r]), 4), "all bits read": round(np.mean([x[1] for x in r]), 4),
                                      "lowest score": round(min(x[2] for x in r), 2)} for size, r in sizes.items()} for name, sizes in rows.items()}
    return {
        "survival": survived,
        "psnr_db": {f"{size} px": {"lowest": round(min(d), 2), "mean": round(np.mean(d), 2)} for size, d in decibels.items()},
        "unmarked": {"pictures": len(null), "false alarms": sum(z >= mark_threshold() for z in null), "highest score": round(max(null), 2), "mean score": round(np.mean(null), 2)},
        "threshold": round(mark_threshold(), 3), "false alarm bound": 1e-6,
        "milliseconds": {k: round(1000 * float(np.median(v)), 1) for k, v in {**seconds, **{f"{k} a 512 px file": v[2:] for k, v in times.items()}}.items()},
    }


if __name__ == "__main__":
    main()
