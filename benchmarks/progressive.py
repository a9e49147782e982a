"""The growing CycleGAN against the full one, person A to person B, with exact answers.

python benchmarks/progressive.py --arm plain --seed 0      one run, added to benchmarks/results/progressive.json
python benchmarks/progressive.py --fast                    seconds, prints JSON, writes nothing
python benchmarks/progressive.py --arm plain --lr 2e-4      the same at another learning rate
python benchmarks/progressive.py --pictures                the picture of the chapter, from the runs just made

Every arm ends as the same networks, with the same data, losses, learning rate and batch. `plain` has them from the start;
`switched` grows in five equal parts without fade-in; `faded` with; `late` spends three fifths of its run on the full
networks. A growing arm gets as many steps as make its arithmetic that of `--steps` plain ones. The plain arm goes on
beyond `--steps`, so that it can be read where its time, or its arithmetic, is that of the others.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from deepswap.classify import features, kernel_distance
from deepswap.core import atomic_path, pick_device, seed_everything
from deepswap.people import People, Scene, render, sample_people
from deepswap.progressive import GROWTH_STEPS, ProgressiveCycleGAN, growth_at
from deepswap.train import Trainer

ARMS = {"plain": {"last": 1.0}, "switched": {"fade": 0.0}, "faded": {"fade": 0.5}, "late": {"fade": 0.5, "last": 0.6}}
RESULTS = Path(__file__).parent / "results" / "progressive.json"


def pictures(size, n, test=64, seed=5, a=3, b=4):
    "Training pictures of two people, no scene twice, and `test` scenes more with both: what is asked, and the exact answer."
    scene = sample_people(1, "easy", seed, 2 * n + test).scene  # one room and one light, as if taken on one day
    mean, move = Scene(n=1), {"yaw": 2, "pitch": 2, "roll": 2.5, "shift_x": 4, "shift_y": 4, "zoom": 2}  # heads that move
    scene = scene.replace(**{k: getattr(mean, k) + m * (getattr(scene, k) - getattr(mean, k)) for k, m in move.items()})

    def person(k, i):
        who = sample_people(1, "easy", 10**6 + k)
        return render(People(who.identity.repeat(len(i)), who.style.repeat(len(i)), scene[i]), size).image

    i = torch.arange(2 * n + test)
    return {"a": person(a, i[:n]), "b": person(b, i[n : 2 * n]), "test_a": person(a, i[2 * n :]), "test_b": person(b, i[2 * n :])}


def psnr(x, y):
    "Mean over pictures of 10 log10(2^2 / mean squared difference), in dB."
    return float((10 * torch.log10(4 / (x - y).square().mean((1, 2, 3)))).mean())


def examine(made, exact):
    "What one number in dB does not say: fine detail, its amount and whether it is the right one, and the distance of the sets."
    fine = [x - torch.nn.functional.avg_pool2d(torch.nn.functional.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1) for x in (made, exact)]
    return {"detail": float(fine[0].std() / fine[1].std()), "agreement": float(torch.corrcoef(torch.stack([f.flatten() for f in fine]))[0, 1]),
            "kernel": kernel_distance(features(exact), features(made))}  # fmt: skip


class Pairs:
    "Unpaired batches: a picture of A and one of B, drawn each for itself."

    def __init__(self, a, b, batch, seed):
        self.a, self.b, self.batch, self.dice = a, b, batch, torch.Generator().manual_seed(seed)

    def __iter__(self):
        while True:
            i, j = (torch.randint(len(x), (self.batch,), generator=self.dice) for x in (self.a, self.b))
            yield {"a": self.a[i], "b": self.b[j]}

    def state_dict(self):
        return {"dice": self.dice.get_state()}

    def load_state_dict(self, state):
        self.dice.set_state(state["dice"])


class Watch:
    "Callback: CPU seconds and arithmetic so far, and the score every now and then, outside the clock."

    def __init__(self, data, flops, every, device):
        self.data, self.flops, self.every, self.device = data, flops, every, device
        self.clock = time.process_time if device.type == "cpu" else time.perf_counter
        self.seconds, self.work, self.rows = 0.0, 0.0, []

    def on_start(self, trainer):
        self.since = self.clock()

    def on_step(self, trainer):
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds += self.clock() - self.since
        self.work += self.flops[trainer.method.part]
        if trainer.step % self.every == 0 or trainer.step == trainer.steps:
            self.rows.append({"step": trainer.step, "part": trainer.method.part, "seconds": round(self.seconds, 2), "tflop": round(self.work / 1e12, 3), **self.score(trainer)})
        self.since = self.clock()

    def score(self, trainer):
        a, b = (self.data[k].to(self.device) for k in ("test_a", "test_b"))
        with trainer.averaged():
            trainer.method.eval()
            found = {"ab": round(psnr(trainer.method.translate(a, "b"), b), 3), "ba": round(psnr(trainer.method.translate(b, "a"), a), 3)}
            trainer.method.train()
        row = trainer.history[-1] if trainer.history else {}
        return found | {k: round(row[k], 5) for k in row if k.startswith("grad_")}


def method(a, **more):
    return ProgressiveCycleGAN(size=a.size, ngf=a.width, ndf=a.width, lr=a.lr, decay="none", **more)


def cost(a, data):
    "Operations of one training step at each growth step, counted by torch."
    found = {}
    for k in range(1, GROWTH_STEPS + 1):
        model = method(a)
        model.grow_to(k)
        t = Trainer(model, Pairs(data["a"], data["b"], a.batch, 0), steps=1, device=a.device, progress=False, preview_every=None)
        with FlopCounterMode(display=False) as f:
            t.fit()
        found[k] = f.get_total_flops()
    return found


def race(a, arm, seed, data, flops):
    "One run; returns its curve, and what its generator makes of some test pictures."
    device = pick_device(a.device)
    schedule = ARMS[arm]
    share = sum(flops[growth_at(i, 1000, **schedule)[0]] for i in range(1000)) / 1000
    steps = round(a.steps * (1.4 if arm == "plain" else flops[5] / share))
    seed_everything(seed)
    model = method(a, **schedule)
    watch = Watch(data, flops, max(1, steps // 20), device)
    t = Trainer(model, Pairs(data["a"], data["b"], a.batch, seed), steps=steps, seed=seed, device=a.device, ema=0.99, progress=False, preview_every=None, checkpoint_every=steps,
                log_every=max(1, steps // 20), callbacks=[watch])  # fmt: skip
    t.fit()
    with t.averaged():
        made = {k: t.method.eval().translate(data[f"test_{o}"].to(device), k).cpu() for k, o in (("b", "a"), ("a", "b"))}
    end = [examine(made[k], data[f"test_{k}"]) for k in "ba"]
    return {"arm": arm, "lr": a.lr, "seed": seed, "steps": steps, "end": {k: round(sum(e[k] for e in end) / 2, 4) for k in end[0]}, "rows": watch.rows}, made["b"][:10]


def draw(a, data, path):
    "One row for each arm (seed 0), as a small JPEG."
    from deepswap.core import write_image
    from deepswap.show import to_grid

    rows = [data["test_a"][:10], *(torch.load(a.kept / f"{arm}-{a.lr:g}-0.pt", weights_only=True) for arm in ARMS), data["test_b"][:10]]
    write_image(to_grid(torch.cat(rows), 10).repeat_interleave(2, 1).repeat_interleave(2, 2), path, quality=85)


def machine(device):
    "What it ran on."
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), platform.processor()) if Path("/proc/cpuinfo").exists() else platform.processor()
    return {"cpu": cpu, "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None, "threads": torch.get_num_threads(), "torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}


def collect(a, setting):
    "All runs of this setting into the one file that the chapter reads."
    found = [json.loads(f.read_text()) for f in sorted(a.kept.glob("*.json"))]
    same = json.loads(json.dumps(setting))
    runs = sorted((f["run"] for f in found if f["setting"] == same), key=lambda r: (r["lr"], list(ARMS).index(r["arm"]), r["seed"]))
    RESULTS.parent.mkdir(exist_ok=True)
    with atomic_path(RESULTS) as part:
        part.write_text(json.dumps({"setting": setting, "machine": machine(pick_device(a.device)), "command": "python benchmarks/progressive.py", "runs": runs}) + "\n")


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--arm", choices=ARMS, help="one arm; without it all")
    p.add_argument("--seed", type=int, help="one seed; without it 0, 1, 2")
    p.add_argument("--steps", type=int, default=600, help="length of the plain run that the others match in arithmetic")
    p.add_argument("--size", type=int, default=32)
    p.add_argument("--width", type=int, default=16)
    p.add_argument("--batch", type=int, default=4)
    p.add_argument("--lr", type=float, default=5e-4, help="of all networks, constant")
    p.add_argument("--n", type=int, default=256, help="training pictures of each person")
    p.add_argument("--device", default="cpu")
    p.add_argument("--fast", action="store_true")
    p.add_argument("--pictures", action="store_true", help="only draw the picture of the chapter from the runs of seed 0")
    p.add_argument("--kept", type=Path, default=Path("/tmp/deepswap-progressive"), help="where single runs wait to be put together")
    a = p.parse_args()
    torch.set_num_threads(1)
    if a.fast:
        a.steps, a.n, a.width, a.batch = 10, 16, 4, 2
    data = pictures(a.size, a.n, 16 if a.fast else 64)
    if a.pictures:
        return draw(a, data, RESULTS.with_suffix(".jpg"))
    flops = cost(a, data)
    setting = {k: getattr(a, k) for k in ("steps", "size", "width", "batch", "n")} | {"flops": flops, "nothing": round(psnr(data["test_a"], data["test_b"]), 3)}
    setting["mean_of_b"] = round(psnr(data["b"].mean(0, keepdim=True).expand_as(data["test_b"]), data["test_b"]), 3)
    runs = []
    for arm in [a.arm] if a.arm else list(ARMS):
        for seed in [a.seed] if a.seed is not None else range(1 if a.fast else 3):
            run, images = race(a, arm, seed, data, flops)
            runs.append(run)
            print(json.dumps({**run, "rows": run["rows"][-1]}), flush=True)
            if a.fast:
                continue
            a.kept.mkdir(exist_ok=True)
            torch.save(images, a.kept / f"{arm}-{a.lr:g}-{seed}.pt")
            (a.kept / f"{arm}-{a.lr:g}-{seed}.json").write_text(json.dumps({"setting": setting, "run": run}))
            collect(a, setting)
    if a.fast:
        print(json.dumps({"setting": setting, "runs": runs}))


if __name__ == "__main__":
    main()
