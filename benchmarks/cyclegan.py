"""What a CycleGAN step costs, and how near its translations come to the exact answers.

python benchmarks/cyclegan.py                                  step time and memory against a plain port, prints JSON
python benchmarks/cyclegan.py --known person --seed 0          one run against exact answers, added to benchmarks/results/cyclegan.json
python benchmarks/cyclegan.py --known person --arm no-identity --seed 0
python benchmarks/cyclegan.py --london ../shared/data/london   neutral to smiling on real people: numbers only are kept
python benchmarks/cyclegan.py --fast                           seconds, writes nothing

The port does what the authors' code does (facts, not code): six generator calls one after the other, two more of the discriminators
without their weights' gradients, then four of the discriminators with them; eager, fp32, pool of 50. It is built from the layers of
`deepswap.cyclegan`, so both sides compute the same thing, and that is checked first: same weights, pool off, all losses.
"""

import argparse
import csv
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from deepswap.core import atomic_path, pick_device, read_image, seed_everything
from deepswap.cyclegan import CHANGES, CycleGAN, ImagePool, TwoDomains, known_task, psnr
from deepswap.data import Augment, Faces, quantise
from deepswap.faces import align_photo
from deepswap.train import Trainer, memory_mb

RESULTS = Path(__file__).parent / "results" / "cyclegan.json"
ARMS = {"full": {}, "no-identity": {"identity": 0.0}, "no-cycle": {"cycle": 0.0, "identity": 0.0}, "unet": {"generator": "unet"}}
WAYS = {
    "batched calls": {},
    "batched calls, channels last": {"channels_last": True},
    "batched calls, bf16": {"precision": "bf16"},
    "batched calls, bf16, channels last": {"precision": "bf16", "channels_last": True},
    "batched calls, bf16, compiled": {"precision": "bf16", "compile": True},
}


class Port:
    "The reference's schedule in its plainest form."

    def __init__(self, method, pool, device):
        self.m, self.pools = method.to(device), [ImagePool(pool), ImagePool(pool)]
        self.optimizers = method.optimizers()

    def step(self, batch):
        m, a, b, losses = self.m, batch["a"], batch["b"], {}
        fake_b = m.g_ab(a)
        back_a = m.g_ba(fake_b)
        fake_a = m.g_ba(b)
        back_b = m.g_ab(fake_a)
        for d in (m.d_a, m.d_b):
            d.requires_grad_(False)
        self.optimizers["g"].zero_grad()
        same_b, same_a = m.g_ab(b), m.g_ba(a)
        losses["identity"] = (same_b - b).abs().mean() + (same_a - a).abs().mean()
        losses["g_adv"] = (m.d_b(fake_b) - 1).square().mean() + (m.d_a(fake_a) - 1).square().mean()
        losses["cycle"] = (back_a - a).abs().mean() + (back_b - b).abs().mean()
        (losses["g_adv"] + 10 * losses["cycle"] + 5 * losses["identity"]).backward()
        self.optimizers["g"].step()
        for d in (m.d_a, m.d_b):
            d.requires_grad_(True)
        self.optimizers["d"].zero_grad()
        for name, d, real, fake, pool in (("d_a", m.d_a, a, fake_a, self.pools[0]), ("d_b", m.d_b, b, fake_b, self.pools[1])):
            fake = pool.query(fake.detach())
            losses[name] = 0.5 * ((d(real) - 1).square().mean() + d(fake).square().mean())
            losses[name].backward()
        self.optimizers["d"].step()
        return {k: float(v.detach()) * (0.5 if k == "g_adv" else 1) for k, v in losses.items()}


def batches(a, n=4):
    g = torch.Generator().manual_seed(0)
    return [{k: torch.rand(a.batch, 3, a.size, a.size, generator=g) * 2 - 1 for k in "ab"} for _ in range(n)]


def network(a, pool=50):
    seed_everything(0)
    return CycleGAN(size=a.size, ngf=a.width, blocks=a.blocks, ndf=a.width, pool=pool, decay="none")


def make(way, a, pool=50, **settings):
    "A function that makes one training step, and the trainer or port behind it."
    device = pick_device(a.device)
    if way == "port":
        port, data, count = Port(network(a, pool), pool, device), [{k: v.to(device) for k, v in b.items()} for b in batches(a)], [0]

        def step():
            count[0] += 1
            return port.step(data[(count[0] - 1) % len(data)])

        return step, port
    t = Trainer(network(a, pool), batches(a), steps=10**9, device=a.device, progress=False, preview_every=None, log_every=1, checkpoint_every=10**9, **WAYS[way], **settings)
    t._begin()
    t._use(t.wrapped)
    return t._one_step, t


def parity(a, steps=1):
    "The largest relative difference of a loss between the port and the trainer's method; the first step has the same weights to the bit."
    port, (ours, t), worst = make("port", a, 0)[0], make("batched calls", a, 0), 0.0
    for _ in range(steps):
        expected = port()
        ours()
        row = t.history[-1]
        worst = max(worst, *(abs(row[k] - v) / max(abs(v), 1e-3) for k, v in expected.items()))
    return worst


def clock(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def in_turn(steps, rounds, device, command):
    "Way -> median seconds over rounds, the ways in turn in every round, against the first way; memory of each in a process of its own."
    times = {w: [] for w in steps}
    for step in steps.values():
        step()
    for _ in range(rounds):
        for w, step in steps.items():
            start = clock(device)
            step()
            times[w].append(clock(device) - start)
    seconds = {w: statistics.median(t) for w, t in times.items()}
    base = next(iter(seconds.values()))
    memory = lambda w: float(subprocess.run([*command, "--memory", w], capture_output=True, text=True, check=True).stdout.split()[-1])
    return {w: {"seconds": round(s, 4), "ratio": round(s / base, 3), "memory_mb": round(memory(w))} for w, s in seconds.items()}


def measure(a):
    "The ways of training beside the port, and that they compute the same."
    ways = ["port", *(w for w in WAYS if a.compile or "compiled" not in w)]
    out = {"losses differ by": parity(a), "after three steps": parity(a, 3)}
    return out | in_turn({w: make(w, a)[0] for w in ways}, a.rounds, pick_device(a.device), command(a))


def command(a):
    return [sys.executable, __file__, *(f"--{k}={getattr(a, k)}" for k in ("device", "size", "batch", "width", "blocks", "threads"))]


def peak_mb(device):
    "Peak memory: on Linux of this program alone (the usual figure starts with the parent's)."
    status = Path("/proc/self/status")
    if device.type == "cuda" or not status.exists():
        return memory_mb(device)
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1024


def memory(way, a):
    "Peak memory of two steps, less what the process had before."
    device = pick_device(a.device)
    before = 0 if device.type == "cuda" else peak_mb(device)
    step = make(way, a)[0]
    for _ in range(2):
        step()
    return peak_mb(device) - before


def scores(method, task):
    "PSNR in dB to the exact answer, both ways: whole picture, and where something should change."
    xa, xb, out = task.test_a.image, task.test_b.image, {}
    change = ((xa - xb).abs().amax(1, keepdim=True) > 0.1).float()
    face = torch.maximum(task.test_a.mask, task.test_b.mask)
    for name, x, exact, to in (("ab", xa, xb, "b"), ("ba", xb, xa, "a")):
        y = method.translate(x, to).to(x.device) if method else x
        back = psnr(method.translate(y, "a" if to == "b" else "b").to(x.device), x) if method else 100.0
        colour = (y - exact).mean((2, 3)).abs().mean()
        out |= {name: psnr(y, exact), f"{name}_face": psnr(y, exact, face), f"{name}_changed": psnr(y, exact, change), f"{name}_rest": psnr(y, exact, 1 - change), f"{name}_colour": colour, f"{name}_cycle": back}
    return {k: round(float(v), 4) for k, v in out.items()}


def known(a):
    "One run against exact answers."
    task = known_task(a.known, a.size, a.n, 16 if a.fast else 64)
    seed_everything(a.seed)
    method = CycleGAN(size=a.size, ngf=a.width, blocks=a.blocks, ndf=a.width, layers=2, lr=a.lr, **ARMS[a.arm])
    t = Trainer(method, TwoDomains(task.a, task.b, a.size, a.batch, a.seed), steps=a.steps, seed=a.seed, device=a.device, ema=0.99, progress=False, preview_every=None)
    start = time.process_time()
    t.fit()
    with t.averaged():
        found, g = scores(t.method, task), torch.Generator().manual_seed(0)
        x, exact = task.test_a.image, task.test_b.image
        change = ((x - exact).abs().amax(1, keepdim=True) > 0.1).float()
        fake = t.method.translate(x, "b")
        home = lambda y: round(float(psnr(t.method.translate(y, "a").to(x.device), x, change)), 3)
        back = {"from the exact picture": home(exact)} | {str(s): home(fake + s * torch.randn(fake.shape, generator=g).to(fake.device)) for s in (0.0, 0.02, 0.05, 0.1, 0.2)}
    average = task.b.batch(range(len(task.b))).image.mean(0, keepdim=True).expand_as(task.test_b.image)
    return {"task": a.known, "arm": a.arm, "seed": a.seed, "untouched": scores(None, task), "mean of b": round(float(psnr(average, task.test_b.image)), 3), "translated": found, "and back, where something changes, with noise": back, "cpu_seconds": round(time.process_time() - start, 1)}


class Pictures(Faces):
    "Pictures that are tensors already."

    def __init__(self, images):
        super().__init__([str(i) for i in range(len(images))], images.shape[-1])
        self.pixels = quantise(images)

    def _pixels(self, i):
        return self.pixels[i], i


def real_faces(folder, size):
    "People of the London set as aligned crops: name -> (80, 3, S, S), in the same order in both."
    rows = {}
    for row in csv.DictReader(open(Path(folder) / "mtcnn5.tsv"), delimiter="\t"):
        rows.setdefault(row["file"].split("/")[0], {})[Path(row["file"]).stem] = row
    there = lambda k: {p.stem for p in (Path(folder) / k).glob("*.jpg")} & rows[k].keys()
    who = sorted(there("neutral") & there("smiling"))
    points = ("lex ley", "rex rey", "nx ny", "lmx lmy", "rmx rmy")
    crop = lambda r: align_photo(read_image(Path(folder) / r["file"]), [[float(r[k]) for k in p.split()] for p in points], size)[0]
    return {kind: torch.cat([crop(rows[kind][k]) for k in who]) for kind in ("neutral", "smiling")}


def smile_judge(neutral, smiling, penalty=3.0):
    "Ridge regression on the lower half of the face, grey: a function of pictures that is above 0 where it sees a smile."
    look = lambda x: F.avg_pool2d(x.mean(1, keepdim=True)[..., x.shape[2] // 2 :, :], 2).flatten(1)
    x = look(torch.cat([neutral, smiling, neutral.flip(3), smiling.flip(3)]))
    y = torch.cat([-torch.ones(len(neutral)), torch.ones(len(smiling))]).repeat(2)
    middle = x.mean(0)
    w = torch.linalg.solve((x - middle).T @ (x - middle) + penalty * torch.eye(x.shape[1]), (x - middle).T @ y)
    return lambda images: (look(images) - middle) @ w


def london(a):
    "Real people, neutral to smiling. The loader pairs nobody; the 20 held-out people have both pictures, so we can look who is who afterwards."
    faces = real_faces(a.london, a.size)
    order = torch.randperm(len(faces["neutral"]), generator=torch.Generator().manual_seed(a.seed))
    (na, sa), (nb, sb) = ([faces[k][i] for k in ("neutral", "smiling")] for i in (order[:-20], order[-20:]))
    judge = smile_judge(na, sa)
    seed_everything(a.seed)
    method = CycleGAN(size=a.size, ngf=a.width, blocks=a.blocks, ndf=a.width, layers=2, lr=a.lr, **ARMS[a.arm])
    data = TwoDomains(Pictures(na), Pictures(sa), a.size, a.batch, a.seed, augment=Augment(rotate=3, zoom=0.04, shift=0.02, colour=0.05))
    start = time.process_time()
    t = Trainer(method, data, steps=a.steps, seed=a.seed, device=a.device, ema=0.99, progress=False, preview_every=None).fit()
    with t.averaged():
        fake, back = t.method.translate(nb, "b").cpu(), t.method.translate(sb, "a").cpu()
    if a.look:  # for the eye of who runs it; these are faces of real people and stay out of the repository
        from deepswap.core import write_image
        from deepswap.show import to_grid

        write_image(to_grid(torch.cat([nb[:10], fake[:10], sb[:10], back[:10]]), 10).repeat_interleave(3, 1).repeat_interleave(3, 2), a.look)
    share = lambda x: round(float((judge(x) > 0).float().mean()), 3)
    nearest = lambda x, y: round(float(((x[:, None] - y).square().mean((2, 3, 4)).argmin(1) == torch.arange(len(x))).float().mean()), 3)
    return {"task": "neutral to smiling", "arm": a.arm, "seed": a.seed, "people": {"learned from": len(na), "held out": len(nb)},
            "judged smiling": {"neutral": share(nb), "translated": share(fake), "smiling": share(sb), "smiling translated back": share(back)},
            "nearest own smiling picture": {"neutral": nearest(nb, sb), "translated": nearest(fake, sb)},
            "psnr to own smiling picture": {"neutral": round(float(psnr(nb, sb)), 2), "translated": round(float(psnr(fake, sb)), 2)},
            "psnr of the cycle": round(float(psnr(t.method.translate(fake, "a").cpu(), nb)), 2), "cpu_seconds": round(time.process_time() - start, 1)}  # fmt: skip


def machine(device):
    "What it ran on."
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "") if Path("/proc/cpuinfo").exists() else platform.processor()
    return {"cpu": cpu, "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None, "threads": torch.get_num_threads(), "torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}


def keep(kind, found, same, a):
    "Put a result into the file, in place of an older one of the same kind."
    old = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    rows = [r for r in old.get(kind, []) if any(r.get(k) != found.get(k) for k in same)]
    old[kind] = sorted([*rows, found], key=lambda r: [str(r.get(k)) for k in same])
    RESULTS.parent.mkdir(exist_ok=True)
    with atomic_path(RESULTS) as part:
        part.write_text(json.dumps(old, indent=1) + "\n")


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--known", choices=("person", "dye", *CHANGES), help="train on a task with known answers")
    p.add_argument("--arm", choices=ARMS, default="full")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--steps", type=int, default=600, help="training steps of --known and --london")
    p.add_argument("--n", type=int, default=512, help="training pictures of each domain")
    p.add_argument("--lr", type=float, default=5e-4)
    p.add_argument("--london", metavar="DIR", help="folder with neutral/, smiling/ and mtcnn5.tsv")
    p.add_argument("--look", metavar="FILE", help="with --london: write a picture of the held-out people for your own eyes")
    p.add_argument("--device", default="cpu")
    p.add_argument("--size", type=int, help="128 for the step, 32 for the tasks")
    p.add_argument("--batch", type=int, help="1 for the step, 2 for the tasks")
    p.add_argument("--width", type=int, help="ngf and ndf: 64 for the step, 16 for the tasks")
    p.add_argument("--blocks", type=int, help="9 for the step, 3 for the tasks")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--compile", action="store_true", help="measure torch.compile too: minutes more")
    p.add_argument("--memory", choices=("port", *WAYS), help=argparse.SUPPRESS)
    p.add_argument("--keep", action="store_true", help="add the step's figures to the results too")
    p.add_argument("--fast", action="store_true")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    task = bool(a.known or a.london)
    for k, v in {"size": (128, 32), "batch": (1, 2), "width": (64, 16), "blocks": (9, 3)}.items():
        if getattr(a, k) is None:
            setattr(a, k, v[task])
    if a.fast:
        a.steps, a.n, a.width, a.blocks, a.rounds, a.size = 6, 16, 4, 1, 2, 32
    if a.memory:
        return print(memory(a.memory, a))
    if not task:
        found = {"setting": {k: getattr(a, k) for k in ("size", "batch", "width", "blocks", "threads")}, "ways": measure(a), "machine": machine(pick_device(a.device)), "command": "python benchmarks/cyclegan.py"}
        if a.keep and not a.fast:
            keep("step", found, ("setting",), a)
        return print(json.dumps(found, indent=1))
    found = london(a) if a.london else known(a)
    found |= {"setting": {k: getattr(a, k) for k in ("steps", "n", "lr", "size", "batch", "width", "blocks")}, "machine": machine(pick_device(a.device))}
    print(json.dumps(found))
    if not a.fast:
        keep("london" if a.london else "known", found, ("task", "arm", "seed"), a)


if __name__ == "__main__":
    main()
