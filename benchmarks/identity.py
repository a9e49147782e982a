"""Train the identity encoder that ships, and measure encoders: naming unseen people, verification, speed.

python benchmarks/identity.py train [--people 2000] [--pictures 25] [--steps 2600] [--cache FOLDER] [--out FOLDER]   writes deepswap/weights/deepswap-identity-v1.safetensors
python benchmarks/identity.py start [--cache FOLDER] [--record]                                                      names people with Fisher's start alone; --record adds it to the JSON
python benchmarks/identity.py measure [--shared ../shared] [--record]                                               prints JSON; --record writes benchmarks/results/identity.json

Training. Procedural people of the hard set, every picture in a style of its own; drawing, Fisher's start and ArcFace all count.
--cache keeps drawn pictures in a folder, so that a run that was stopped does not draw them again.

Measuring. Naming: `naming_task`, four easy pictures of each person in the gallery, five hard ones in other styles as probes; nobody
and no seed is in training. Verification: all pairs of the probes. London (only where the shared folder holds it): a neutral and a
smiling photo of each person, aligned at 256 px; all pairs. The photos are never stored, only numbers.
"""

import argparse
import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from deepswap.classify import WEIGHTS  # noqa: E402
from deepswap.core import read_image, write_json  # noqa: E402
from deepswap.data import PixelStore  # noqa: E402
from deepswap.faces import align_photo, find_faces  # noqa: E402
from deepswap.identity import OWN_SQUARE, OWN_WEIGHTS, FaceEncoder, IdentityMethod, codes_of, get_encoder, identity_faces, mean_codes, name_people, naming_task, save_encoder, verify  # noqa: E402
from deepswap.train import run  # noqa: E402

RECORD = ROOT / "benchmarks/results/identity.json"
LONDON = "data/london"


def drawn(spec, cache, limit):
    "The training faces, drawn; from the cache what it holds."
    faces, start = identity_faces(spec, 64), time.perf_counter()
    if cache:
        Path(cache).mkdir(parents=True, exist_ok=True)
        faces.store = PixelStore(len(faces), 64, folder=cache)
    for i in torch.arange(len(faces)).split(512):
        faces.batch(i)
        if time.perf_counter() - start > limit:
            sys.exit(f"drew up to picture {int(i[-1])} of {len(faces)}; run again with the same --cache")
    return faces, time.perf_counter() - start


def train(a):
    spec = f"procedural:n={a.people},scenes={a.pictures},preset=hard,seed={a.seed}"
    faces, drawing = drawn(spec, a.cache, a.draw)
    print(f"drawn after {drawing:.0f} s", file=sys.stderr, flush=True)
    if a.draw_only:
        return
    start = time.perf_counter()
    trainer = run("identity", faces, size=64, batch=128, steps=a.steps, seed=a.seed, device="cpu", precision="auto", channels_last=True, ema=.998, out=a.out,
                  options={"width": a.width, "dim": a.dim}, progress=False, preview_every=None, log_every=50, callbacks=[Told()])
    with trainer.averaged():
        about = {"data": spec, "steps": a.steps, "batch": 128, "training_minutes": round((time.perf_counter() - start) / 60, 1), "drawing_minutes": round(drawing / 60, 1)}
        path = save_encoder(trainer.method.encoder, a.weights, about)
    print(json.dumps({"wrote": path.name, **about, "bytes": path.stat().st_size}))


def start(a):
    "What the shipped encoder began with: the same pictures, no step of gradient descent."
    faces, _ = drawn(f"procedural:n={a.people},scenes={a.pictures},preset=hard,seed={a.seed}", a.cache, a.draw)
    began = time.perf_counter()
    method = IdentityMethod(width=a.width, dim=a.dim).for_data(faces).eval()
    seconds = time.perf_counter() - began
    encoder = FaceEncoder(method.encoder, "start", method.encoder.size, method.encoder.dim, OWN_SQUARE, mirror=True)
    found = {**procedural(encoder, naming_task(200)), "start_seconds": round(seconds, 1)}
    print(json.dumps(short(found)))
    if a.record:
        write_json(json.loads(RECORD.read_text()) | {"start": found}, RECORD)


class Told:
    "Says now and then how it goes."

    def on_step(self, trainer):
        if trainer.step % 100 == 0 and trainer.history:
            print(f"step {trainer.step}, {trainer.seconds:.0f} s, arc {trainer.history[-1]['arc']:.3f}", file=sys.stderr, flush=True)


def curve(v, points=60):
    "A ROC curve thinned to some points, evenly on a logarithmic axis."
    far = torch.logspace(-5, 0, points)
    i = (torch.searchsorted(v.far.float().contiguous(), far, right=True) - 1).clamp(min=0).unique()
    return {"far": [round(x, 7) for x in v.far[i].tolist()], "tar": [round(x, 5) for x in v.tar[i].tolist()]}


def verification(codes, person):
    v = verify(codes, person)
    rates = {str(f): round(v.tar_at(f), 4) for f in (.1, .01, .001, 1e-4) if f * v.different >= 1}
    return {"auc": round(v.auc, 5), "eer": round(v.eer, 4), "tar_at_far": rates, "same": v.same, "different": v.different, **curve(v)}


def procedural(encoder, task):
    people = len(task.gallery.person.unique())
    start = time.perf_counter()
    codes = codes_of(encoder.embed, task.probes)
    named = float((name_people(encoder.embed, task) == task.probes.person).float().mean())
    return {"people": people, "probes": len(task.probes), "named_right": round(named, 4), **verification(codes, task.probes.person), "seconds": round(time.perf_counter() - start, 1)}


def crops(folder, names):
    "Aligned 256 px crops; names without a face are left out."
    out = {}
    for name in names:
        if faces := find_faces(image := read_image(folder / name)):
            out[name] = align_photo(image, faces[0].landmarks, 256)[0]
    return out


def london(shared, most):
    neutral, smiling = shared / LONDON / "neutral", shared / LONDON / "smiling"
    both = sorted({p.name for p in neutral.glob("*.jpg")} & {p.name for p in smiling.glob("*.jpg")})[:most]
    a, b = crops(neutral, both), crops(smiling, both)
    both = [n for n in both if n in a and n in b]
    return torch.cat([a[n] for n in both] + [b[n] for n in both]), torch.arange(len(both)).repeat(2)


def on_photos(encoder, images, person):
    with torch.no_grad():
        codes = torch.cat([encoder.embed(x) for x in images.split(16)])
    n = len(person) // 2
    named = float(((codes[n:] @ mean_codes(codes[:n], person[:n]).T).argmax(1) == person[n:]).float().mean())
    return {"people": n, "named_right": round(named, 4), **verification(codes, person)}


def speed(encoder, side=256, repeats=10):
    x = torch.rand(1, 3, side, side) * 2 - 1
    with torch.no_grad():
        encoder.embed(x)
        start = time.perf_counter()
        for _ in range(repeats):
            encoder.embed(x)
    return round((time.perf_counter() - start) / repeats * 1000, 1)


def short(x):
    "Without the curves, to print."
    return {k: short(v) for k, v in x.items() if k not in ("far", "tar")} if isinstance(x, dict) else x


def measure(a):
    encoders = {"own": get_encoder("own", "cpu")}
    mobile = a.shared / "data/weights/mobilefacenet_foamliu.safetensors"
    if mobile.is_file():
        encoders["mobilefacenet"] = get_encoder(mobile, "cpu")
    out = {"threads": torch.get_num_threads(), "milliseconds_for_one_256_px": {k: speed(e) for k, e in encoders.items()}}
    task = naming_task(a.people)
    out["procedural"] = {k: procedural(e, task) for k, e in encoders.items()}
    out["procedural_many"] = procedural(encoders["own"], naming_task(a.many))
    if (a.shared / LONDON).is_dir():
        images, person = london(a.shared, a.photos)
        out["london"] = {k: on_photos(e, images, person) for k, e in encoders.items()}
    print(json.dumps(short(out), indent=1))
    if a.record:
        old = json.loads(RECORD.read_text()) if RECORD.is_file() else {}
        write_json(({"start": old["start"]} if "start" in old else {}) | out, RECORD)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=("train", "start", "measure"))
    p.add_argument("--people", type=int, default=None, help="2000 to train on; 200 to name")
    p.add_argument("--many", type=int, default=1000, help="people of the larger naming test")
    p.add_argument("--photos", type=int, default=1000, help="people of the photographs, at most")
    p.add_argument("--pictures", type=int, default=25, help="of each person")
    p.add_argument("--steps", type=int, default=2600)
    p.add_argument("--width", type=int, default=64)
    p.add_argument("--dim", type=int, default=128)
    p.add_argument("--seed", type=int, default=40)
    p.add_argument("--cache", help="folder for drawn pictures")
    p.add_argument("--draw", type=float, default=1e9, help="stop drawing after so many seconds")
    p.add_argument("--draw-only", action="store_true")
    p.add_argument("--out", help="folder for checkpoints")
    p.add_argument("--weights", type=Path, default=WEIGHTS / f"{OWN_WEIGHTS}.safetensors")
    p.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    p.add_argument("--record", action="store_true")
    a = p.parse_args()
    a.people = a.people or (200 if a.what == "measure" else 2000)
    torch.set_num_threads(1)
    {"train": train, "start": start, "measure": measure}[a.what](a)


if __name__ == "__main__":
    main()
