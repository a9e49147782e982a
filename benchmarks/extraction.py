"""What extraction does with real photos and clips: who is told apart, what is kept, how fast, with how much memory. Prints JSON.

Appearance: AUC of same against different people, on pairs of photos (neutral and smiling) and on frames of clips.
Masks: IoU with the exact mask of procedural people by yaw is measured in the chapter; here only what needs real pictures.

    python benchmarks/extraction.py --data FOLDER [--out results/extraction.json] [--only clips]

FOLDER holds london/{neutral,smiling}/NNN.jpg, video/ and stills/.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from deepswap.core import read_image, write_json  # noqa: E402
from deepswap.data import video_frames  # noqa: E402
from deepswap.extraction import all_pairs, appearance, auc, extract_faces, group_faces  # noqa: E402
from deepswap.faces import align_photo, find_faces  # noqa: E402


def faces_of(named):
    "Largest face of each picture: crops and who it is."
    crops, who = [], []
    for person, image in named:
        if found := find_faces(image, turns=False):
            crops.append(align_photo(image, found[0].landmarks, 128)[0])
            who.append(person)
    return torch.cat(crops), torch.tensor(who)


def told_apart(named):
    crops, who = faces_of(named)
    looks = appearance(crops)
    same, different = all_pairs(looks, who)
    groups = group_faces(looks, range(len(looks)))
    joined, one = groups[:, None] == groups, who[:, None] == who
    return {"auc": round(auc(same, different), 4), "same": len(same), "different": len(different), "people": len(who.unique()), "groups": len(groups.unique()),
            "pairs_wrongly_joined": round((joined & ~one).sum().item() / (~one).sum().item(), 4), "pairs_missed": round((one & ~joined).sum().item() / one.sum().item(), 4),
            "same_lowest_5_percent": round(same.quantile(0.05).item(), 3), "different_highest_1_percent": round(different.quantile(0.99).item(), 3)}


def photos(folder):
    for f in sorted(folder.glob("*/*.jpg")):
        yield int(f.stem), read_image(f)


def speakers(folder):
    "Each 15th frame of clips whose names say who speaks."
    for f in sorted(folder.glob("grid_*.mpg")):
        for _, image in video_frames(f, 15):
            yield ord(f.stem.split("_")[1]), image


def extraction(source, name, **settings):
    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        r = extract_faces(source, Path(out) / "out", **settings)
        seconds = time.perf_counter() - start
    r.source = name
    return {"report": str(r), "seen": r.seen, "found": r.found, "kept": r.kept, "dropped": r.dropped, "people": len(r.groups), "notes": len(r.notes), "seconds_per_picture": round(seconds / r.seen, 3)}


def memory(clip, times):
    "Peak memory of an extraction from a clip that is played so many times, in a process of its own."
    code = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
import resource, tempfile, torch
from pathlib import Path
torch.set_num_threads(1)
from deepswap import extraction
frames = list(extraction.pictures_of({str(clip)!r}))[::3]
extraction.pictures_of = lambda source, every, note: (extraction.Picture(f"{{k}}_{{f.name}}", f.image, f.clip, k) for k in range({times}) for f in frames)
out = tempfile.mkdtemp()
r = extraction.extract_faces({str(clip)!r}, Path(out) / "out", report=True)
print(r.seen, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [int(v) for v in run.stdout.split()[-2:]]


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--out", type=Path, help="JSON; parts that are not measured now stay")
    p.add_argument("--only", nargs="+", default=["appearance", "clips", "memory"], choices=["appearance", "clips", "memory"])
    a = p.parse_args()
    torch.set_num_threads(1)
    video, head = a.data / "video", a.data / "video" / "grid_A_bbaf2n.mpg"
    clips = {"talking head": (head, {}), "two people in a picture": (video / "intel_female-and-male.gif", {}),
             "turned head": (video / "intel_female.gif", {}), "stills, everybody": (a.data / "stills", {"person": "all"})}
    result = json.loads(a.out.read_text()) if a.out and a.out.exists() else {}
    if "appearance" in a.only:
        result["appearance"] = {"80 people, neutral and smiling": told_apart(photos(a.data / "london")), "8 clips of talking people": told_apart(speakers(video))}
    if "clips" in a.only:
        result["clips"] = {name: extraction(path, name, **settings) for name, (path, settings) in clips.items()}
    if "memory" in a.only:
        short, long = memory(head, 1), memory(head, 16)
        result["memory"] = {"short_frames": short[0], "short_mb": short[1], "long_frames": long[0], "long_mb": long[1]}
    print(json.dumps(result, indent=1))
    if a.out:
        write_json(result, a.out)
