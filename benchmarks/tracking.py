"""How much a tracked face trembles, lags and costs, against MTCNN in each frame; and how many cuts are found.

python benchmarks/tracking.py --data ../shared/data/video [--frames 75] [--out benchmarks/results/tracking.json]
python benchmarks/tracking.py --fast                      procedural clips only, seconds, writes nothing

MTCNN in each frame is `find_faces(frame, turns=False)`, the same call with the same settings that the tracker makes now and then.
Times are CPU times of one thread, which other work on the machine hardly touches, the ways taken in turn, frame by frame; means, because a
median would hide the rare expensive frame.
Distances and jitters are in eye distances of the frame's own landmarks; `fitted` takes `eye_distance`, which a turned head doesn't shrink.
Only numbers of the real clips are kept.
"""

import argparse
import json
import platform
import time
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from deepswap.core import write_json
from deepswap.data import video_frames
from deepswap.faces import align_photo, apply_affine, find_faces, invert_affine, refine_landmarks
from deepswap.tracking import FaceTracker, cut_distance, eye_distance, is_cut, jitter, known_clip, lag, smooth_landmarks, thumbnail

CLIPS = ("grid_A_bbaf2n.mpg", "grid_B_brbk7n.mpg", "grid_D_lbbc2a.mpg", "grid_F_lwbsza.mpg", "intel_male.gif", "intel_female.gif")
WAYS = {"every 5, no delay": dict(every=5), "every 5, delay 3": dict(every=5, delay=3), "every 10, delay 3": dict(every=10, delay=3)}


def timed(f, *args, **kwargs):
    start = time.process_time()
    out = f(*args, **kwargs)
    return out, time.process_time() - start


def between(p): return np.linalg.norm(p[:, 0] - p[:, 1], axis=-1)


def away(p, q, unit): return np.linalg.norm(p - q, axis=-1).mean(-1) / unit


def spread(x): return {"median": round(float(np.median(x)), 4), "p95": round(float(np.quantile(x, 0.95)), 4), "max": round(float(x.max()), 4)}


def runs(frames, ways=WAYS):
    "Every way over the same frames, in turn, so that all meet the same load: name -> (faces per frame, seconds, detections)."
    trackers = {n: FaceTracker(device="cpu", **o) for n, o in ways.items()}
    faces, seconds = {n: [] for n in ("MTCNN in each frame", *ways)}, dict.fromkeys(("MTCNN in each frame", *ways), 0.0)
    for frame in frames:
        got, s = timed(find_faces, frame, turns=False, device="cpu")
        faces["MTCNN in each frame"].append(got)
        seconds["MTCNN in each frame"] += s
        for n, t in trackers.items():
            got, s = timed(t.update, frame)
            seconds[n] += s
            if got is not None:
                faces[n].append(got)
    for n, t in trackers.items():
        faces[n] += t.flush()
    return faces, seconds, {n: t.detections for n, t in trackers.items()}


def clip(frames, exact=None):
    "One face per frame: time, tremble, lag, distance; `exact` where it is known."
    faces, seconds, detections = runs(frames)
    main = {n: np.stack([max(f, key=lambda x: x.size).landmarks if f else np.full((5, 2), np.nan) for f in fs]) for n, fs in faces.items()}
    each = main["MTCNN in each frame"]
    assert np.isfinite(each).all(), "a clip with one face in every frame is needed here"
    unit, fitted = between(each), eye_distance(each)
    calm = smooth_landmarks(each, delay=None) if exact is None else exact
    tremble = float(np.median(unit))
    out = {"frames": len(frames), "size": list(frames[0].size), "eye_distance_px": round(tremble, 1), "ways": {}}
    if exact is not None:
        out["jitter_exact"] = round(jitter(exact) / tremble, 5)
    for n, p in main.items():
        r = {"ms_per_frame": round(1e3 * seconds[n] / len(frames), 2), "faster": round(seconds["MTCNN in each frame"] / seconds[n], 2), "detections": detections.get(n, len(frames)),
             "jitter": round(jitter(p) / tremble, 5), "jitter_share": round(jitter(p) / jitter(each), 3), "lag_frames": round(lag(p, calm), 2), "found": round(float(np.isfinite(p[:, 0, 0]).mean()), 3)}
        boxes = np.stack([max(f, key=lambda x: x.size).box for f in faces[n]]).reshape(-1, 2, 2)
        r["box_jitter"] = round(jitter(boxes) / tremble, 5)
        if n != "MTCNN in each frame":
            r |= {"distance": spread(away(p, each, unit)), "distance_fitted": spread(away(p, each, fitted))}
        if exact is not None:
            r |= {"error": spread(away(p, exact, unit)), "jitter_of_error": round(jitter(p - exact) / tremble, 5)}
        out["ways"][n] = r
    return out, each


def questions(frames, each):
    "Fewer windows of the closer look, followed from frame to frame without detection or filter."
    out, unit = {}, between(each)
    for n in (1, 2, 3, 5, 10):
        p, points, seconds = each[0], [], 0.0
        for frame in frames:
            def ask(p=p, frame=frame):
                crop, m = align_photo(frame, p, 128)
                return apply_affine(invert_affine(m), refine_landmarks(crop, "cpu", n)[0][0]).numpy().astype(float)
            p, s = timed(ask)
            points.append(p)
            seconds += s
        out[2 * n] = {"ms_per_frame": round(1e3 * seconds / len(frames), 2), "distance": spread(away(np.stack(points), each, unit)),
                      "jitter_share": round(jitter(np.stack(points)) / jitter(each), 3)}
    return out


def trade_off(each, reference):
    "Jitter and lag of the filter and of the smoother over the acceleration they assume."
    out = {}
    for delay in (0, 1, 2, 3, 5, 10):
        out[delay] = []
        for process in (0.5, 1, 2, 5, 10, 20, 50):
            p = smooth_landmarks(each, delay=delay, process=process)
            out[delay].append({"process": process, "jitter_share": round(jitter(p) / jitter(each), 3), "lag_frames": round(lag(p, reference), 2)})
    return out


def lit(frame, gain): return Image.fromarray((np.asarray(frame, dtype=float) * gain).clip(0, 255).astype(np.uint8))


def cuts(clips):
    "Share of cuts found, of false alarms within shots, under flashes and fast motion: the new distance, and the naive one."
    def naive(a, b): return float(np.abs(thumbnail(a).astype(float) - thumbnail(b)).mean() / 255)
    within = [(a, b) for c in clips for a, b in zip(c, c[1:])]
    lights = [(a, lit(b, g)) for c in clips for a, b in list(zip(c, c[1:]))[::6] for g in (0.5, 1.5, 2.0)]
    across = [(a[-1], b[0]) for a in clips for b in clips if a is not b]
    groups = {"within a shot": within, "change of light": lights, "across a cut": across}
    out = {k: {"pairs": len(v), "called a cut": round(float(np.mean([is_cut(a, b) for a, b in v])), 4)} for k, v in groups.items()}
    for name, f in {"distance": cut_distance, "naive": naive}.items():
        values = {k: np.array([f(a, b) for a, b in v]) for k, v in groups.items()}
        least = np.quantile(values["across a cut"], 0.02)
        for k, v in values.items():
            out[k][name] = {"median": round(float(np.median(v)), 4), "p2": round(float(np.quantile(v, 0.02)), 4), "p98": round(float(np.quantile(v, 0.98)), 4),
                            "above the lowest 2 % of cuts": round(float((v >= least).mean()), 4)}
    return out


def walks(fast):
    "Procedural clips: somebody talks; somebody sways while talking; somebody rushes through the picture."
    n, t = 24 if fast else 100, torch.arange(24 if fast else 100) / 25
    return {"talking": known_clip(n), "swaying": known_clip(n, shift_x=0.25 * torch.sin(2 * np.pi * 0.4 * t), shift_y=-0.1 + 0.08 * torch.sin(2 * np.pi * 0.7 * t + 1)),
            "rushing": known_clip(n, shift_x=0.5 * torch.sin(2 * np.pi * 1.0 * t))}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, help="folder with real clips; without it, procedural ones alone")
    p.add_argument("--frames", type=int, default=75, help="of each real clip, at most")
    p.add_argument("--fast", action="store_true")
    p.add_argument("--out", type=Path, help="where to write the JSON")
    a = p.parse_args()
    torch.set_num_threads(1)
    known = walks(a.fast)
    find_faces(known["talking"][0][0])  # the networks are loaded
    out = {"threads": 1, "processor": platform.processor() or platform.machine(), "torch": torch.__version__, "defaults": FaceTracker().options, "known": {}, "real": {}, "questions": {}}
    for name, (frames, exact) in known.items():
        out["known"][name], each = clip(frames, exact)
        if name == "swaying":
            out["trade_off_known"] = trade_off(each, exact)
    if a.data:
        clips = {n: [im for _, im in islice(video_frames(a.data / n), a.frames)] for n in CLIPS}
        for name, frames in clips.items():
            out["real"][name], each = clip(frames)
            if name in (CLIPS[0], CLIPS[-1]):
                out["questions"][name] = questions(frames, each)
            if name == CLIPS[0]:
                out["trade_off_real"] = trade_off(each, smooth_landmarks(each, delay=None))
        every = [[im for _, im in islice(video_frames(f), a.frames)] for f in sorted(a.data.glob("*"))]
        out["cuts_real"] = cuts(every)
    people = [known_clip(12, seed=s, size=128)[0] for s in range(4 if a.fast else 12)]
    fast_motion = [known_clip(12, seed=s, size=128, shift_x=torch.linspace(-0.5, 0.5, 12))[0] for s in range(4 if a.fast else 12)]
    out["cuts_known"] = cuts(people)
    out["cuts_known"]["fast motion"] = {"called a cut": round(float(np.mean([is_cut(x, y) for c in fast_motion for x, y in zip(c, c[1:])])), 4)}
    print(json.dumps(out, indent=1))
    if a.out and not a.fast:
        write_json(out, a.out)


if __name__ == "__main__":
    main()
