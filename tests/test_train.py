"The trainer: every promise of chapter 04, each with a test that can fail."

import csv
import errno
import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from ddp_worker import Noisy, Pictures, autoencoder, faces, gan, noisy
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import deepswap.train as train
from deepswap.core import DataError, DeepswapError, DeviceError, OutputError, TrainingError, UsageError, WeightsError
from deepswap.train import (
    EMA,
    METHODS,
    AutoencoderMethod,
    DropOnPlateau,
    LinearDecay,
    Method,
    RingOfGaussians,
    ToyGAN,
    Trainer,
    batch_length,
    frozen,
    load_method,
    pack,
    random_state,
    read_tensors,
    register,
    set_random_state,
    split_batch,
    to_device,
    unpack,
)

HERE = Path(__file__).parent
WORKER = str(HERE / "ddp_worker.py")
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
    ENV.pop(name, None)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def weights(trainer):
    return {k: v.clone() for k, v in trainer.method.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def far(a, b):
    return max(float((a[k] - b[k]).abs().max()) for k in a)


def one_line(e):
    assert "\n" not in str(e) and 20 < len(str(e)) < 420, str(e)
    return str(e)


class At:
    "Calls a function once, after a given step."

    def __init__(self, step, f):
        self.step, self.f = step, f

    def on_step(self, trainer):
        if trainer.step == self.step:
            self.f(trainer)


class Line(Method):
    "The smallest method: one weight, one number; `loss` may be replaced."

    name = "test-line"
    monitor = "loss"

    def __init__(self, lr=0.1):
        super().__init__(lr=lr)
        self.net = nn.Linear(1, 1, bias=False)

    def optimizers(self):
        return {"o": torch.optim.SGD(self.parameters(), self.config["lr"])}

    def loss(self, x):
        return {"loss": ((self.net(x) - 3 * x) ** 2).mean()}

    def step(self, batch, update):
        update("o", self.loss, batch)


def line(loss=None, lr=0.1, **settings):
    torch.manual_seed(0)
    method = Line(lr)
    if loss:
        method.loss = loss
    return Trainer(method, [torch.linspace(-1, 1, 8)[:, None]], progress=False, **{"steps": 20, **settings})


# Batches


@dataclass
class Inner:
    image: torch.Tensor
    person: torch.Tensor = None
    name: str = "x"

    def to(self, device):
        raise AssertionError("fields are moved one by one")


def test_batches_of_every_shape_are_measured_split_and_moved():
    x = torch.arange(10.0)[:, None]
    nested = {"a": (x, [x + 1]), "b": Inner(x, torch.arange(10)), "c": "text", "d": None, "e": torch.tensor(3)}
    assert batch_length(nested) == 10
    parts = split_batch(nested, 3)
    assert [batch_length(p) for p in parts] == [3, 3, 4]
    assert torch.equal(torch.cat([p["b"].image for p in parts]), x) and torch.equal(
        torch.cat([p["b"].person for p in parts]), torch.arange(10)
    )
    assert parts[0]["c"] == "text" and parts[0]["e"] == 3 and parts[1]["b"].name == "x"
    moved = to_device(nested, "cpu", channels_last=True)
    assert torch.equal(moved["a"][1][0], x + 1)
    assert to_device(torch.zeros(2, 3, 4, 4), "cpu", channels_last=True).is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(DataError, match="tensor"):
        batch_length({"a": "text"})


def test_networks_pass_through_a_split_whole():
    net, x = nn.Linear(2, 2), torch.zeros(4, 2)
    assert split_batch((net, x), 2)[1][0] is net


# What is learned


def test_the_autoencoder_learns():
    torch.manual_seed(0)
    rows = Trainer(AutoencoderMethod(16, 8, 32, lr=3e-3), Pictures(batch=20), steps=150, progress=False).fit().history
    assert rows[-1]["l1"] < 0.5 * rows[0]["l1"], (rows[0], rows[-1])


def test_the_toy_gan_finds_all_modes():
    torch.manual_seed(0)
    data = RingOfGaussians(256)
    trainer = Trainer(ToyGAN(), data, steps=1500, seed=0, ema=0.99, progress=False).fit()
    with trainer.averaged(), torch.no_grad():
        points = trainer.method.generator(trainer.method.noise(2000))
    near, which = torch.cdist(points, data.centres()).min(1)
    share = torch.bincount(which[near < 0.25], minlength=8) / 2000
    assert (share > 0.03).all() and share.sum() > 0.8, share


# Updates


def test_losses_of_a_batch_in_pieces_give_the_same_training():
    assert far(weights(gan(accumulate=1).fit()), weights(gan(accumulate=5).fit())) < 1e-5
    assert far(weights(autoencoder(accumulate=1).fit()), weights(autoencoder(accumulate=4).fit())) < 1e-5  # 10 pictures in 4 pieces
    assert far(weights(autoencoder(steps=1).fit()), weights(autoencoder(steps=2).fit())) > 1e-4  # the bound can fail


def test_outputs_of_pieces_are_joined():
    t = line(accumulate=3)
    got = t.update("o", lambda x: ({"loss": t.method.net(x).mean()}, {"x": x, "pair": (x, -x)}), torch.arange(8.0)[:, None])
    assert (
        torch.equal(got["x"].ravel(), torch.arange(8.0))
        and torch.equal(got["pair"][1].ravel(), -torch.arange(8.0))
        and not got["x"].requires_grad
    )


def test_losses_computed_already_are_taken_too_but_not_cut():
    class Plain(Line):
        def step(self, batch, update):
            update("o", **self.loss(batch))

    def make(**k):
        torch.manual_seed(0)
        return Trainer(Plain(), [torch.linspace(-1, 1, 8)[:, None]], steps=20, progress=False, **k)

    assert same(weights(make().fit()), weights(line().fit()))
    with pytest.raises(UsageError, match="cut"):
        make(accumulate=2).fit()


def test_a_gradient_penalty_goes_backward_twice_and_in_pieces():
    class Penalised(type(gan().method)):
        def d_losses(self, real, noise):
            mixed = (real + self.generator(noise).detach()).requires_grad_()
            (slope,) = torch.autograd.grad(self.discriminator(mixed).sum(), mixed, create_graph=True)
            return super().d_losses(real, noise) | {"penalty": (10.0, (slope.norm(dim=1) - 1).square().mean())}

    def make(kind, **k):
        t = gan(**k)
        t.method.__class__ = kind
        return t.fit()

    one, cut = make(Penalised, accumulate=1), make(Penalised, accumulate=4)
    assert far(weights(one), weights(cut)) < 1e-5 and far(weights(one), weights(gan().fit())) > 1e-4
    assert one.history[-1]["penalty"] < one.history[0]["penalty"]


def test_weights_stand_in_the_total_and_not_in_the_history():
    t = line(loss=lambda x: {"a": (10, t.method.net(x).mean()), "b": (0, torch.tensor(5.0))}, lr=1.0)
    before = t.method.net.weight.item()
    t.update("o", t.method.loss, torch.ones(4, 1))
    assert math.isclose(t.method.net.weight.item(), before - 10, rel_tol=1e-5)
    assert t._sums["a"][0] == pytest.approx(before) and t._sums["b"][0] == 5


@pytest.mark.parametrize("limit", [0.01, {"o": 0.01}])
def test_clipping_bounds_the_step(limit):
    for clip, low, high in ((None, 0.1, 10), (limit, 0.0099, 0.0101)):
        t = line(lr=1.0, clip=clip)
        before = t.method.net.weight.item()
        t.update("o", t.method.loss, torch.ones(4, 1))
        assert low < abs(t.method.net.weight.item() - before) < high
        assert t._sums["grad_o"][0] > 0.1  # the history tells the norm before clipping


def test_each_optimizer_moves_its_own_networks_and_the_rest_is_frozen():
    t = gan()
    method, (real, noise) = t.method, next(iter(t.data))
    seen = []

    def watched(*batch):
        seen.append([p.requires_grad for p in method.discriminator.parameters()])
        return method.g_losses(*batch)

    before = weights(t)
    t.update("g", watched, noise)
    after = weights(t)
    assert not any(sum(seen, [])) and all(p.requires_grad for p in method.discriminator.parameters())
    assert all(p.grad is None for p in method.discriminator.parameters())
    assert all(torch.equal(before[k], after[k]) == k.startswith("discriminator") for k in before)
    t.update("d", method.d_losses, real, noise)
    assert all(torch.equal(after[k], v) == k.startswith("generator") for k, v in weights(t).items())


def test_frozen_restores_only_what_it_froze():
    net = nn.Linear(2, 2)
    net.bias.requires_grad_(False)
    with frozen(net):
        assert not net.weight.requires_grad
        with frozen(net):
            pass
        assert not net.weight.requires_grad
    assert net.weight.requires_grad and not net.bias.requires_grad


def test_several_discriminator_steps_and_rates():
    torch.manual_seed(0)
    trainer = Trainer(ToyGAN(k=3, lr_g=1e-4, lr_d=4e-4), RingOfGaussians(32), steps=5, progress=False).fit()
    steps = {k: int(next(iter(o.state.values()))["step"]) for k, o in trainer.optimizers.items()}
    assert steps == {"d": 15, "g": 5}
    assert trainer.history[-1]["lr_g"] == 1e-4 and trainer.history[-1]["lr_d"] == 4e-4


def test_a_mistaken_step_is_named():
    t = line()
    x = torch.ones(4, 1)
    for f, word in (
        (lambda x: {"loss": (t.method.net(x) - x) ** 2}, "shape"),
        (lambda x: {"loss": t.method.net(x).detach().mean()}, "depends on"),
    ):
        with pytest.raises(TrainingError, match=word) as e:
            t.update("o", f, x)
        one_line(e.value)
    with pytest.raises(UsageError, match="no optimizer 'p'"):
        t.update("p", t.method.loss, x)


# Schedules


def test_schedules():
    decay = LinearDecay(0.5)
    assert [decay(s, 100) for s in (0, 49, 75, 100)] == pytest.approx([1, 1, 0.5, 0])
    rows = line(steps=10, schedules={"o": LinearDecay(0.5, end=0.1)}).fit().history
    assert [r["lr_o"] for r in rows] == pytest.approx([0.1] * 6 + [0.082, 0.064, 0.046, 0.028])
    plateau = DropOnPlateau(factor=0.1, patience=3, lowest=0.01)
    for step, value in enumerate([5, 4, 4, 4, 4, 4, 4, 4, 3, 3, 3, 3, 3, 3, 3]):
        plateau.observe(step, value)
    assert plateau(0, 1) == 0.01
    rows = line(loss=None, lr=0.4, steps=60, schedules={"o": DropOnPlateau(0.5, patience=5)}).fit().history
    assert rows[0]["lr_o"] == 0.4 and rows[-1]["lr_o"] < 0.4
    for wrong in ({"schedules": {"x": LinearDecay()}}, {"clip": {"x": 1.0}}):
        with pytest.raises(UsageError, match="'x'"):
            line(**wrong)
    with pytest.raises(UsageError, match="nothing to watch"):
        gan(schedules={"g": DropOnPlateau()})
    assert gan(schedules={"g": DropOnPlateau()}, monitor="g_adv").monitor == "g_adv"


# EMA


def test_ema_is_the_formula_and_is_what_previews_and_weights_use(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    ema, expected = EMA({"n": net}, 0.5), net[0].weight.detach().clone()
    for i in range(1, 6):
        with torch.no_grad():
            net[0].weight += 1
            net[1].running_mean += 1
        ema.update({"n": net})
        d = min(0.5, (1 + i) / (10 + i))
        expected = d * expected + (1 - d) * net[0].weight
    assert torch.allclose(ema.networks["n"][0].weight, expected) and torch.equal(ema.networks["n"][1].running_mean, net[1].running_mean)
    t = gan(tmp_path / "a").fit()
    average = t.averages.networks["generator"].state_dict()
    raw = t.method.generator.state_dict()
    assert set(t.averages.networks) == {"generator"} and far(average, raw) > 1e-4
    with t.averaged():
        assert t.method.generator is t.averages.networks["generator"]
    assert t.method.generator is t.networks["generator"]
    METHODS["test-fixed-noise"] = type(t.method)
    for path in (tmp_path / "a", tmp_path / "a/weights-last.safetensors"):
        assert same(load_method(path).generator.state_dict(), average)
    assert same(load_method(tmp_path / "a", averaged=False).generator.state_dict(), raw)
    kept = read_tensors(tmp_path / "a/weights-last.safetensors")[0]
    assert not any("optimizer" in k or "average" in k for k in kept) and same(
        {k[18:]: v for k, v in kept.items() if k.startswith("network/generator/")}, average
    )


# Precision, layout, compile


def test_precisions_are_what_they_say():
    with pytest.raises(DeviceError, match="not available on cpu") as e:
        line(precision="fp16", device="cpu")
    one_line(e.value)
    with pytest.raises(UsageError, match="bf17"):
        line(precision="bf17")
    for precision, expected in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        t, seen = autoencoder(precision=precision, steps=3, device="cpu"), set()
        t.method.autoencoder.encoder[0].register_forward_hook(lambda m, i, o, seen=seen: seen.add(o.dtype))
        t.fit()
        assert seen == {expected} and {p.dtype for p in t.method.parameters()} == {torch.float32}
    assert t.history[-1]["l1"] == pytest.approx(autoencoder(steps=3).fit().history[-1]["l1"], rel=0.05)


@pytest.mark.parametrize("can, expected", (({"avx512_bf16": True, "amx_bf16": False}, "bf16"), ({"avx512_bf16": False, "amx_bf16": True}, "bf16"), ({"bf16": True}, "bf16"),
                                           ({"avx512_bf16": False, "avx2": True}, "fp32"), ({}, "fp32")))
def test_auto_takes_bf16_only_where_the_processor_has_it(monkeypatch, can, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: can, raising=False)
    assert line(precision="auto", device="cpu").precision == expected
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert line(precision="bf16", device="cpu").precision == "bf16"
    assert bool(said) == (expected == "fp32") and all("precision='auto'" in str(w.message) for w in said)


def test_fp16_skips_steps_that_overflow_and_reports_those_that_always_do(monkeypatch):
    "The scaler's part of fp16 training, on the CPU, where it is slow and else refused."
    monkeypatch.setattr(train, "check_precision", lambda precision, device: precision)
    trail = []
    t = line(precision="fp16", steps=8, device="cpu", loss=lambda x: {"loss": ((t.method.net(x) - 3 * x) ** 2).mean() * (1e30 if t.step == 4 else 1)})
    t.callbacks = [type("Trail", (), {"on_step": lambda self, t: trail.append((t.method.net.weight.item(), t.scaler.get_scale()))})()]
    before = [(t.method.net.weight.item(), t.scaler.get_scale())]
    t.fit()
    skipped = [s1 < s0 for (_, s0), (_, s1) in zip(before + trail, trail, strict=False)]
    assert [w1 == w0 for (w0, _), (w1, _) in zip(before + trail, trail, strict=False)] == skipped  # and scaled by less from then on
    assert skipped[4] and sum(skipped) < 4
    exact = line(steps=8 - sum(skipped), device="cpu").fit()
    assert trail[-1][0] == pytest.approx(exact.method.net.weight.item(), rel=1e-2)
    assert all(math.isfinite(v) for r in t.history for v in r.values())
    t = line(precision="fp16", steps=100, device="cpu", loss=lambda x: {"loss": (t.method.net(x) - t.method.net(x).detach()).abs().sqrt().mean()})
    with pytest.raises(TrainingError, match="the gradient of 'o' became"):
        t.fit()
    assert t.step < 30


def test_channels_last_reaches_the_convolutions():
    t, seen = autoencoder(channels_last=True, steps=3), []
    t.method.autoencoder.encoder[2].register_forward_hook(
        lambda m, i, o: seen.append(i[0].is_contiguous(memory_format=torch.channels_last))
    )
    t.fit()
    assert seen and all(seen) and t.method.autoencoder.encoder[2].weight.is_contiguous(memory_format=torch.channels_last)
    assert far(weights(t), weights(autoencoder(steps=3).fit())) < 2e-3


def test_compile_where_asked():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    a, b = autoencoder(steps=3).fit(), autoencoder(steps=3, compile=backend, ema=0.9).fit()
    assert graphs and far(weights(a), weights(b)) < 1e-5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_training_on_a_gpu(precision, tmp_path):
    t = autoencoder(tmp_path / "run", steps=300, batch=20, device="cuda", precision=precision, channels_last=True).fit()
    assert t.history[-1]["l1"] < 0.5 * t.history[0]["l1"] and t.history[-1]["memory_mb"] > 0
    assert next(t.method.parameters()).is_cuda


# Random numbers and packing


def test_random_state_covers_python_numpy_and_torch():
    state = random_state()
    draw = lambda: (random.random(), np.random.rand(), torch.rand(1).item(), torch.randn(1).item(), random.gauss(0, 1), np.random.randn())
    first = draw()
    tensors = {}
    set_random_state(unpack(json.loads(json.dumps(pack(state, tensors, "r"))), tensors))
    assert draw() == first


def test_packing_keeps_plain_trees_and_refuses_the_rest():
    tree = {
        "a": (1, [2.5, None, True]),
        3: {"x": torch.arange(3)},
        "n": np.arange(4, dtype=np.uint32),
        "f": np.float64(0.1),
        "inf": math.inf,
    }
    tensors = {}
    back = unpack(json.loads(json.dumps(pack(tree, tensors, "t"))), tensors)
    assert back["a"] == (1, [2.5, None, True]) and torch.equal(back[3]["x"], torch.arange(3)) and back["inf"] == math.inf
    assert back["n"].dtype == np.uint32 and list(back["n"]) == [0, 1, 2, 3] and back["f"] == 0.1
    with pytest.raises(TrainingError, match="state/f.*function"):
        pack({"f": lambda: 0}, {}, "state")


# Checkpoints


def test_last_best_and_every_n(tmp_path):
    t = autoencoder(tmp_path / "run", steps=30, checkpoint_every=5, keep_every=10, ema=0.9).fit()
    names = {p.name for p in (tmp_path / "run").iterdir()}
    assert names == {"last.safetensors", "best.safetensors", "weights-last.safetensors", "config.json", "history.csv", "history.jsonl"} | {
        f"step-{n:08d}.safetensors" for n in (10, 20, 30)
    }
    step = lambda name: read_tensors(tmp_path / "run" / name)[1]["step"]
    assert step("last.safetensors") == 30 and step("step-00000020.safetensors") == 20
    with safe_open(tmp_path / "run/last.safetensors", "pt") as f:
        keys = set(f.keys())
    assert "network/autoencoder/encoder.0.weight" in keys and "average/autoencoder/encoder.0.weight" in keys
    means = {s: np.mean([r["l1"] for r in t.history if s - 5 < r["step"] <= s]) for s in range(5, 31, 5)}
    assert step("best.safetensors") == min(means, key=means.get)
    rows = [json.loads(r) for r in (tmp_path / "run/history.jsonl").read_text().splitlines()]
    assert rows == t.history and len(rows) == 30
    table = list(csv.DictReader((tmp_path / "run/history.csv").open()))
    assert [float(r["l1"]) for r in table] == [r["l1"] for r in t.history]


def test_best_does_not_follow_a_loss_that_rises(tmp_path):
    t = line(loss=lambda x: {"loss": t.method.net(x).mean() * 0 + abs(t.step - 6.0)}, out=tmp_path / "run", checkpoint_every=1, steps=12)
    t.fit()
    assert read_tensors(tmp_path / "run/best.safetensors")[1]["step"] == 7 and t.history[6]["loss"] == 0


@pytest.mark.parametrize("when", ["at once", "half way"])
def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch, when):
    t = noisy(tmp_path / "run", steps=7, log_every=7).fit()
    before = (tmp_path / "run/last.safetensors").read_bytes()
    real = train.save_file

    def full(tensors, path, metadata=None):
        if when == "half way":
            real(tensors, path, metadata=metadata)
            Path(path).write_bytes(Path(path).read_bytes()[: len(before) // 2])
        raise train.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(train, "save_file", full)
    t.steps = 14
    with pytest.raises(OutputError, match="disk is full") as e:
        t.fit()
    one_line(e.value)
    assert (tmp_path / "run/last.safetensors").read_bytes() == before and not list((tmp_path / "run").glob(".*"))
    assert errno.ENOSPC == 28 or sys.platform != "linux"
    monkeypatch.undo()
    again = noisy(tmp_path / "run", steps=14, log_every=7).resume().fit()
    assert same(weights(again), weights(noisy(steps=14, log_every=7).fit()))


def test_a_write_that_the_system_cuts_short(tmp_path):
    out = tmp_path / "run"
    done = subprocess.run([sys.executable, WORKER, "full_disk", str(out)], env=ENV, capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith("OutputError: ") and done.stdout.count("\n") == 1, done.stdout + done.stderr
    assert read_tensors(out / "last.safetensors")[1]["step"] == 7 and not list(out.glob(".*"))


def damaged(path, kind):
    data = bytearray(path.read_bytes())
    bad = path.with_name(f"{kind}.safetensors")
    if kind == "cut":
        data = data[: len(data) * 2 // 3]
    if kind == "header":
        data = data[:50]
    if kind == "empty":
        data = b""
    if kind == "flipped":
        data[-100] ^= 1
    if kind == "text":
        data = b"hello, I am not a checkpoint\n" * 10
    bad.write_bytes(data)
    if kind == "foreign":
        save_file({"a": torch.zeros(2)}, bad)
    if kind == "pickle":
        torch.save({"a": torch.zeros(2)}, bad)
    if kind == "newer":
        save_file({"a": torch.zeros(2)}, bad, metadata={"deepswap": json.dumps({"format": 99})})
    return bad


@pytest.mark.parametrize("kind", ["cut", "header", "empty", "flipped", "text", "foreign", "pickle", "newer", "missing", "folder"])
def test_broken_checkpoints_say_so_in_one_sentence(tmp_path, kind):
    t = noisy(tmp_path / "run", steps=3).fit()
    bad = (
        damaged(tmp_path / "run/last.safetensors", kind)
        if kind not in ("missing", "folder")
        else tmp_path / ("no.safetensors" if kind == "missing" else ".")
    )
    before = weights(t)
    for f in (lambda: load_method(bad), lambda: t.resume(bad)):
        with pytest.raises(WeightsError) as e:
            f()
        one_line(e.value)
    assert same(before, weights(t))


def test_a_checkpoint_of_other_networks_is_named(tmp_path):
    tensors, info = read_tensors(line(out=tmp_path / "run").fit().out / "last.safetensors")
    net = nn.Linear(1, 1, bias=False)
    train.load_network(net, tensors, "network/net/")
    for other, word in ((nn.Linear(1, 1), "lacks"), (nn.Linear(2, 1, bias=False), r"\(1, 1\).*\(1, 2\)")):
        with pytest.raises(WeightsError, match=word) as e:
            train.load_network(other, tensors, "network/net/")
        one_line(e.value)


# Resume


def test_resume_names_what_differs(tmp_path):
    out = tmp_path / "run"
    autoencoder(out, steps=3, about={"batch": 10}).fit()
    cases = [
        (Trainer(AutoencoderMethod(size=16, width=8, code=8), Pictures(), out=out, about={"batch": 10}), "width was 4 and is 8"),
        (Trainer(AutoencoderMethod(size=16, width=4, code=8), Pictures(), out=out, about={"batch": 12}), "batch was 10 and is 12"),
        (Trainer(ToyGAN(), RingOfGaussians(8), out=out), "'autoencoder'.*'toy-gan'"),
    ]
    for trainer, word in cases:
        before = weights(trainer)
        with pytest.raises(UsageError, match=word) as e:
            trainer.resume()
        one_line(e.value)
        assert same(before, weights(trainer))
    with pytest.raises(WeightsError, match="weights only"):
        autoencoder(out, about={"batch": 10}).resume(out / "weights-last.safetensors")
    with pytest.raises(UsageError, match="holds a run already"):
        autoencoder(out).fit()
    with pytest.raises(UsageError, match="nothing to resume"):
        autoencoder().resume()
    with pytest.raises(WeightsError, match=r"no last\.safetensors"):
        autoencoder(tmp_path).resume()


def test_a_run_may_go_on_in_another_folder(tmp_path):
    autoencoder(tmp_path / "a", steps=3).fit()
    t = autoencoder(tmp_path / "deep" / "b", steps=6).resume(tmp_path / "a").fit()
    assert read_tensors(tmp_path / "a/last.safetensors")[1]["step"] == 3 and read_tensors(tmp_path / "deep/b/last.safetensors")[1]["step"] == 6
    assert same(weights(t), weights(autoencoder(steps=6).fit()))


def test_optimizers_that_no_longer_fit_are_named(tmp_path):
    line(out=tmp_path / "run", steps=3).fit()
    other = line(out=tmp_path / "run")
    other.method.optimizers = lambda: {"p": torch.optim.SGD(other.method.parameters(), 0.1)}
    other._build()
    with pytest.raises(WeightsError, match=r"\['o'\].*\['p'\]") as e:
        other.resume()
    one_line(e.value)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken")
    trainer = noisy(out / "run").fit()
    assert min(r["lr_ae"] for r in trainer.history) < 1e-3, "the plateau schedule should have dropped in this run"
    return load_file(out / "run/last.safetensors"), trainer


def compare(out, unbroken):
    "Every tensor of the final checkpoints: networks, averages, optimizers, random and data state."
    ours = load_file(out / "last.safetensors")
    assert ours.keys() == unbroken[0].keys()
    different = [k for k in ours if k != "state" and not torch.equal(ours[k], unbroken[0][k])]
    assert not different and any(k.startswith("average/") for k in ours) and any("exp_avg" in k for k in ours)
    timeless = lambda rows: [{k: v for k, v in r.items() if k not in ("images_per_s", "seconds", "memory_mb")} for r in rows]
    assert timeless(map(json.loads, (out / "history.jsonl").read_text().splitlines())) == timeless(unbroken[1].history)


def signalled(out, number, step):
    "Run until `step`, send a signal, and give the exit code and the last lines."
    p = subprocess.Popen([sys.executable, WORKER, "noisy", str(out)], env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for text in p.stdout:
        if text.strip() == str(step):
            p.send_signal(number)
            break
    rest = p.stdout.read()
    p.stdout.close()
    p.stderr.close()
    return p.wait(60), rest


def test_killed_in_mid_epoch_and_resumed_is_bit_for_bit_the_unbroken_run(tmp_path, unbroken):
    out = tmp_path / "run"
    killed = subprocess.run(
        [sys.executable, WORKER, "noisy", str(out), '{"kill_at": 25}'], env=ENV, capture_output=True, text=True, timeout=120
    )
    assert killed.returncode == -signal.SIGKILL and killed.stdout.endswith("24\n")  # an epoch is 4 steps, saves fall on multiples of 7
    step = read_tensors(out / "last.safetensors")[1]["step"]
    assert step == 21 and step % 4 != 0
    done = subprocess.run(
        [sys.executable, WORKER, "noisy", str(out), '{"resume": true}'], env=ENV, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.startswith("22\n") and done.stdout.endswith("done 40\n"), done.stderr
    compare(out, unbroken)


def test_ctrl_c_saves_and_stops_and_the_rest_is_bit_for_bit(tmp_path, unbroken):
    out = tmp_path / "run"
    code, rest = signalled(out, signal.SIGINT, 11)
    last = read_tensors(out / "last.safetensors")[1]["step"]
    assert code == 0 and 11 <= last < 40 and f"stopped {last}" in rest
    noisy(out).resume().fit()
    compare(out, unbroken)


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    def twice(trainer):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        noisy(tmp_path / "run", callbacks=[At(9, twice)]).fit()
    assert signal.getsignal(signal.SIGINT) is handler and read_tensors(tmp_path / "run/last.safetensors")[1]["step"] == 7


def test_data_without_state_are_wound_forward(tmp_path):
    pictures = [torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(i)) for i in range(5)]

    def make(out=None, **k):
        torch.manual_seed(1)
        return Trainer(AutoencoderMethod(16, 4, 8), pictures, out=out, steps=13, progress=False, **k)

    make(tmp_path / "run", callbacks=[At(7, lambda t: t.request_stop())]).fit()
    assert same(weights(make(tmp_path / "run").resume().fit()), weights(make().fit()))


def test_no_data():
    torch.manual_seed(0)
    with pytest.raises(DataError, match="no batch"):
        Trainer(Line(), [], progress=False).fit()


@register
class Growing(Method):
    "Gets a layer at step 5, as a progressively grown network does."

    name = "test-growing"
    averaged = ("net",)

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 2))

    def grow(self):
        self.net = nn.Sequential(*self.net, nn.Linear(2, 2))

    def before_step(self, step, steps):
        if step == 5 and len(self.net) == 1:
            self.grow()
            return True

    def extra_state(self):
        return {"layers": len(self.net)}

    def load_extra_state(self, state):
        while len(self.net) < state["layers"]:
            self.grow()

    def optimizers(self):
        return {"o": torch.optim.Adam(self.net.parameters(), 0.01)}

    def losses(self, x):
        return {"loss": ((self.net(x) - x.flip(1)) ** 2).mean()}

    def step(self, batch, update):
        update("o", self.losses, batch)


def test_networks_may_grow_and_resume_grown(tmp_path):
    def make(out=None, **k):
        torch.manual_seed(2)
        return Trainer(Growing(), RingOfGaussians(16), out=out, seed=2, steps=12, ema=0.9, progress=False, **k)

    whole = make()
    fives = []
    whole.callbacks = [
        At(5, lambda t: fives.append(t.optimizers["o"].state[t.method.net[0].weight]["exp_avg"].clone())),
        At(6, lambda t: fives.append(t)),
    ]
    whole.fit()
    assert len(whole.method.net) == len(whole.averages.networks["net"]) == 2
    steps = {int(s["step"]) for s in whole.optimizers["o"].state.values()}
    assert steps == {12, 7}  # old parameters kept their moments, new ones began at step 5
    make(tmp_path / "run", callbacks=[At(8, lambda t: t.request_stop())]).fit()
    again = make(tmp_path / "run").resume().fit()
    assert same(weights(again), weights(whole)) and same(
        again.averages.networks["net"].state_dict(), whole.averages.networks["net"].state_dict()
    )
    assert same(load_method(tmp_path / "run").state_dict(), {f"net.{k}": v for k, v in again.averages.networks["net"].state_dict().items()})


# Not a number


def poisoned(step, name="loss", value=math.nan, times=1, gradient=False, **settings):
    left = [times]

    def loss(x):
        y = ((t.method.net(x) - 3 * x) ** 2).mean()
        if t.step + 1 == step and left[0]:
            left[0] -= 1
            y = (y - y.detach()).abs().sqrt() if gradient else y * value
        return {name: y}

    t = line(loss=loss, **settings)
    return t


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_a_number_stops_the_run_and_is_named(tmp_path, value):
    t = poisoned(13, "cycle", value, out=tmp_path / "run", checkpoint_every=5)
    with pytest.raises(TrainingError, match=f"step 13 because loss 'cycle' became {value}") as e:
        t.fit()
    assert "last.safetensors" in one_line(e.value) and t.status == "failed"
    assert read_tensors(tmp_path / "run/last.safetensors")[1]["step"] == 10 and t.method.net.weight.isfinite().all()


def test_a_gradient_that_is_not_a_number_is_caught_though_the_loss_is_finite():
    t = poisoned(13, gradient=True)
    with pytest.raises(TrainingError, match="step 13 because the gradient of 'o' became"):
        t.fit()
    assert t.method.net.weight.isfinite().all()


def test_rollback_goes_to_the_last_good_state_and_on(capsys):
    t, seen = poisoned(13, on_nan="rollback", checkpoint_every=5), []
    at_ten = []
    t.callbacks = [At(10, lambda t: at_ten.append(t.method.net.weight.clone()))]
    restore = t.restore
    t.restore = lambda *a, **k: (restore(*a, **k), seen.append(t.method.net.weight.clone()))
    t.fit()
    assert t.step == 20 and torch.equal(seen[0], at_ten[0]) and len(at_ten) == 1
    assert t.events == ["Step 13: loss 'loss' became nan; back to step 10 with fresh data."] and t.events[0] in capsys.readouterr().err
    assert [r["step"] for r in t.history] == list(range(1, 21)) and all(math.isfinite(r["loss"]) for r in t.history)


def test_rollback_twice_starts_from_the_same_state():
    t, seen = poisoned(13, times=3, on_nan="rollback", checkpoint_every=5), []
    t.method.optimizers = lambda: {"o": torch.optim.Adam(t.method.parameters(), 0.1)}
    t._build()
    restore = t.restore
    t.restore = lambda *a, **k: (
        restore(*a, **k),
        seen.append([s["step"].item() for s in t.optimizers["o"].state.values()] + [t.method.net.weight.item()]),
    )
    t.fit()
    assert len(seen) == 3 and seen[0] == seen[1] == seen[2] and seen[0][0] == 10 and t.step == 20


def test_endless_rollbacks_stop():
    t = poisoned(13, times=99, on_nan="rollback", checkpoint_every=5, max_rollbacks=3)
    with pytest.raises(TrainingError, match="after 3 rollbacks"):
        t.fit()
    assert len(t.events) == 3


# Memory


def small_memory(t, most):
    "The method's losses, on a machine whose memory holds `most` items."
    losses = t.method.losses

    def limited(image, *rest):
        torch.rand(3)  # randomness used before the failure must not count
        if len(image) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return losses(image, *rest)

    t.method.losses = limited
    return t


def test_when_memory_runs_out_batches_are_cut_and_the_training_is_the_same(capsys):
    t = small_memory(noisy(), 3).fit()
    assert t.accumulate == 4 and len(t.events) == 2 and "Step 1: memory ran out" in capsys.readouterr().err
    expected = noisy(accumulate=4)
    expected.method.losses = lambda *b, f=expected.method.losses: (torch.rand(3), f(*b))[1]
    assert same(weights(t), weights(expected.fit()))
    whole = noisy()
    assert far(weights(small_memory(autoencoder(), 3).fit()), weights(autoencoder().fit())) < 1e-5 and whole.accumulate == 1


def test_memory_that_cannot_hold_one_picture():
    with pytest.raises(DeviceError, match="can't be cut further") as e:
        small_memory(noisy(), 0).fit()
    one_line(e.value)


def test_other_errors_are_not_taken_for_memory():
    t = line(loss=lambda x: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        t.fit()
    t = line(loss=lambda x: {"loss": t.method.net(torch.ones(2, 5)).mean()})
    with pytest.raises(RuntimeError, match="shapes"):
        t.fit()


def test_the_cut_is_kept_on_resume(tmp_path):
    small_memory(noisy(tmp_path / "run", steps=8), 3).fit()
    assert noisy(tmp_path / "run").resume().accumulate == 4


# Around the loop


def test_progress_bar_tells_throughput_time_left_and_memory(capsys):
    autoencoder(steps=30, progress=True).fit()
    text = capsys.readouterr().err.split("\r")[-1]
    assert "autoencoder" in text and "30/30" in text and "images/s" in text and " MB" in text and "<00:0" in text


def test_pause_stop_and_the_live_panel(tmp_path):
    show = pytest.importorskip("deepswap.show")
    t = line(steps=100_000, out=tmp_path / "run", log_every=10)
    panel = show.LivePanel(every=0.01, display=True)
    t.callbacks = [panel]
    thread = show.in_background(t)
    wait = lambda f: next(i for i in range(1000) if f() or time.sleep(0.01))
    wait(lambda: t.step > 20)
    panel.toggle_pause()
    wait(lambda: t.status == "paused")
    step = t.step
    time.sleep(0.15)
    assert t.step == step
    panel.toggle_pause()
    wait(lambda: t.step > step)
    panel.stop()
    thread.join(20)
    assert not thread.is_alive() and t.status == "stopped" and t.step < 100_000
    assert read_tensors(tmp_path / "run/last.safetensors")[1]["step"] == t.step and panel.drawings > 1


def test_stop_while_paused():
    t = line(steps=100_000, callbacks=[At(5, lambda t: t.pause())])
    threading.Timer(0.3, t.request_stop).start()
    assert t.fit().status == "stopped" and t.step == 5


def test_previews_are_written_and_told_and_do_not_disturb(tmp_path):
    pytest.importorskip("deepswap.show")
    got = []

    class Listen:
        def on_preview(self, trainer, images):
            got.append((trainer.step, images))

    def make(**k):
        torch.manual_seed(0)
        return Trainer(ToyGAN(width=8), RingOfGaussians(32), steps=20, seed=0, ema=0.9, progress=False, **k)

    t = make(out=tmp_path / "run", preview_every=8, callbacks=[Listen()]).fit()
    assert [s for s, _ in got] == [8, 16] and got[0][1].shape == (1, 3, 128, 128)
    assert sorted(p.name for p in (tmp_path / "run/previews").iterdir()) == ["step-00000008.jpg", "step-00000016.jpg"]
    assert same(weights(t), weights(make().fit()))


def test_numbers_of_callbacks_enter_the_history():
    rows = line(steps=4, callbacks=[At(2, lambda t: t.log(val=0.5))]).fit().history
    assert [r.get("val") for r in rows] == [None, None, 0.5, None]
    assert {"step", "loss", "grad_o", "lr_o", "images_per_s", "seconds", "memory_mb"} <= rows[0].keys()


def test_rows_are_means(unbroken):
    fine, coarse = noisy(log_every=1, steps=12), noisy(log_every=4, steps=12)
    for t in (fine, coarse):
        t.rates["ae"] = train.Constant()
        t.fit()
    assert [r["step"] for r in coarse.history] == [4, 8, 12]
    assert coarse.history[1]["l1"] == pytest.approx(np.mean([r["l1"] for r in fine.history[4:8]]))


@pytest.mark.parametrize(
    "settings", [{"steps": 0}, {"accumulate": 0}, {"steps": 1.5}, {"on_nan": "ignore"}, {"ema": 1.0}, {"checkpoint_every": -1}]
)
def test_settings_out_of_range(settings):
    with pytest.raises(UsageError) as e:
        line(**settings)
    one_line(e.value)


def test_an_output_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError) as e:
        line(out=tmp_path / "file" / "run").fit()
    one_line(e.value)


def test_a_method_of_no_name_or_of_an_unknown_one(tmp_path):
    with pytest.raises(UsageError, match="name"):
        register(type("Nameless", (Method,), {}))
    line(out=tmp_path / "run").fit()
    with pytest.raises(WeightsError, match="'test-line'") as e:
        load_method(tmp_path / "run")
    one_line(e.value)


# Several processes


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    out = tmp_path_factory.mktemp("two")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", WORKER, "everything", str(out)]
    done = subprocess.run(launch, env=ENV, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.parametrize("name,make", [("gan", gan), ("autoencoder", autoencoder), ("faces", faces)])
def test_two_processes_do_what_one_does(two, name, make):
    one = make().fit()
    expected = {f"network/{k}": v for k, v in weights(one).items()}
    found = load_file(two / f"{name}.safetensors")
    assert far(expected, found) < 5e-6  # sums of two halves round otherwise than the sum of the whole; what differs really, differs by 1e-4 (below)
    rows = json.loads((two / f"{name}.json").read_text())
    for key in ("d_real", "g_adv") if name == "gan" else ("l1", "grad_ae"):
        assert [r[key] for r in rows] == pytest.approx([r[key] for r in one.history], rel=1e-4)
    if name == "faces":
        return
    alone = make(batch=(32 if name == "gan" else 5)).fit()  # what each would have learned from its own half
    assert far({f"network/{k}": v for k, v in weights(alone).items()}, found) > 1e-4


def test_two_processes_roll_back_together(two):
    assert json.loads((two / "events.json").read_text()) == [12, ["Step 8: loss 'l1' became nan; back to step 6 with fresh data."]]


def test_two_processes_resume(two):
    assert far(load_file(two / "halves.safetensors"), load_file(two / "whole.safetensors")) < 1e-6
    assert (
        len(
            unpack(
                json.loads(bytes(read_tensors(two / "gan/last.safetensors")[0]["state"].numpy())), load_file(two / "gan/last.safetensors")
            )["random"]
        )
        == 2
    )


def test_one_process_goes_on_where_two_stopped(two, tmp_path):
    t = gan(steps=15)
    t.resume(two / "gan")
    assert t.step == 12 and "2 process" in t.events[-1]
    assert t.fit().step == 15


def test_notebook_launcher(tmp_path, two):
    done = subprocess.run([sys.executable, WORKER, "launched", str(tmp_path)], env=ENV, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert far(load_file(tmp_path / "launched.safetensors"), load_file(two / "whole.safetensors")) < 1e-6


# With the data of chapter 03


def test_faces_resume_bit_for_bit_in_mid_epoch(tmp_path):
    faces(tmp_path / "run", callbacks=[At(5, lambda t: t.request_stop())]).fit()  # 20 pictures, 6 at a time
    assert same(weights(faces(tmp_path / "run").resume().fit()), weights(faces().fit()))


def test_pairs_of_faces_train_in_pieces():
    from deepswap.data import PairLoader, ProceduralFaces

    class Swap(AutoencoderMethod):
        def losses(self, pairs):
            return {"l1": (self.autoencoder(pairs.source.image) - pairs.target.image).abs().mean() + 0 * pairs.same.float().mean()}

        def step(self, batch, update):
            update("ae", self.losses, batch)

    def make(**k):
        torch.manual_seed(0)
        return Trainer(Swap(16, 4, 8), PairLoader(ProceduralFaces(6, 2, 16), 8, seed=0), steps=4, progress=False, **k)

    assert far(weights(make().fit()), weights(make(accumulate=3).fit())) < 1e-5


def test_the_autoencoder_by_name_on_people_and_on_a_folder(tmp_path):
    from deepswap.core import write_image
    from deepswap.data import ProceduralFaces

    images = ProceduralFaces(6, 1, 32).batch(range(6)).image
    (tmp_path / "photos").mkdir()
    for i, x in enumerate(images):
        write_image(x, tmp_path / f"photos/{i}.png")
    for data in (str(tmp_path / "photos"), ProceduralFaces(6, 1, 32)):
        out = tmp_path / type(data).__name__
        t = train.run("autoencoder", data, size=32, batch=4, steps=4, seed=0, device="cpu", out=out, progress=False)
        assert t.step == 4 and len(list((out / "previews").iterdir())) == 4
        method = load_method(out, device="cpu")
        with torch.no_grad():
            assert torch.equal(method.preview(images)["reconstruction"], t.preview(images)["reconstruction"])
        t = train.run("autoencoder", data, size=32, batch=4, steps=6, seed=0, device="cpu", out=out, resume=True, progress=False)
        assert t.step == 6


# By name, as the command line does


def test_run_by_name(tmp_path):
    first = train.run("toy-gan", batch=32, steps=6, seed=1, device="cpu", out=tmp_path / "run", progress=False)
    assert first.step == 6 and (tmp_path / "run/last.safetensors").exists()
    again = train.run("toy-gan", batch=32, steps=9, seed=1, device="cpu", out=tmp_path / "run", resume=True, progress=False)
    assert again.step == 9 and same(weights(again), weights(train.run("toy-gan", batch=32, steps=9, seed=1, device="cpu", progress=False)))
    for bad, word in (
        ({"method": "gans"}, "autoencoder"),
        ({"steps": -1}, "steps"),
        ({"size": 63}, "63"),
        ({"device": "tpu9"}, "tpu9"),
        ({}, "list"),
    ):
        with pytest.raises(DeepswapError, match=word) as e:
            train.run(**{"method": "autoencoder", "data": [], "progress": False, **bad})
        one_line(e.value)
    with pytest.raises(UsageError, match="batch was 32 and is 64"):
        train.run("toy-gan", batch=64, steps=9, seed=1, device="cpu", out=tmp_path / "run", resume=True, progress=False)


def test_noisy_is_registered_for_nobody():
    assert Noisy.name not in METHODS and {"autoencoder", "toy-gan"} <= METHODS.keys()


def test_options_of_a_method_reach_its_constructor(monkeypatch):
    t = train.run("toy-gan", steps=2, batch=8, device="cpu", options={"width": 8, "k": 2}, progress=False)
    assert t.method.config["width"] == 8 and t.method.config["k"] == 2
    ToyGAN = METHODS["toy-gan"]
    monkeypatch.setattr(ToyGAN, "presets", {"tiny": {"width": 4, "k": 3}})
    c = train.run("toy-gan", steps=2, batch=8, device="cpu", preset="tiny", options={"k": 2}, progress=False).method.config
    assert c["width"] == 4 and c["k"] == 2
    with pytest.raises(UsageError, match="no preset 'huge'; choose one of tiny"):
        train.run("toy-gan", preset="huge")
    with pytest.raises(UsageError, match="has no option 'wdth'; its options are width, noise, k"):
        train.run("toy-gan", options={"wdth": 8})
