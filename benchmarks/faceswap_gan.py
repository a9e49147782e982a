"""What a step of the face-swap GAN costs, and how near its swaps come to the exact ones.

python benchmarks/faceswap_gan.py              step time and memory against the textbook loop, prints JSON; --keep adds it to benchmarks/results/faceswap_gan.json
python benchmarks/faceswap_gan.py --pair --seed 0     trains the chapter's pair and scores it, added to the same file
python benchmarks/faceswap_gan.py --fast       seconds, writes nothing

The textbook loop is the baseline: eager, fp32, pictures as they come. It calls the encoder and a decoder for each person, paints new fakes
for the discriminators' turn, shows each discriminator reals and fakes one after the other, and lets gradients of the discriminators'
weights be computed in the generators' turn, where nobody uses them. It computes the same losses from the same weights; that is checked first.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from cyclegan import in_turn, machine, peak_mb  # the benchmark beside this one

from deepswap.autoencoder import PairSwapper, pair_task, score_pair
from deepswap.classical import ClassicalSwapper
from deepswap.core import atomic_path, pick_device, seed_everything
from deepswap.cyclegan import TwoDomains
from deepswap.faceswap_gan import FaceSwapGAN
from deepswap.train import Trainer

RESULTS = Path(__file__).parent / "results" / "faceswap_gan.json"
WAYS = {
    "one call for both people, D frozen": {},
    "the same, channels last": {"channels_last": True},
    "the same, bf16": {"precision": "bf16"},
    "the same, bf16, channels last": {"precision": "bf16", "channels_last": True},
}
RECIPE = {"up": "shuffle", "sigmoid": "off", "recolour": 0.8, "mask": True, "adv": 0.05, "lr": 3e-3, "lr_d": 1e-3, "ndf": 16}


class Textbook:
    "The loop as one writes it down first."

    def __init__(self, method, device):
        self.m = method.to(device).train()
        self.opt_g, self.opt_d = method.optimizers().values()

    def step(self, batch):
        m, losses = self.m, {}
        seen = {k: m.augment.pair(batch[k]) for k in "ab"}
        nets = {"a": (m.decoder_a, m.d_a), "b": (m.decoder_b, m.d_b)}
        self.opt_g.zero_grad()
        for k, (decoder, d) in nets.items():
            warped, wanted = seen[k]
            painted = decoder(m.encoder(warped))
            losses[f"g_{k}"] = m.config["recon"] * (painted - wanted).abs().mean() + m.config["adv"] * (d(painted) - 1).square().mean() / 2
        (losses["g_a"] + losses["g_b"]).backward()
        self.opt_d.zero_grad()
        for k, (decoder, d) in nets.items():
            warped, wanted = seen[k]
            with torch.no_grad():
                painted = decoder(m.encoder(warped))
            losses[f"d_{k}"] = (d(wanted) - 1).square().mean() / 2 + d(painted).square().mean() / 2
        (losses["d_a"] + losses["d_b"]).backward()
        self.opt_g.step()
        self.opt_d.step()
        return {k: float(v.detach()) for k, v in losses.items()}


def batches(a, n=4):
    g = torch.Generator().manual_seed(0)
    return [{k: torch.rand(a.batch, 3, a.size, a.size, generator=g) * 2 - 1 for k in "ab"} for _ in range(n)]


def make(way, a, **settings):
    "A function that makes one training step and gives its losses."
    seed_everything(0)
    device, method = pick_device(a.device), FaceSwapGAN(size=a.size, width=a.width, ndf=a.width)
    if way == "textbook":
        loop, data, count = Textbook(method, device), [{k: v.to(device) for k, v in b.items()} for b in batches(a)], [0]

        def step():
            count[0] += 1
            return loop.step(data[(count[0] - 1) % len(data)])

        return step
    t = Trainer(method, batches(a), steps=10**9, device=a.device, progress=False, preview_every=None, log_every=1, checkpoint_every=10**9, **WAYS[way], **settings)
    t._begin()
    t._use(t.wrapped)
    return lambda: (t._one_step(), t.history[-1])[1]


def parity(a, steps=1):
    "The largest relative difference of a loss between the textbook loop and the method; the first step has the same weights to the bit."
    rows = []
    for way in ("textbook", next(iter(WAYS))):
        step = make(way, a)
        seed_everything(1)
        rows.append([step() for _ in range(steps)])
    return max(abs(ours[k] - v) / max(abs(v), 1e-3) for plain, ours in zip(*rows) for k, v in plain.items())


def measure(a):
    "The ways of training beside the textbook's, and that they compute the same."
    out = {"losses differ by": parity(a), "after three steps": parity(a, 3)}
    return out | in_turn({w: make(w, a) for w in ("textbook", *WAYS)}, a.rounds, pick_device(a.device), command(a))


def memory(way, a):
    "Peak memory of two steps, less what the process had before."
    device = pick_device(a.device)
    before = 0 if device.type == "cuda" else peak_mb(device)
    step = make(way, a)
    for _ in range(2):
        step()
    return peak_mb(device) - before


def command(a):
    return [sys.executable, __file__, *(f"--{k}={getattr(a, k)}" for k in ("device", "size", "batch", "width", "threads"))]


def pair(a):
    "One run on the easy pair: scores of the whole picture painted by the network, of the face alone put into the target, and of the classical swap."
    task = pair_task(a.size, a.n, 8 if a.fast else 64)
    seed_everything(a.seed)
    method = FaceSwapGAN(size=a.size, width=a.width, **RECIPE | {"ndf": min(RECIPE["ndf"], a.width)})
    t = Trainer(method, TwoDomains(task.a, task.b, batch_size=a.batch, seed=a.seed), steps=a.steps, seed=a.seed, device=a.device, precision="auto", channels_last=True, ema=0.99, progress=False, preview_every=None)
    start = time.process_time()
    t.fit()
    seconds = round(time.process_time() - start, 1)
    with t.averaged():
        found = {to: {"whole": score_pair(lambda x: method.translate(x, to).to(x.device), task, to), "face": score_pair(PairSwapper(method, to), task, to), "classical": score_pair(ClassicalSwapper(), task, to)} for to in "ba"}
    rounded = {to: {kind: {k: round(v, 3) for k, v in scores.items()} for kind, scores in kinds.items()} for to, kinds in found.items()}
    return {"seed": a.seed, "setting": {k: getattr(a, k) for k in ("size", "width", "batch", "steps", "n")} | RECIPE, "to": rounded, "cpu_seconds": seconds}


def keep(kind, found, same):
    "Put a result into the file, in place of an older one of the same kind."
    old = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    rows = [r for r in old.get(kind, []) if any(r.get(k) != found.get(k) for k in same)]
    old[kind] = sorted([*rows, found], key=lambda r: str([r.get(k) for k in same]))
    RESULTS.parent.mkdir(exist_ok=True)
    with atomic_path(RESULTS) as part:
        part.write_text(json.dumps(old, indent=1) + "\n")


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--pair", action="store_true", help="train the chapter's pair instead")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--steps", type=int, default=450)
    p.add_argument("--n", type=int, default=512, help="training pictures of each person")
    p.add_argument("--device", default="cpu")
    p.add_argument("--size", type=int, default=64)
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--width", type=int, default=32)
    p.add_argument("--rounds", type=int, default=7)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--memory", choices=("textbook", *WAYS), help=argparse.SUPPRESS)
    p.add_argument("--keep", action="store_true", help="add the step's figures to the results too")
    p.add_argument("--fast", action="store_true")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    if a.fast:
        a.steps, a.n, a.width, a.rounds, a.size, a.batch = 4, 16, 4, 2, 32, 2
    if a.memory:
        return print(memory(a.memory, a))
    found = pair(a) if a.pair else {"setting": {k: getattr(a, k) for k in ("size", "batch", "width", "threads")}, "ways": measure(a)}
    found |= {"machine": machine(pick_device(a.device)), "command": "python benchmarks/faceswap_gan.py" + (f" --pair --seed {a.seed}" if a.pair else " --keep")}
    print(json.dumps(found, indent=1))
    if not a.fast and (a.pair or a.keep):
        keep("pair" if a.pair else "step", found, ("seed",) if a.pair else ("setting",))


if __name__ == "__main__":
    main()
