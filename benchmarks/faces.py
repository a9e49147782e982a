"""How fast are finding, aligning and the classical swap, and what do they need? Prints JSON.

Detection time by picture size, round trip error of the alignment by crop size, time and peak memory of a swap by crop size,
and how many faces of 1,000 procedural people are found.

    python benchmarks/faces.py [--people 1000] [--threads 1]
"""

import argparse
import json
import resource
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from PIL import Image  # noqa: E402

from deepswap.classical import ClassicalSwapper  # noqa: E402
from deepswap.core import to_pil, to_tensor  # noqa: E402
from deepswap.faces import align, find_faces, paste_back, refine_landmarks  # noqa: E402
from deepswap.people import render, sample_people  # noqa: E402


def median_time(f, n=5):
    times = []
    for _ in range(n):
        start = time.perf_counter()
        f()
        times.append(time.perf_counter() - start)
    return round(sorted(times)[n // 2], 4)


def peak_mb(): return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def scene(size):
    p = sample_people(1, "easy", seed=7)
    p.style, p.scene = p.style.replace(glasses=0.0), p.scene.replace(zoom=0.6)
    return render(p, size)


def detection():
    photo = to_pil(scene(512).image)
    find_faces(photo)
    out = {}
    for w, h in ((320, 240), (640, 480), (1280, 960), (4000, 3000)):
        im = Image.new("RGB", (w, h), (90, 110, 120))
        im.paste(photo.resize((h, h)), ((w - h) // 2, 0))
        assert len(find_faces(im)) == 1
        out[f"{w}x{h}"] = {"one_face_s": median_time(lambda im=im: find_faces(im), 3), "no_face_s": median_time(lambda w=w, h=h: find_faces(Image.new("RGB", (w, h), "grey")), 1)}
    return out


def round_trip():
    r = scene(512)
    out = {}
    for size in (64, 128, 256, 512):
        crop, m = align(r.image, r.landmarks[0], size)
        mask = torch.zeros(1, 1, size, size)
        mask[..., size // 4:-size // 8, size // 4:-size // 4] = 1
        where = paste_back(-torch.ones_like(r.image), mask.expand(-1, 3, -1, -1) * 2 - 1, mask, m)[:, :1] > 0
        e = (paste_back(r.image, crop, mask, m) - r.image).square().mean(1, keepdim=True)[where].mean()
        out[size] = {"psnr_db": round((10 * torch.log10(4 / e)).item(), 2), "align_s": median_time(lambda s=size: align(r.image, r.landmarks[0], s))}
    return out


def swaps():
    swapper, out = ClassicalSwapper(device="cpu"), {}
    for size in (64, 128, 256, 512):
        r = render(sample_people(2, "easy", seed=3), size)
        swapper(r.image[:1], r.image[1:])
        out[size] = {"swap_s": median_time(lambda r=r: swapper(r.image[:1], r.image[1:]), 3), "peak_memory_so_far_mb": peak_mb()}
    return out


def found(n):
    "Share of procedural people in whose 192 px picture an upright face is found, and exactly one, and the error of its points."
    out = {}
    for preset in ("easy", "hard"):
        hits, ones, errors = 0, 0, []
        for k in range(0, n, 50):
            r = render(sample_people(min(50, n - k), preset, seed=1000 + k), 192)
            for i in range(len(r)):
                faces = find_faces(to_pil(r.image[i]), turns=False)
                hits, ones = hits + bool(faces), ones + (len(faces) == 1)
                if faces:
                    errors.append((torch.tensor(faces[0].landmarks).float() - r.landmarks[i]).norm(dim=-1).mean())
        out[preset] = {"people": n, "found": round(hits / n, 4), "exactly_one_face": round(ones / n, 4), "median_point_error_of_192_px": round(torch.stack(errors).median().item(), 2)}
    return out


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--people", type=int, default=1000)
    p.add_argument("--threads", type=int, default=1, help="torch threads; MTCNN suffers from contention, so 1 is a fair default")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    crops = to_tensor([to_pil(x) for x in render(sample_people(8, "easy", seed=1), 128).image])
    out = {"threads": a.threads, "memory_after_import_mb": peak_mb(), "swap": swaps()}
    out |= {"refine_8_crops_s": median_time(lambda: refine_landmarks(crops)), "round_trip": round_trip(), "detection": detection(), "found": found(a.people)}
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
