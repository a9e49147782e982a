"""What a swap and a training step of AEI-Net cost, for sizes, widths and precisions, against the equations as they are written.

python benchmarks/aei.py            prints JSON; --record writes benchmarks/results/aei.json (about three minutes)
python benchmarks/aei.py --fast     seconds, writes nothing

Networks are in evaluation mode with the weights they are born with; the identity encoder is not part of it. Each figure is the fastest of
several calls, in processor time of one thread, taken in turn with the others, because other programs may run beside. The baseline, "as written", computes both activations of
equation 4.6 and mixes them by equation 4.7 with the same layers in float32; that it gives the same pictures is checked first.
"""

import argparse
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent))
from cyclegan import clock, machine  # the benchmark beside this one

from deepswap import aei
from deepswap.core import seed_everything, write_json
from deepswap.norms import modulate

RESULTS = Path(__file__).parent / "results" / "aei.json"
DIM, CPU = 512, torch.device("cpu")
WAYS = ("as written", "fp32", "bf16", "bf16, channels last")


def as_written(h, attribute, identity, mask):
    "Equations 4.6 and 4.7, one operation after the other."
    A, identity = modulate(h, *attribute), modulate(h, *identity)
    return (1 - mask) * A + mask * identity


def around(way):
    "What a way needs around the call."
    if way == "as written":
        return mock.patch.object(aei, "integrate", as_written)
    return torch.autocast("cpu", dtype=torch.bfloat16) if way.startswith("bf16") else nullcontext()


def inputs(size, batch, way):
    x, z = torch.rand(batch, 3, size, size) * 2 - 1, F.normalize(torch.randn(batch, DIM))
    return (x.to(memory_format=torch.channels_last) if "channels" in way else x), z


def fastest(calls, repeats):
    "Name -> seconds: each call once to warm up, then all in turn."
    best = {}
    for k in range(repeats + 1):
        for name, call in calls.items():
            start = clock(CPU)
            call()
            if k:
                best[name] = min(best.get(name, 1e9), clock(CPU) - start)
    return best


def swap_row(size, width, repeats):
    "Parameters, multiplications and milliseconds of one swap."
    torch.set_num_threads(1)
    seed_everything(0)
    net = aei.AEINet(size, width, DIM).eval()
    calls = {}
    for way in WAYS:
        x, z = inputs(size, 1, way)
        mine = aei.AEINet(size, width, DIM).eval()
        mine.load_state_dict(net.state_dict())
        mine = mine.to(memory_format=torch.channels_last) if "channels" in way else mine

        def call(mine=mine, x=x, z=z, way=way):
            with torch.no_grad(), around(way):
                return mine(x, z)[0]

        calls[way] = call
    seed_everything(1)
    x, z = inputs(size, 1, "fp32")
    with torch.no_grad():
        ours = net(x, z)[0]
        with around("as written"):
            difference = (net(x, z)[0] - ours).abs().max().item()
    assert difference < 1e-4, f"the two ways differ by {difference}"
    ms = {k: round(1e3 * v, 1) for k, v in fastest(calls, repeats).items()}
    work = aei.work(net, x, z)[""]
    return {"size": size, "width": width, "threads": 1, "parameters": sum(p.numel() for p in net.parameters()), "multiplications": work, "ms": ms}


def step_row(size, width, batch, repeats):
    "Milliseconds of one training step on the reconstruction, forward and backward and Adam."
    torch.set_num_threads(1)
    calls = {}
    for way in WAYS[:3]:
        seed_everything(0)
        net = aei.AEINet(size, width, DIM)
        optimizer, (x, z) = torch.optim.Adam(net.parameters(), 4e-4), inputs(size, batch, way)

        def call(net=net, optimizer=optimizer, x=x, z=z, way=way):
            with around(way):
                loss = (net(x, z)[0].float() - x).square().mean() / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        calls[way] = call
    return {"size": size, "width": width, "batch": batch, "threads": 1, "ms": {k: round(1e3 * v) for k, v in fastest(calls, repeats).items()}}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--fast", action="store_true")
    a = parser.parse_args()
    plan = [(64, 8, 1)] if a.fast else [(s, w, 5) for s in (64, 128, 256) for w in (8, 16, 32)]
    rows = []
    for row in plan:
        rows.append(swap_row(*row))
        print(json.dumps(rows[-1]), flush=True)
    steps = [step_row(*row) for row in ([(64, 4, 2, 1)] if a.fast else [(64, 8, 16, 3), (64, 16, 16, 3)])]
    print(json.dumps(steps), flush=True)
    if a.record and not a.fast:
        write_json({"machine": machine(CPU), "swap": rows, "step": steps}, RESULTS)
