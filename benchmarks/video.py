"""How fast is a video swapped, and does its memory grow with its length? Writes benchmarks/results/video.json.

Each run is a fresh child process, so that its peak memory (VmHWM) is its own. The clip is drawn by this script: a procedural person
who talks, 360 x 288, 25 frames a second, with a sine tone; longer clips play it forwards and backwards.

    python benchmarks/video.py [--runs naive classical faceswap] [--frames 75 1500] [--out benchmarks/results/video.json]

`naive` is the baseline: a loop that looks for faces in every frame, swaps one crop at a time with the classical swap and marks every
frame like a photo. `classical` and `faceswap` go through `swap_video`; the faceswap network is not trained, which makes ugly faces at
the speed of good ones. `cpu_ms` is processor time per frame, of all threads: it tells what the machine could do were it not busy with other
work, as `load_before` says it was. Runs that are already in the file are kept unless they are asked for again.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

SIZE = 128


def actor(n, width=360, height=288, person=0):
    "n frames of somebody who talks, forwards and backwards, as pictures."
    import torch

    from deepswap.core import to_pil
    from deepswap.people import People, render, sample_people, scene_path
    p = sample_people(2, "easy", seed=11)
    p.style = p.style.replace(glasses=0.0, fringe=0.0, hat=0.0)
    k = max(2, min(n, 75))
    people = People(p.identity[person].repeat(k), p.style[person].repeat(k), scene_path(k, 3, p.scene[0]).replace(zoom=0.6), torch.zeros(k))
    top = (width - height) // 2
    images = [im for part in torch.arange(k).split(25) for im in to_pil(render(people[part], width).image[:, :, top:top + height])]
    for i in range(n):
        turn, at = divmod(i, k)
        yield images[at if turn % 2 == 0 else k - 1 - at]


def naive(source, target, out):
    "The baseline: a photo at a time, in one thread. Returns frames and frames with a face."
    from deepswap.classical import ClassicalSwapper
    from deepswap.data import video_frames
    from deepswap.faces import find_faces
    from deepswap.provenance import add_label, embed_mark
    from deepswap.swap import open_photo, swap_face
    from deepswap.video import write_clip
    photo, swapper, count = open_photo(source), ClassicalSwapper(device="cpu"), [0, 0]

    def frames():
        for _, image in video_frames(target):
            faces = find_faces(image, device="cpu")
            if faces:
                image, _, _ = swap_face(image, faces[0], photo.image, photo.faces[0], swapper, SIZE)
            count[0] += 1
            count[1] += bool(faces)
            yield embed_mark(add_label(image))
    write_clip(frames(), out, tone=0)
    return count


def peak_mb():
    "The most memory that this process has held so far."
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) // 1024


def flicker_of(source, clip):
    "Flicker on a real clip: the naive loop against `swap_video`, both without label, mark and compression worth mentioning."
    from deepswap.classical import ClassicalSwapper
    from deepswap.faces import find_faces
    from deepswap.swap import open_photo, swap_face
    from deepswap.tracking import FaceTracker
    from deepswap.video import Clip, flicker, swap_video
    photo, swapper = open_photo(source), ClassicalSwapper(device="cpu")
    targets = [f.image for f in Clip(clip).frames()]
    points = [faces[0].landmarks for _, faces in FaceTracker(every=5, delay=3).track(targets)]
    loop = [swap_face(t, find_faces(t)[0], photo.image, photo.faces[0], swapper, SIZE)[0] for t in targets]
    with tempfile.TemporaryDirectory() as folder:
        r = swap_video(photo, clip, Path(folder) / "out.mp4", size=SIZE, label=False, mark=False, quality=4)
        ours = [f.image for f in Clip(r.path).frames()]
    values = {"naive": flicker(loop, targets, points), "video": flicker(ours, targets, points)}
    return {k: {"mean": round(v.mean().item(), 3), "worst": round(v.max().item(), 3), "frames": len(targets), "clip": Path(clip).name} for k, v in values.items()}


def child(run, source, target, out):
    "One run in this process; prints one line of JSON."
    memory, resumed = [], 0

    def watch(fraction, text):
        done = text.split(" ")[0]
        if done.isdigit() and int(done) % 100 == 0:
            memory.append([int(done), peak_mb()])
    start, used, stages = time.perf_counter(), time.process_time(), {}
    if run == "naive":
        frames, swapped = naive(source, target, out)
    else:
        from deepswap.video import swap_video
        swapper, size, given = "classical", SIZE, source
        if run == "faceswap":
            import torch

            from deepswap.autoencoder import PairSwapper
            from deepswap.faceswap_gan import FaceSwapGAN
            torch.manual_seed(0)
            swapper, size, given = PairSwapper(FaceSwapGAN.for_size(SIZE), "b"), None, None
        start, used = time.perf_counter(), time.process_time()
        r = swap_video(given, target, out, swapper, size=size, device="cpu", progress=watch)
        frames, swapped, resumed, stages = r.frames - r.resumed, r.swapped, r.resumed, {k: round(v, 2) for k, v in r.stages.items()}
    seconds, used = time.perf_counter() - start, time.process_time() - used
    print(json.dumps(dict(frames=frames + resumed, swapped=swapped, resumed=resumed, seconds=round(seconds, 2), fps=round(frames / seconds, 2), cpu_ms=round(1000 * used / frames, 1), peak_mb=peak_mb(), memory=memory, stages=stages)))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--runs", nargs="*", default=["naive", "classical", "faceswap"])
    p.add_argument("--frames", nargs="*", type=int, default=[75, 1500])
    p.add_argument("--threads", type=int, default=1, help="OpenMP threads of each stage")
    p.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/video.json")
    p.add_argument("--flicker", nargs=2, metavar=("PHOTO", "CLIP"), help="measure flicker on a real clip instead")
    p.add_argument("--work", type=Path, help="folder for the clips, which stays: a run that was killed then goes on; its speed and memory are those of the last process")
    p.add_argument("--child", nargs=4, metavar=("RUN", "SOURCE", "TARGET", "OUT"), help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.child:
        return child(*a.child)
    import torch

    from deepswap.core import write_image, write_json
    from deepswap.video import write_clip
    result = json.loads(a.out.read_text()) if a.out.exists() else {"clip": "360 x 288, 25 frames a second, one procedural face, with sound", "crop": SIZE, "runs": {}}
    if a.flicker:
        result["flicker"] = flicker_of(*a.flicker)
        print(result["flicker"])
        return write_json(result, a.out)
    with tempfile.TemporaryDirectory() as folder:
        folder = a.work or Path(folder)
        folder.mkdir(exist_ok=True)
        if not (folder / "source.png").exists():
            write_image(next(actor(1, person=1)), folder / "source.png")
        for n in a.frames:
            target = folder / f"{n}.mp4"
            if not target.exists():
                write_clip(actor(n), target)
            for run in a.runs:
                if run == "naive" and n > 200:
                    continue
                env = {**os.environ, "OMP_NUM_THREADS": str(a.threads)}
                words = [sys.executable, __file__, "--child", run, str(folder / "source.png"), str(target), str(folder / f"{run}_{n}.mp4")]
                load = os.getloadavg()[0]
                said = subprocess.run(words, capture_output=True, text=True, env=env)
                if said.returncode:
                    sys.exit(said.stderr[-3000:])
                result["runs"][f"{run} {n}"] = {**json.loads(said.stdout.splitlines()[-1]), "threads": a.threads, "load_before": round(load, 1)}
                print(f"{run} {n}", result["runs"][f"{run} {n}"], flush=True)
                result["machine"] = {"cores": len(os.sched_getaffinity(0)), "torch": torch.__version__}
                write_json(result, a.out)


if __name__ == "__main__":
    main()
