"The growing CycleGAN: sizes, silence at alpha 0, the time-table, and resume across a growth."

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from common import Stop
from torch import nn

from deepswap.core import DataError, UsageError, WeightsError
from deepswap.progressive import GROWTH_STEPS, GrowingDiscriminator, GrowingGenerator, ProgressiveCycleGAN, fade_in, growth_at
from deepswap.train import Trainer, load_method

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def alone(one_thread):
    torch.manual_seed(0)


def layers(net):
    return sum(isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)) for m in net.modules())


# ---- the networks

def test_fade_in_is_a_mixture():
    a, b = torch.randn(2, 3), torch.randn(2, 3)
    assert torch.equal(fade_in(a, b, 0), a) and torch.equal(fade_in(a, b, 1.0), b)
    assert torch.allclose(fade_in(a, b, torch.tensor(0.25)), 0.75 * a + 0.25 * b)
    assert fade_in(a.bfloat16(), b, torch.tensor(0.5)).dtype == torch.float32  # autocast hands over mixed precisions


@pytest.mark.parametrize("size", [16, 32, 48, 64])
def test_layers_of_the_paper(size):
    x = torch.randn(2, 3, size, size)
    for k in range(1, 6):
        g, d = GrowingGenerator(4, k), GrowingDiscriminator(4, size, k)
        assert (layers(g) - 2, layers(d)) == (2 * k, k + 1)
        assert g(x).shape == x.shape and g(x).abs().max() <= 1
        out = d(x)
        assert out.shape[:2] == (2, 1) and out.shape[-1] >= 4 and out.shape[2] == out.shape[3]


def test_growing_at_alpha_0_changes_nothing():
    g, d, x = GrowingGenerator(4), GrowingDiscriminator(4, 32), torch.randn(2, 3, 32, 32)
    for _ in range(4):
        was = g(x), d(x)
        g.grow(), d.grow()
        g.alpha.fill_(0), d.alpha.fill_(0)
        assert torch.equal(g(x), was[0])
        assert torch.allclose(d(x), nn.functional.adaptive_avg_pool2d(was[1], d(x).shape[-2:]), atol=1e-6)
        g.alpha.fill_(1), d.alpha.fill_(1)
        mixed = d(x)
        assert d.settle() and not d.settle() and torch.equal(mixed, d(x))
        assert not torch.equal(g(x), was[0])
    for net in (g, d):
        with pytest.raises(UsageError, match="fully grown"): net.grow()


def test_every_parameter_gets_a_gradient_at_every_step():
    x = torch.randn(2, 3, 32, 32)
    for k in range(1, 6):
        g, d = GrowingGenerator(4, k), GrowingDiscriminator(4, 32, k)
        if k < 5:
            g.grow(), d.grow()
            g.alpha.fill_(0.5), d.alpha.fill_(0.5)
        d(g(x)).mean().backward()
        for net in (g, d): assert all(p.grad is not None for p in net.parameters())


# ---- the time-table

def test_time_table():
    for steps in (5, 7, 100, 1001):
        for last in (0.2, 0.6, 1.0):
            table = [growth_at(i, steps, 0.5, last) for i in range(steps)]
            parts = [k for k, _ in table]
            assert parts == sorted(parts) and parts[-1] == GROWTH_STEPS and all(0 < a <= 1 for _, a in table)
            if last == 0.2 and steps >= 5: assert set(parts) == {1, 2, 3, 4, 5}
    assert {growth_at(i, 50, 0)[1] for i in range(50)} == {1.0}
    assert growth_at(500, 100)[0] == GROWTH_STEPS and {growth_at(i, 50, last=1) for i in range(50)} == {(GROWTH_STEPS, 1.0)}


# ---- the method

def method(**more):
    return ProgressiveCycleGAN(**{"size": 32, "ngf": 4, "ndf": 4, **more})


class Pairs:
    def __init__(self, batch=2, seed=0): self.batch, self.dice = batch, torch.Generator().manual_seed(seed)
    def __iter__(self):
        while True: yield {k: torch.rand(self.batch, 3, 32, 32, generator=self.dice) * 2 - 1 for k in "ab"}
    def state_dict(self): return {"dice": self.dice.get_state()}
    def load_state_dict(self, state): self.dice.set_state(state["dice"])


def trainer(out=None, stop=None, steps=12, **more):
    torch.manual_seed(0)
    return Trainer(method(**more), Pairs(), out=out, steps=steps, seed=1, ema=0.9, progress=False, preview_every=5, callbacks=[Stop(stop)] if stop else [], device="cpu")


def weights(t):
    own = {k: v.clone() for k, v in t.method.state_dict().items()}
    return own | {f"average/{n}/{k}": v.clone() for n, net in t.averages.networks.items() for k, v in net.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def unbroken():
    torch.set_num_threads(1)
    return weights(trainer().fit())


@pytest.mark.parametrize("stop", [2, 3, 4, 5, 11])
def test_resume_across_a_growth_is_bit_for_bit(tmp_path, unbroken, stop):
    first = trainer(tmp_path / "run", stop).fit()
    assert first.step == stop and first.status == "stopped"
    second = trainer(tmp_path / "run").resume().fit()
    assert second.step == 12 and second.method.part == 5 and second.method.d_a.old is None
    assert same(weights(second), unbroken)


def test_without_fading(tmp_path):
    whole = weights(trainer(fade=0.0).fit())
    t = trainer(tmp_path / "run", 5, fade=0.0).fit()
    assert t.method.d_b.old is None and t.method.g_ab.alpha == 1
    assert same(weights(trainer(tmp_path / "run", fade=0.0).resume().fit()), whole)


def test_a_checkpoint_of_every_growth_step_loads(tmp_path):
    x = torch.randn(2, 3, 32, 32)
    seen = set()
    for stop in range(1, 12, 2):
        t = trainer(tmp_path / str(stop), stop).fit()
        loaded = load_method(tmp_path / str(stop), averaged=False, device="cpu")
        assert loaded.part == t.method.part and torch.equal(loaded.translate(x, "a"), t.method.translate(x, "a"))
        seen.add((loaded.part, loaded.d_a.old is not None))
    assert {1, 2, 3, 4, 5} == {p for p, _ in seen} and len({f for _, f in seen}) == 2


def test_rollback_to_before_a_growth(tmp_path):
    t = trainer(tmp_path / "run", 2).fit()
    small = t.snapshot()
    t = trainer(tmp_path / "run").resume().fit()
    assert t.method.part == 5
    t.restore(*small)
    assert t.method.part == 1 and len(t.method.g_ab.blocks) == 0 and len(t.optimizers["g"].param_groups[0]["params"]) == sum(1 for g in (t.method.g_ab, t.method.g_ba) for _ in g.parameters())


def test_momentum_is_kept_when_the_networks_grow():
    t = trainer(stop=4).fit()
    old = next(t.method.g_ab.first.parameters())
    newest = next(t.method.g_ab.downs[1].parameters())
    state = t.optimizers["g"].state
    assert state[old]["step"] == 4 and state[newest]["step"] < 4


def test_last_1_is_a_plain_cyclegan():
    m = method(last=1.0)
    assert m.part == 5 and not m.before_step(0, 100) and m.g_ab.alpha == 1 and m.d_a.old is None
    from deepswap.cyclegan import ResNetGenerator
    plain, x = ResNetGenerator(4, 3), torch.randn(2, 3, 32, 32)
    plain.load_state_dict({k: v for k, v in m.g_ab.state_dict().items() if k != "alpha"})
    assert torch.equal(plain(x), m.g_ab(x))


# ---- wrong use

@pytest.mark.parametrize("more", [{"fade": 1.5}, {"last": 0}, {"last": -1}, {"fade": -0.1}, {"size": 30}, {"ngf": 0}])
def test_settings_out_of_range(more):
    with pytest.raises(UsageError) as e: method(**more)
    assert "\n" not in str(e.value) and len(str(e.value)) > 20


@pytest.mark.parametrize("more", [{"generator": "unet"}, {"blocks": 2}, {"layers": 3}])
def test_what_grows_is_not_chosen(more):
    with pytest.raises(UsageError, match=f"{next(iter(more))} was given"): method(**more)


def test_the_checkpoint_of_another_configuration(tmp_path):
    trainer(tmp_path / "run", 3).fit()
    with pytest.raises(UsageError, match="fade was 0.5 and is 0.0"): trainer(tmp_path / "run", fade=0.0).resume()
    from deepswap.cyclegan import CycleGAN
    other = Trainer(CycleGAN(size=32, ngf=4, ndf=4, blocks=1), Pairs(), out=tmp_path / "run", steps=12, progress=False, device="cpu")
    with pytest.raises(UsageError, match="'progressive'.*'cyclegan'"): other.resume()
    file = tmp_path / "run" / "last.safetensors"
    file.write_bytes(file.read_bytes()[:-500])
    with pytest.raises(WeightsError, match="cut short"): load_method(file)


def test_data_that_cannot_be_learned_from():
    from deepswap.train import run
    for data, says in ((("procedural:person=1,n=1", "procedural:person=2,n=8"), "1 picture"), ("procedural:smiling", "pair")):
        with pytest.raises(DataError, match=says): run("progressive", data, 32, 2, 2, device="cpu", options={"ngf": 4, "ndf": 4})


# ---- the benchmark

def test_benchmark_runs(tmp_path):
    r = subprocess.run([sys.executable, str(ROOT / "benchmarks/progressive.py"), "--fast", "--arm", "faded"], capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})
    assert r.returncode == 0, r.stderr
    last = json.loads(r.stdout.splitlines()[-1])
    assert last["runs"][0]["rows"][-1]["part"] == 5 and last["setting"]["flops"]["5"] > last["setting"]["flops"]["1"]


def test_recorded_results_are_whole():
    found = json.loads((ROOT / "benchmarks/results/progressive.json").read_text())
    assert {r["arm"] for r in found["runs"]} == {"plain", "switched", "faded", "late"} and len({r["seed"] for r in found["runs"]}) >= 3
    for r in found["runs"]:
        assert r["rows"][-1]["step"] == r["steps"] and all(0 < row["ab"] < 60 for row in r["rows"])
