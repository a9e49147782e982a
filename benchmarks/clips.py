"""Two clips, start to end: extract both faces, train on them, swap each clip into the other's face, and score what came out.

    python benchmarks/clips.py A.mpg B.mpg --work DIR [--minutes 3] [--size 64] [--method faceswap] [--options JSON]
    python benchmarks/clips.py --procedural --work DIR ...      two drawn people in moving scenes, whose exact swap is known frame by frame
    ... --target TURNED.gif                                     a third clip into which both faces are put as well
    ... --identity WEIGHTS.safetensors                          an identity encoder of chapter 40 (a MobileFaceNet), to ask whose face the result shows
    ... --name real64 --out benchmarks/results/clips.json       numbers only, entered under a name; pictures stay in the work folder

Scores, per direction: frames in which a face was swapped; frames per second of the whole way; jitter (second difference of landmarks found in
each frame anew, in per cent of the eye distance) of the target and of the result; cosine of identity to both people and the share of frames nearer
to the person asked for; PSNR outside the aligned square (label and mark are in the frames; the strip with the label is left out); and for drawn
people the PSNR to the exact swap inside the square, next to that of the untouched target, of the classical swap, and of every fifth frame swapped
as a photo (the clip matches colours to the target's over a shot; a photo takes over its light and leaves the complexion).
"""

import argparse
import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

import deepswap.faceswap_gan  # noqa: E402, F401  enters its method
from deepswap.autoencoder import FACE_STYLE  # noqa: E402
from deepswap.core import CANONICAL5, NoFaceError, read_image, to_pil, to_tensor, write_image, write_json  # noqa: E402
from deepswap.data import procedural_people, video_frames  # noqa: E402
from deepswap.extraction import extract_faces, read_extract  # noqa: E402
from deepswap.faces import apply_affine, invert_affine, similarity  # noqa: E402
from deepswap.identity import get_encoder  # noqa: E402
from deepswap.people import People, exact_swap, render  # noqa: E402
from deepswap.swap import get_swapper, swap_photo  # noqa: E402
from deepswap.tracking import eye_distance, jitter  # noqa: E402
from deepswap.train import LinearDecay, run  # noqa: E402
from deepswap.video import swap_video, write_clip  # noqa: E402

OPTIONS = '{"width": 16, "ndf": 16, "up": "shuffle", "recolour": 0.8, "sigmoid": "off", "adv": 0.05, "lr": 0.003, "lr_d": 0.001}'  # what a few minutes on a CPU allow
MOVING = ("yaw", "pitch", "roll", "shift_x", "shift_y", "smile", "mouth_open", "brow_raise", "gaze_x", "gaze_y", "blink")


class Deadline:
    "A callback that ends a run after some minutes of training."

    def __init__(self, minutes):
        self.seconds = 60 * minutes

    def on_step(self, trainer):
        if trainer.seconds > self.seconds:
            trainer.request_stop("time is up")


def frames_of(path):
    return [im for _, im in video_frames(path)]


# ---- drawn clips ----


def moving(person, frames, keys=8):
    "One procedural person in one room, whose pose and expression glide from one sampled scene to the next."
    people = procedural_people(f"person={person}", 1, keys)
    t = torch.linspace(0, keys - 1, frames)
    i, f = t.long().clamp(max=keys - 2), t - t.long().clamp(max=keys - 2)
    f = f * f * (3 - 2 * f)
    glide = lambda v: v[i] * (1 - f) + v[i + 1] * f
    still = people[torch.zeros(frames, dtype=torch.long)]
    scene = still.scene.replace(zoom=0.62, **{n: glide(getattr(people.scene, n)) for n in MOVING})
    return People(still.identity, still.style, scene, still.person)


def drawn_clips(work, two=(3, 4), frames=75, size=288):
    "Clips of two drawn people and of their exact swaps: {'a': path, 'b': path, 'ab': a's clip with b's face, 'ba': ...}."
    a, b = (moving(k, frames) for k in two)
    made = {}
    for name, people in {"a": a, "b": b, "ab": exact_swap(b, a, FACE_STYLE), "ba": exact_swap(a, b, FACE_STYLE)}.items():
        made[name] = work / f"drawn_{name}.mp4"
        if not made[name].exists():
            pictures = (to_pil(x) for i in range(0, frames, 8) for x in render(people[torch.arange(i, min(frames, i + 8))], size).image)
            write_clip(pictures, made[name], quality=10)
    return made


# ---- steps ----


def extract(clip, folder, size):
    "Every face of the clip's main person: near-duplicates are kept, since a clip of three seconds has no other pictures."
    start = time.perf_counter()
    if not (folder / "faces.csv").exists():
        report = extract_faces(clip, folder, size=size, duplicates=0, min_sharpness=0, min_size=32)
        print(f"{clip.name}: {report}", flush=True)
    return read_extract(folder), time.perf_counter() - start


def train(a, b, out, args):
    "A run of at most so many minutes; a finished one is used again."
    if not (out / "summary.json").exists():
        remove(out)
        trainer = run(args.method, (str(a), str(b)), args.size, args.batch, args.steps, out=out, options=json.loads(args.options), precision=args.precision,
                      channels_last=True, callbacks=[Deadline(args.minutes)], preview_every=args.preview, ema=0.99, progress=False,
                      schedules={name: LinearDecay(0.6, 0.1) for name in args.decay})
        write_json({"steps": trainer.step, "minutes": round(trainer.seconds / 60, 2), "images_per_second": trainer.history[-1]["images_per_s"],
                    "losses": {k: round(v, 4) for k, v in trainer.history[-1].items() if k in ("l1", "recon", "g_a", "g_b", "d_a", "d_b")}}, out / "summary.json")
    return json.loads((out / "summary.json").read_text())


def track(rows, frames):
    "Landmarks (T, 5, 2) by frame, NaN where no face was found."
    points = np.full((frames, 5, 2), np.nan)
    for row in rows:
        points[row["frame"] or 0] = row["landmarks"]
    return points


def trembling(points):
    "Jitter in per cent of the eye distance."
    seen = points[~np.isnan(points[:, 0, 0])]
    if not np.isfinite(points[2:] - 2 * points[1:-1] + points[:-2]).any():  # never three frames in a row
        return None
    return round(100 * jitter(points) / float(np.median(eye_distance(seen))), 3)


def square(points, shape):
    "True inside the aligned square of a face, (H, W)."
    lm = torch.as_tensor(points, dtype=torch.float32)
    corners = apply_affine(invert_affine(similarity(lm, CANONICAL5)), torch.tensor([[0.0, 0], [1, 0], [1, 1], [0, 1]])).numpy()
    (x0, y0), (x1, y1) = np.floor(corners.min(0)).astype(int), np.ceil(corners.max(0)).astype(int)
    inside = np.zeros(shape, bool)
    inside[max(0, y0):max(0, y1), max(0, x0):max(0, x1)] = True
    return inside


def decibels(x, y, where):
    "PSNR of two uint8 pictures where a mask is true."
    return 10 * np.log10(255**2 / max(np.square(np.asarray(x, float) - np.asarray(y, float))[where].mean(), 1e-6))


def outside(targets, results, points):
    "PSNR per frame of what must not change: outside the square, above the strip that holds the label."
    values = []
    for t, r, p in zip(targets, results, points):
        where = np.ones(t.size[::-1], bool)
        where[int(0.85 * t.height):] = False
        if not np.isnan(p[0, 0]):
            where &= ~square(p, where.shape)
        values.append(decibels(r, t, where))
    return round(float(np.mean(values)), 2)


def inside(pictures, exact, points):
    "Mean PSNR to the exact swap inside the square."
    values = [decibels(x, e, square(p, e.size[::-1])) for x, e, p in zip(pictures, exact, points) if not np.isnan(p[0, 0])]
    return round(float(np.mean(values)), 2)


def encoder(path):
    "Pictures of an extract -> identities of length 1."
    net = get_encoder(path, "cpu")

    def embed(rows):
        with torch.no_grad():
            return torch.cat([net.embed(to_tensor(read_image(r["crop"]))) for r in rows])
    return embed


def identity(embed, results, wanted, was):
    "Cosines to the mean identity of the person asked for and of the one who was there."
    mean = lambda rows: torch.nn.functional.normalize(embed(rows).mean(0), dim=0)
    w, o, x = mean(wanted), mean(was), embed(results)
    return {"to_wanted": round((x @ w).mean().item(), 3), "to_target": round((x @ o).mean().item(), 3),
            "share_nearer_to_wanted": round(((x @ w) > (x @ o)).float().mean().item(), 3), "of_the_two_people": round((w @ o).item(), 3)}


def contact_sheet(rows, path, n=8, height=150):
    "Rows of frames, n of each, for us to look at."
    picked = [[r[i] for i in np.linspace(0, len(r) - 1, n).astype(int)] for r in rows]
    tiles = [[im.resize((round(im.width * height / im.height), height)) for im in row] for row in picked]
    sheet = Image.new("RGB", (max(sum(t.width for t in row) for row in tiles), height * len(tiles)))
    for y, row in enumerate(tiles):
        x = 0
        for t in row:
            sheet.paste(t, (x, y * height))
            x += t.width
    write_image(sheet, path)


# ---- one direction ----


def swap_and_score(clip, work, name, swapper, to, people, was, wanted, embed, exact=None, source=None, rest=()):
    "Swap one clip, look for the faces in the result, score; what an earlier call has scored is not done again."
    out, done = work / f"{name}.mp4", work / f"{name}.json"
    if done.exists():
        return json.loads(done.read_text())
    for old in (out, work / f"{name}_faces"):
        remove(old)
    result = swap_video(source, clip, out, swapper, **({"to": to} if source is None else {}))
    targets, results = frames_of(clip), frames_of(out)
    points = track(people[was], len(targets))
    try:
        rows, _ = extract(out, work / f"{name}_faces", 128)
    except NoFaceError:  # the detector sees none in the result
        rows = []
    found = track(rows, len(results))
    scores = {"frames": result.frames, "swapped": result.swapped, "fps": round(result.fps, 2), "face_found_again": round(float((~np.isnan(found[:, 0, 0])).mean()), 3),
              "jitter_target_percent": trembling(points), "jitter_result_percent": trembling(found), "psnr_outside": outside(targets, results, points)}
    if embed and rows:
        scores["identity"] = identity(embed, rows, people[wanted], people[was])
    if exact:
        right = frames_of(exact)
        scores |= {"psnr_exact": inside(results, right, points), "psnr_exact_untouched": inside(targets, right, points)}
        if source is None:
            some = range(0, len(targets), 5)
            photos = [swap_photo(target=targets[i], swapper=swapper, to=to).image for i in some]
            scores["psnr_exact_photo_by_photo"] = inside(photos, [right[i] for i in some], points[some])
        rest = (*rest, right)
    contact_sheet([targets, results, *rest], work / f"sheet_{name}.jpg")
    write_json(scores, done)
    print(name, json.dumps(scores), result.note, flush=True)
    return scores


def remove(path):
    "A file or folder of an earlier run in the work folder."
    import shutil
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("clips", nargs="*", type=Path, help="two clips, one person in each")
    p.add_argument("--procedural", action="store_true", help="two drawn people instead")
    p.add_argument("--two", type=int, nargs=2, default=(3, 4), help="which drawn people")
    p.add_argument("--frames", type=int, default=75, help="of a drawn clip")
    p.add_argument("--work", type=Path, required=True, help="folder for everything that is made; what is there already is used again")
    p.add_argument("--target", type=Path, help="a third clip, into which both faces are put")
    p.add_argument("--identity", type=Path, help="an identity encoder, as for `get_encoder`")
    p.add_argument("--method", default="faceswap")
    p.add_argument("--options", default=OPTIONS, help="of the method, as JSON")
    p.add_argument("--size", type=int, default=64)
    p.add_argument("--batch", type=int, default=8)
    p.add_argument("--minutes", type=float, default=3, help="of training at most")
    p.add_argument("--steps", type=int, default=100_000)
    p.add_argument("--decay", nargs="*", default=(), metavar="OPTIMIZER", help="learning rates that fall to a tenth over the last 40 % of --steps: g d, or ae")
    p.add_argument("--preview", type=int, default=200)
    p.add_argument("--precision", default="auto")
    p.add_argument("--pair-only", action="store_true", help="leave out the classical swap, for comparison")
    p.add_argument("--name", default=None, help="entry in the results")
    p.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/clips.json")
    args = p.parse_args()
    if len(args.clips) != (0 if args.procedural else 2):
        p.error("give two clips, or --procedural and none")
    args.work.mkdir(parents=True, exist_ok=True)
    exact = drawn_clips(args.work, args.two, args.frames) if args.procedural else {}
    clips = dict(zip("ab", args.clips)) or {k: exact[k] for k in "ab"}
    embed = encoder(args.identity) if args.identity else None
    people, seconds = {}, {}
    for k, clip in clips.items():
        people[k], seconds[k] = extract(clip, args.work / f"faces_{k}", max(128, args.size))
    summary = train(args.work / "faces_a", args.work / "faces_b", args.work / f"run_{args.size}", args)
    report = {"method": args.method, "size": args.size, "options": json.loads(args.options), "precision": args.precision, "threads": torch.get_num_threads(),
              "faces": {k: len(v) for k, v in people.items()}, "training": summary, "swaps": {}}
    trained = get_swapper(args.work / f"run_{args.size}", "cpu")
    for was, to in (("a", "b"), ("b", "a")):
        other, photo = frames_of(clips[to]), people[to][len(people[to]) // 2]
        picture = other[photo["frame"] or 0]
        more = {"exact": exact.get(was + to), "rest": (other,)}
        report["swaps"][f"{was} with {to}'s face"] = swap_and_score(clips[was], args.work, f"{was}{to}_{args.size}", trained, to, people, was, to, embed, **more)
        if not args.pair_only:
            report["swaps"][f"{was} with {to}'s face, classical"] = swap_and_score(clips[was], args.work, f"{was}{to}_classical", "classical", to, people, was, to, embed, source=picture, **more)
    if args.target:
        people["t"], _ = extract(args.target, args.work / "faces_t", 128)
        for to in "ab":
            picture = frames_of(clips[to])[people[to][len(people[to]) // 2]["frame"] or 0]
            for name, swapper, source in ((f"t{to}_{args.size}", trained, None), (f"t{to}_classical", "classical", picture))[:2 - args.pair_only]:
                label = f"turned head with {to}'s face" + (", classical" if source else "")
                report["swaps"][label] = swap_and_score(args.target, args.work, name, swapper, to, people, "t", to, embed, source=source)
    results = json.loads(args.out.read_text()) if args.out.exists() else {}
    results[args.name or f"{'drawn' if args.procedural else 'real'}{args.size}"] = report
    write_json(results, args.out)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
