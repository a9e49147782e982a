"""When does the shipped network know a face? Makes what `auto` asks, and checks that `auto` takes the better picture.

A network that is shown a face unlike all it learned from paints nonsense. `auto` asks its attribute encoder: what a usual face can look like to it is
learned from drawn people (`Acquaintance.learn`), and what lies in none of the usual directions is strange. The limit lies where as few faces as possible
are on the wrong side, photographs counted three times: drawn people, easy and hard, whom nobody trained on and who came through the photo's door, against photographs, where they are
at hand (portraits of the London set, generated portraits). The plain idea, to let the network swap a face with itself and to measure what comes back,
is measured beside it. For drawn people the right answer is known too, so both swaps are compared with it at the resolution of the photo.

    python benchmarks/known.py --record             writes benchmarks/results/known.json and deepswap/weights/deepswap-familiar-v1.safetensors;
                                                    about six minutes on one core, and again when the network has changed
    python benchmarks/known.py --n 4 --fit 50       a small run, printed
    --only faces | swaps                            one part of the record; --crops FILE keeps the faces that were cut out for the next time
"""

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from deepswap.autoencoder import render_aligned, resized  # noqa: E402
from deepswap.classical import ClassicalSwapper  # noqa: E402
from deepswap.core import CANONICAL5, read_image, to_pil, write_json, write_text  # noqa: E402
from deepswap.cyclegan import psnr  # noqa: E402
from deepswap.faces import align_photo, face_mask, find_faces  # noqa: E402
from deepswap.people import exact_swap, render, sample_people  # noqa: E402
from deepswap.swap import FAMILIAR, WEIGHTS, Acquaintance, glance, open_shipped, save_acquaintance, seal, self_swap, swap_face  # noqa: E402
from deepswap.train import read_tensors, write_tensors  # noqa: E402
from deepswap.yardsticks import ssim  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "known.json"
SIDE = 320  # of a drawn photo
CARD = """# {name}

What the shipped FaceShifter is used to: mean, spread and {directions} principal directions of what its attribute encoder sees in faces (its two coarsest maps), and the limit above which a face counts as strange. `deepswap.swap.AutoSwapper` asks it before it uses the network. It knows nobody and paints nothing.

| | |
|---|---|
| belongs to | deepswap-faceshifter-v1, first layer {network}; for other weights it is refused, and `auto` then takes the classical swap |
| made from | {fit} procedural people, half of them easy and half hard, whom the network was not trained on; the limit from {faces} further faces: drawn ones, portraits of the Face Research Lab London set (CC BY 4.0, the people signed that altered forms may be shown) and generated portraits (CC0) |
| file | safetensors, {bytes:,} bytes, SHA-256 `{sha}` |
| made by | `python benchmarks/known.py --record`, which also measured these numbers (`benchmarks/results/known.json`) |
| drawn faces that count as strange | {drawn:.1%} |
| photographs that count as known | {photographs:.1%} |
| pairs of a drawn face and a photograph in the right order | {separates:.1%}; by the dB of the face swapped with itself {plain:.1%} |
| limits | measured on upright portraits of good quality; a photograph in poor light may pass for a drawing, and a drawing with a rare hat for a photograph. It says nothing about who may be swapped. |
| licence | Apache-2.0, as the rest of the repository |
"""
LONDON, GENERATED = "London portraits", "generated portraits"


def drawn(n, preset, seed):
    "2 n drawn people as photos: sources, targets, exact swaps."
    people = sample_people(2 * n, preset, seed=seed)
    people.scene = people.scene.replace(zoom=0.65)
    source, target = people[torch.arange(n)], people[torch.arange(n, 2 * n)]
    return [[to_pil(x) for x in render(p, SIDE).image] for p in (source, target, exact_swap(source, target))]


def faces_of(images):
    "(picture, largest face), or None."
    looked = ((image, find_faces(image, device="cpu")) for image in images)
    return [(image, faces[0]) if faces else None for image, faces in looked]


def crops_of(images, size):
    return torch.cat([align_photo(image, face.landmarks, size)[0] for image, face in filter(None, faces_of(images))])


def photographs(shared, n):
    "{name: paths}, empty where they are not at hand."
    data, some = shared / "data", lambda files: files[:: max(1, len(files) // n)][:n]
    if not data.is_dir():
        return {}
    return {LONDON: some(sorted((data / "london/neutral").glob("*.jpg"))), GENERATED: some(sorted((data / "faker256").glob("*/*.jpg")))}


def all_crops(n, shared, size, keep, seed=930_001):
    "{name: (B, 3, size, size)}: drawn people through the photo's door, and photographs."
    if keep and keep.exists():
        return read_tensors(keep)[0]
    out = {f"drawn, {preset}": crops_of(sum(drawn(n, preset, seed + k)[:2], []), size) for k, preset in enumerate(("easy", "hard"))}
    out |= {name: crops_of((read_image(p) for p in paths), size) for name, paths in photographs(shared, n).items()}
    if keep:
        write_tensors(keep, out, {"kind": "faces"})
    return out


def given_back(network, crops):
    "The plain idea: dB of a face that is swapped with itself, inside the face."
    where = face_mask(CANONICAL5 * network.size, network.size)
    small = resized(crops, network.size)
    own = self_swap(network, small)
    return torch.stack([psnr(own[i:i + 1], small[i:i + 1], where) for i in range(len(small))])


def limit_between(known, unknown):
    "The limit with the fewest on the wrong side, a photograph counted three times: a drawing laid over it is worse than a drawing swapped the classical way. In the middle of the gap it lies in."
    at = torch.cat([known, unknown]).sort().values
    middles = (at[1:] + at[:-1]) / 2
    wrong = torch.stack([(known > m).float().mean() + 3 * (unknown <= m).float().mean() for m in middles])
    best = middles[wrong == wrong.min()]
    return float(best[len(best) // 2])


def auc(known, unknown):
    return round(float((known[:, None] < unknown[None]).float().mean()), 4)


def spread(x):
    return {"n": len(x)} | {f"{100 * q:g} %": round(float(x.quantile(q)), 3) for q in (.05, .25, .5, .75, .95)}


def faces(network, crops, fit, seed=905_001):
    "What is usual, the limit, and who is on which side of it."
    usual = torch.cat([glance(network, render_aligned(sample_people(fit, preset, seed + k), network.size)[0].image) for k, preset in enumerate(("easy", "hard"))])
    known, split = Acquaintance.learn(usual), lambda values: [torch.cat([v for k, v in values.items() if k.startswith("drawn") == d]) for d in (True, False)]
    strange = {k: known.strangeness(torch.cat([glance(network, y) for y in x.split(32)])) for k, x in crops.items()}
    plain = {k: -torch.cat([given_back(network, y) for y in x.split(32)]) for k, x in crops.items()}
    known.limit = round(limit_between(*split(strange)), 3)
    strange = {k: v / known.limit for k, v in strange.items()}
    inside, outside = split(strange)
    return known, {
        "fit": 2 * fit, "limit": known.limit, "strangeness": {k: spread(v) for k, v in strange.items()}, "given back, dB": {k: spread(-v) for k, v in plain.items()},
        "separates": {"strangeness": auc(*split(strange)), "given back": auc(*split(plain))},
        "drawn and not known": round(float((inside > 1).float().mean()), 4), "photographs and known": round(float((outside <= 1).float().mean()), 4)}


def card(network, found, known, file):
    "What the file is, for people."
    return CARD.format(name=FAMILIAR, bytes=file.stat().st_size, sha=hashlib.sha256(file.read_bytes()).hexdigest(), directions=len(known.basis), network=network, fit=found["fit"], faces=sum(s["n"] for s in found["strangeness"].values()), drawn=found["drawn and not known"],
                       photographs=found["photographs and known"], separates=found["separates"]["strangeness"], plain=found["separates"]["given back"])


def swaps(network, n, seed=950_001):
    "dB and SSIM to the exact swap in a crop of the photo's own resolution around the face."
    out, other = {}, ClassicalSwapper(device="cpu")
    for k, preset in enumerate(("easy", "hard")):
        sources, targets, exact = drawn(n, preset, seed + k)
        rows = []
        for s, t, e in zip(faces_of(sources), faces_of(targets), exact):
            if s is None or t is None:
                continue
            made = [t[0]] + [swap_face(t[0], t[1], s[0], s[1], w, size, "cpu")[0] for w, size in ((network, None), (network, network.size), (other, None))]
            view = lambda image: align_photo(image, t[1].landmarks, 160)[0]
            rows.append([[float(psnr(view(image), view(e))), float(ssim(view(image), view(e)))] for image in made])
        rows = torch.tensor(rows)  # (pairs, methods, measures)
        out[preset] = {"pairs": len(rows), "network nearer than classical": round(float((rows[:, 1, 0] > rows[:, 3, 0]).float().mean()), 3), "nearer than untouched": round(float((rows[:, 1, 0] > rows[:, 0, 0]).float().mean()), 3)}
        out[preset] |= {k: {"dB": round(float(v[0]), 2), "SSIM": round(float(v[1]), 4)} for k, v in zip(("untouched", "network", "network, soft", "classical"), rows.mean(0))}
    return out


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--n", type=int, default=32, help="half of the drawn faces of each kind, and the photographs of each set")
    p.add_argument("--fit", type=int, default=400, help="drawn people of each kind that say what is usual")
    p.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    p.add_argument("--only", choices=("faces", "swaps"))
    p.add_argument("--crops", type=Path)
    p.add_argument("--record", action="store_true")
    a = p.parse_args()
    torch.set_num_threads(1)
    start, network = time.process_time(), open_shipped("cpu")
    out = {"network": seal(network)}
    if a.only != "swaps":
        crops = all_crops(a.n, a.shared, network.size, a.crops)
        if not {LONDON, GENERATED} <= set(crops):
            sys.exit(f"The photographs are not in {a.shared / 'data'}; without them there is no limit to set. --only swaps needs none.")
        known, out["faces"] = faces(network, crops, a.fit)
    if a.only != "faces":
        out["swaps"] = swaps(network, a.n)
    out["processor seconds"] = round(time.process_time() - start)
    print(json.dumps(out, indent=1))
    if a.record:
        if "faces" in out:
            save_acquaintance(known, WEIGHTS / f"{FAMILIAR}.safetensors", network, {"made by": "benchmarks/known.py", "drawn people": 2 * a.fit})
            write_text(card(out["network"], out["faces"], known, WEIGHTS / f"{FAMILIAR}.safetensors"), WEIGHTS / f"{FAMILIAR}.md")
        before = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        write_json((before if before.get("network") == out["network"] else {}) | out, RESULTS)


if __name__ == "__main__":
    main()
