"""The one table: all swappers of the house on unseen people, on a pair of people, and on photographs and clips where those are at hand.

python benchmarks/evaluate.py --record                   everything, about twenty minutes of one core; writes benchmarks/results/evaluate.json
python benchmarks/evaluate.py --record --only pair       one part; the others stay as they are. Parts: people pair photos clips
python benchmarks/evaluate.py --fast                     seconds, prints the tables, writes nothing

people   the protocols normal, cross-skin, cross-attribute and occluded; classical swap, FaceShifter as it comes with the package, and with HEAR-Net; beside them two
         small FaceShifters trained here with the same steps, one by itself and one by the exact swap
pair     an autoencoder, a face-swap GAN and a CycleGAN trained here on one pair of people, and those who need no training, both ways
photos   the London set of ../shared/data (--shared): neutral sources, smiling targets; judged by a MobileFaceNet and, where onnxruntime is installed, by FSA-Net
clips    talking heads of ../shared/data, each with the next one's face, judged by the same

What is trained is kept in --runs and not trained again. Timings hold for the machine that recorded them.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from cyclegan import machine  # the benchmark beside this one

from deepswap.autoencoder import AutoencoderSwap, PairSwapper, pair_task
from deepswap.classical import ClassicalSwapper
from deepswap.core import DeepswapError, UsageError, pick_device, seed_everything, write_json
from deepswap.cyclegan import CycleGAN, TwoDomains
from deepswap.evaluate import PROTOCOLS, Report, clip_task, evaluate, open_report, pair_evaluation, photo_task
from deepswap.faceshifter import FaceShifter, FaceShifterSwapper, load_faceshifter
from deepswap.faceswap_gan import FaceSwapGAN
from deepswap.identity import identity_faces
from deepswap.train import Trainer, load_method

RESULTS = Path(__file__).parent / "results" / "evaluate.json"
PARTS = ("people", "pair", "photos", "clips")
PAIR = {  # name -> (steps, batch, method)
    "autoencoder": (500, 16, lambda size, w: AutoencoderSwap(size=size, width=2 * w, code=256, lr=1e-3)),
    "face-swap GAN": (450, 16, lambda size, w: FaceSwapGAN(size=size, width=2 * w, ndf=w, up="shuffle", sigmoid="off", recolour=0.8, mask=True, adv=0.05, lr=3e-3, lr_d=1e-3)),
    "CycleGAN": (500, 2, lambda size, w: CycleGAN(size=size, ngf=w, blocks=3, ndf=w, layers=2, lr=5e-4)),
}
TAUGHT = {"self-taught": {}, "taught": FaceShifter.presets["taught"]}
SHORT = {"width": 8, "ndf": 16, "lr": 0.004, "lr_d": 0.0005, "beta": 0.5, "decay": 0.3, "keep": True}  # FaceShifter's quick preset


def trained(name, method, loader, steps, runs, **settings):
    "A method from its run, trained first where there is none; and the processor seconds that it took."
    folder = runs / name.replace(" ", "-")
    start = time.process_time()
    if not (folder / "done.json").exists():
        trainer = Trainer(method, loader(method), steps=steps, seed=0, device="cpu", out=folder, progress=False, preview_every=None, **settings)
        (trainer.resume() if (folder / "last.safetensors").exists() else trainer).fit()
        write_json({"seconds": round(time.process_time() - start)}, folder / "done.json")
    return load_method(folder, device="cpu").eval(), json.loads((folder / "done.json").read_text())["seconds"]


class Translator:
    "A CycleGAN as a swapper of one direction; the picture it paints is whole."

    def __init__(self, method, to):
        self.model, self.to = method, to

    def __call__(self, source, target):
        return self.model.translate(target, self.to).to(target), torch.ones_like(target[:, :1])


def shipped(a):
    "Those who need no training: name -> swapper."
    model = load_faceshifter(device="cpu")
    found = {"classical": ClassicalSwapper(device="cpu"), "FaceShifter": FaceShifterSwapper(model)}
    try:
        from deepswap.hear import HearSwapper, load_hear

        found["FaceShifter + HEAR"] = HearSwapper(load_hear(device="cpu"))
    except (ImportError, DeepswapError) as e:
        print(f"without HEAR-Net: {e}", flush=True)
    return found


def short(a):
    "Two small FaceShifters with the same networks, data and number of steps: taught by themselves, and by the exact swap."
    faces, out, about = None, {}, {}
    for name, more in TAUGHT.items():
        seed_everything(0)

        def loader(method):
            nonlocal faces
            faces = faces or identity_faces(f"procedural:n={a.train_people},scenes=4,preset=easy", a.small)
            return method.loader(faces, a.small, 16, 0)[0]

        title = f"FaceShifter, {name}, {a.small} px"
        method, seconds = trained(f"short {name} {a.steps}", FaceShifter(size=a.small, **SHORT | more), loader, a.steps, a.runs, ema=0.99)
        out[title], about[title] = FaceShifterSwapper(method), {"processor seconds": seconds, "people": a.train_people, "steps": a.steps}
    return out, about


def people(a, tell):
    "The four protocols for any two people."
    more, about = short(a)
    return evaluate(shipped(a) | more, PROTOCOLS[:4], a.pairs, a.size, a.gallery, out=a.runs / "table-people", progress=tell), about


def pair(a, tell):
    "All methods on one pair."
    task, swappers, about = pair_task(a.size, a.train, a.pairs // 2), shipped(a), {}
    for name, (steps, batch, make) in PAIR.items():
        seed_everything(0)
        steps = 4 if a.fast else steps
        loader = lambda method, batch=batch: TwoDomains(task.a, task.b, batch_size=batch)
        fast = {} if name == "CycleGAN" else {"precision": "auto", "channels_last": True, "clip": 1.0}
        method, seconds = trained(name, make(a.size, a.width), loader, steps, a.runs, ema=0.99, **fast)
        swappers[name] = {to: Translator(method, to) if name == "CycleGAN" else PairSwapper(method, to, mask="crop") for to in "ba"}
        about[name] = {"processor seconds": seconds, "steps": steps, "batch": batch, "pictures": a.train}
    return evaluate(swappers, [pair_evaluation(task, a.gallery)], out=a.runs / "table-pair", progress=tell), about


def judges(a):
    "Encoder and pose network of the shared folder."
    weights = a.shared / "data" / "weights"
    try:
        import onnxruntime  # noqa: F401

        pose = sorted(weights.glob("fsanet_*.onnx"))
    except ImportError:
        pose = None
    return {"encoder": weights / "mobilefacenet_foamliu.safetensors", "pose": pose}


def photos(a, tell):
    "Consented photographs: neutral faces into smiling pictures of others."
    london = a.shared / "data" / "london"
    task = photo_task(london / "neutral", others=london / "smiling", n=a.photos, size=128, **judges(a))
    about = {"pairs": len(task), "gallery": 2 * len(task) + len(task.strangers), "size": 128, "pose": getattr(task.reader, "name", None)}
    return evaluate(shipped(a), [task], out=a.runs / "table-photos", progress=tell, space=a.shared / "data" / "weights" / "squeezenet11_caffe_features.safetensors"), about


def clips(a, tell):
    "Talking heads."
    files = sorted((a.shared / "data" / "video").glob("*.mpg"))[: a.clips]
    task = clip_task(files, every=10, size=128, **judges(a))
    about = {"frames": len(task), "clips": len(files), "size": 128, "every": 10, "pose": getattr(task.reader, "name", None)}
    return evaluate(shipped(a), [task], out=a.runs / "table-clips", progress=tell), about


def merged(old, new, part, about):
    "The record with one part in place of the older one."
    there = set(new.protocols)
    old.lines = [x for x in old.lines if x["protocol"] not in there] + new.lines
    old.about[part] = about | {"machine": machine(pick_device("cpu")), "protocols": new.protocols, "pairs": about.get("pairs", about.get("frames", new.settings["n"]))}
    old.settings = {k: v for k, v in new.settings.items() if k in ("n", "size", "gallery")} if part == "people" else old.settings
    first = ["untouched", "classical", "FaceShifter", "FaceShifter + HEAR"]
    old.arrange([*PROTOCOLS, "photos", "clips"], first + [m for m in dict.fromkeys(x["method"] for x in old.lines) if m not in (*first, "exact swap")])
    return old


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--record", action="store_true")
    p.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    p.add_argument("--runs", type=Path, default=Path("runs/evaluate"))
    p.add_argument("--shared", type=Path, default=Path(__file__).resolve().parents[2] / "shared")
    for name, default in {"pairs": 128, "gallery": 1000, "size": 64, "small": 32, "steps": 600, "train": 512, "train-people": 256, "width": 16, "photos": 40, "clips": 9, "threads": 1}.items():
        p.add_argument(f"--{name}", type=int, default=default)
    p.add_argument("--fast", action="store_true")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    torch.set_flush_denormal(True)
    if a.fast:
        a.pairs, a.gallery, a.steps, a.train, a.train_people, a.width, a.photos, a.clips, a.record = 10, 40, 2, 16, 20, 4, 8, 2, False
    if not (a.record or a.fast):
        p.error("give --record or --fast")
    if not (a.shared / "data").is_dir():
        a.only = [k for k in a.only if k not in ("photos", "clips")]
    if not a.only:
        raise UsageError(f"There are no photographs in {a.shared}; give --shared.")
    record = open_report(RESULTS) if RESULTS.exists() else Report({})
    for part in a.only:
        a.runs.mkdir(parents=True, exist_ok=True)
        start = time.process_time()
        report, about = globals()[part](a, lambda share, text: print(f"{share:4.0%} {text}", flush=True))
        record = merged(record, report, part, about | {"part's processor seconds": round(time.process_time() - start)})
        for protocol in report.protocols:
            print(report.table(protocol), flush=True)
        if a.record:
            record.to_json(RESULTS)


if __name__ == "__main__":
    try:
        main()
    except DeepswapError as e:
        sys.exit(str(e))
