"""What the trainer costs, and what precision and layout bring. Prints JSON.

python benchmarks/train.py [--device auto] [--size 64] [--batch 16] [--width 32] [--rounds 12] [--threads N]

`overhead_percent` compares a step of the trainer with a bare loop over the same network, data and optimizer (no NaN check, no
history, no freezing), block by block in turn; it is the median over the blocks, on a CPU of processor time. Aim: below 3.
On a busy machine it is noisy, so the trainer's fixed cost is also taken from networks so small that little else is left.
"""

import argparse
import json
import platform
import statistics
import time

import torch

from deepswap.core import pick_device
from deepswap.train import AutoencoderMethod, RingOfGaussians, ToyGAN, Trainer, memory_mb


def pictures(batch, size, device):
    torch.manual_seed(0)
    return [(torch.rand(batch, 3, size, size) * 2 - 1).to(device) for _ in range(4)]


def wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(step, n, device, clock=time.perf_counter):
    "Seconds of one step, over a block of n."
    wait(device)
    start = clock()
    for _ in range(n):
        step()
    wait(device)
    return (clock() - start) / n


def running(method, data, device, **settings):
    "One trainer step as a function, with the trainer in the state that `fit` gives it."
    trainer = Trainer(method, data, steps=10**9, device=device, progress=False, **{"log_every": 10, **settings})
    trainer._begin()
    trainer._use(trainer.wrapped)
    return trainer, trainer._one_step


def bare_autoencoder(args, device):
    method = AutoencoderMethod(args.size, args.width).to(device)
    optimizer, data = method.optimizers()["ae"], pictures(args.batch, args.size, device)
    count = [0]

    def step():
        x = data[count[0] % len(data)]
        count[0] += 1
        optimizer.zero_grad(set_to_none=True)
        loss = (method.autoencoder(x) - x).abs().mean()
        loss.backward()
        optimizer.step()

    return step


def bare_toy(device):
    "The toy GAN's two updates without a trainer."
    method, data = ToyGAN().to(device), iter(RingOfGaussians(128))
    optimizers = method.optimizers()

    def step():
        real = next(data).to(device)
        for name, losses, batch in (("d", method.d_losses, (real, method.noise(128))), ("g", method.g_losses, (method.noise(128),))):
            optimizers[name].zero_grad(set_to_none=True)
            sum(losses(*batch).values()).backward()
            optimizers[name].step()

    return step


def overhead(bare, ours, block, rounds, device):
    "Median of the ratio of neighbouring blocks, and the two median times; on a CPU in processor time, which neighbours don't disturb."
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    for f in (bare, ours):
        timed(f, block, device)
    pairs = []
    for i in range(rounds):
        order = ((bare, ours), (ours, bare))[i % 2]
        t = {f: timed(f, block, device, clock) for f in order}
        pairs.append((t[bare], t[ours]))
    ratio = statistics.median(b / a for a, b in pairs)
    return round(100 * (ratio - 1), 2), *(round(1e3 * statistics.median(x), 3) for x in zip(*pairs))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--device", default="auto")
    p.add_argument("--size", type=int, default=64)
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--width", type=int, default=32)
    p.add_argument("--rounds", type=int, default=12)
    p.add_argument("--block", type=int, default=None, help="steps timed together (default: 8 on a CPU, 50 on a GPU)")
    p.add_argument("--threads", type=int, default=None)
    args = p.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = pick_device(args.device)
    block = args.block or (50 if device.type == "cuda" else 8)
    result = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "size": args.size,
        "batch": args.batch,
    }

    data = pictures(args.batch, args.size, device)
    bare = bare_autoencoder(args, device)
    for name, settings in (("", {}), ("_with_clip_and_ema", {"clip": 1.0, "ema": 0.999})):
        _, ours = running(AutoencoderMethod(args.size, args.width), data, device, **settings)
        percent, bare_ms, ours_ms = overhead(bare, ours, block, args.rounds, device)
        result[f"overhead_percent{name}"], result[f"step_ms{name}"] = percent, ours_ms
        result["bare_step_ms"] = bare_ms

    torch.manual_seed(0)
    _, toy = running(ToyGAN(), RingOfGaussians(128), device)
    _, bare_ms, ours_ms = overhead(bare_toy(device), toy, 50, args.rounds, device)
    result["toy_gan_step_ms"], result["fixed_cost_us_per_update"] = ours_ms, round(1e3 * (ours_ms - bare_ms) / 2, 1)
    result["fixed_cost_percent_of_a_step"] = round(100 * (ours_ms - bare_ms) / 2 / result["bare_step_ms"], 2)

    modes = {
        "fp32": {},
        "fp32 channels-last": {"channels_last": True},
        "bf16": {"precision": "bf16"},
        "bf16 channels-last": {"precision": "bf16", "channels_last": True},
    }
    if device.type == "cuda":
        modes["fp16 channels-last"] = {"precision": "fp16", "channels_last": True}
    steps = {name: running(AutoencoderMethod(args.size, args.width), data, device, **s)[1] for name, s in modes.items()}
    for f in steps.values():
        timed(f, block, device)
    seconds = {name: [] for name in steps}
    for _ in range(max(3, args.rounds // 2)):
        for name, f in steps.items():
            seconds[name].append(timed(f, block, device))
    rate = {name: args.batch / statistics.median(s) for name, s in seconds.items()}
    result["images_per_s"] = {name: round(r, 1) for name, r in rate.items()}
    result["ratio_to_fp32"] = {name: round(r / rate["fp32"], 2) for name, r in rate.items() if name != "fp32"}
    result["peak_memory_mb"] = round(memory_mb(device), 1)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
