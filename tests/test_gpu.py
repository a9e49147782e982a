"Chapter 56: what is counted is right, each lever leaves the training as it was, and the script survives what goes wrong on a GPU."

import ast
import json
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from common import ROOT, script
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import deepswap.gpu as gpu
from deepswap.core import DeviceError, UsageError, seed_everything
from deepswap.cyclegan import CycleGAN
from deepswap.data import Pairs
from deepswap.faceshifter import FaceShifter
from deepswap.gan import GAN
from deepswap.gpu import (
    Feed,
    Kept,
    Ledger,
    Machine,
    Step,
    allowed_ms,
    draw_roofline,
    draw_waterfall,
    explain_step,
    hot_spots,
    in_turn,
    measure_machine,
    noise_batch,
    tensors_of,
)
from deepswap.train import AutoencoderMethod, FaceAutoencoder, Trainer

MACHINE = Machine("a machine", {"fp32": 1e11, "bf16": 4e11}, 1e10)
pytestmark = pytest.mark.usefixtures("one_thread")


def shifter():
    seed_everything(0)
    return FaceShifter(32, 4, 8)


def step_of(method=None, n=2, **levers):
    method = method or shifter()
    return Step(method, [noise_batch(method, n, k) for k in range(2)], "cpu", **levers)


def weights(step):
    return torch.cat([p.detach().ravel() for p in step.method.parameters()])


# The clock and the machine


def test_contenders_take_turns_and_the_median_counts():
    log, now = [], [0.0]
    cost = {"a": iter([9, 1, 2, 30]), "b": iter([9, 5, 5, 5])}

    def call(name):
        log.append(name)
        now[0] += next(cost[name])

    found = in_turn({"a": lambda: call("a"), "b": lambda: call("b")}, rounds=3, warm=1, clock=lambda: now[0])
    assert found == {"a": 2000.0, "b": 5000.0} and list(found) == ["a", "b"]
    assert sorted(log[:2]) == sorted(log[2:4]) == ["a", "b"] and log[:2] != log[2:4], "the order changes from round to round"


def test_neighbours_dont_stop_the_clock_of_one_core():
    assert gpu.clock_for("cpu") is time.process_time
    torch.set_num_threads(2)
    try:
        assert gpu.clock_for("cpu") is time.perf_counter
    finally:
        torch.set_num_threads(1)


def test_the_roof_is_the_lower_of_two():
    assert MACHINE.ridge() == 10 and MACHINE.ridge("bf16") == 40
    assert [MACHINE.roof(i) for i in (1, 10, 1000)] == [1e10, 1e11, 1e11]
    assert allowed_ms({"matrix": 2e8, "bytes": 1e7}, MACHINE) == 2 and allowed_ms({"matrix": 2e8, "bytes": 1e8}, MACHINE, "bf16") == 10
    assert Machine("g", {"fp32": 1.0, "tf32": 8.0, "bf16": 16.0}, 1.0).peak() == 8 and MACHINE.peak() == 1e11


def test_a_machine_is_measured():
    found = measure_machine("cpu", n=128, megabytes=4, rounds=1)
    assert set(found.flops) == {"fp32", "bf16"} and min(found.flops.values()) > 1e8 and found.bandwidth > 1e7 and "1 thread" in found.name


# The ledger


def test_the_ledger_counts_what_pytorch_counts():
    for make in (shifter, lambda: GAN(size=32, width=8), lambda: CycleGAN(32, ngf=4, ndf=4, blocks=1, layers=2)):
        step = step_of(make())
        step()  # what is worked out once is worked out here
        with FlopCounterMode(display=False) as counter:
            step()
        with Ledger() as book:
            step()
        assert sum(r["matrix"] for r in book.parts()) == counter.get_total_flops() > 0


def test_backward_work_is_its_networks_own():
    "The identity encoder is frozen: its backward pass asks for inputs only, as much as the one forward pass that leads to the swap."
    rows = {r["name"]: r for r in step_of(freeze=True).counted(1).parts()}
    assert rows["IdentityNet, backward"]["matrix"] * 2 == rows["IdentityNet, forward"]["matrix"] > 0
    assert 1.9 < rows["AADGenerator, backward"]["matrix"] / rows["AADGenerator, forward"]["matrix"] <= 2
    assert rows["optimizers"]["matrix"] == 0 and rows["optimizers"]["bytes"] > 0
    with Ledger() as book:
        FaceAutoencoder(32, 8, 16)(torch.randn(2, 3, 32, 32)).mean().backward()
    layers = {r["name"]: r["matrix"] for r in book.parts(lambda module, way, op: (module, way))}
    assert layers["FaceAutoencoder.encoder.2, backward"] == 2 * layers["FaceAutoencoder.encoder.2, forward"] > 0
    assert layers["FaceAutoencoder.encoder.0, backward"] == layers["FaceAutoencoder.encoder.0, forward"], "pictures want no gradient"


def test_bytes_of_products_sums_and_views():
    a, b = torch.randn(2, 64, 32, 32)
    with Ledger() as book:
        torch.bmm(a, b)
        a.add_(b)
        a.transpose(1, 2).reshape(64, 1024)[0]
        torch.ones(1).expand(10**6).sum()
    rows = {r["name"]: r for r in book.parts(lambda *k: k[2])}
    n = a.nbytes
    assert rows["bmm"]["bytes"] == 3 * n and rows["bmm"]["matrix"] == 2 * 64 * 32**3
    assert rows["add_"]["bytes"] == 3 * n and rows["add_"]["flops"] == a.numel()
    assert rows["transpose"]["bytes"] == rows["expand"]["bytes"] == 0
    assert rows["sum"]["bytes"] == 8, "an expanded number is four bytes, however often it is read"


def test_freezing_saves_the_work_of_gradients_that_nobody_asked_for():
    plain, frozen = (sum(r["matrix"] for r in step_of(freeze=f).counted(1).parts()) for f in (False, True))
    assert frozen < plain


# The step and its levers


def test_a_step_is_the_trainers_step():
    one = step_of(freeze=True)
    twin = Trainer(shifter(), [noise_batch(shifter(), 2, k) for k in range(2)], device="cpu", progress=False)
    twin._begin()
    for _ in range(2):
        one()
        twin._one_step()
    assert torch.equal(weights(one), weights(twin))


@pytest.mark.parametrize(
    "levers,eps",
    [({"freeze": True}, 0), ({"fused": True}, 1e-4), ({"accumulate": 2}, 1e-3), ({"channels_last": True}, 1e-3), ({"feed": "there"}, 0)],
)
def test_levers_leave_the_training_as_it_was(levers, eps):
    method = lambda: seed_everything(0) or AutoencoderMethod(16, 4, 8)
    plain, pulled = step_of(method(), 4), step_of(method(), 4, **levers)
    start = weights(plain)
    for _ in range(3):
        plain(), pulled()
    assert (weights(plain) - start).norm() > 0
    assert (weights(pulled) - weights(plain)).norm() <= eps * (weights(plain) - start).norm()


def test_the_plain_loop_leaves_gradients_in_frozen_networks():
    for freeze in (False, True):
        step = step_of(GAN(size=32, width=4), 4, freeze=freeze)
        seen = []
        optimizer = step.optimizers["g"]
        optimizer.register_step_pre_hook(lambda *a: seen.append(next(step.method.discriminator.parameters()).grad.norm().item()))
        before = []
        step.optimizers["d"].register_step_post_hook(
            lambda *a: before.append(next(step.method.discriminator.parameters()).grad.norm().item())
        )
        step()
        assert (seen == before) == freeze, "G's turn adds to D's gradients unless D is frozen"


def test_refused_in_one_sentence():
    with pytest.raises(UsageError, match="no lever 'turbo'"):
        step_of(turbo=True)
    for levers in ({"graph": True}, {"tf32": True}, {"search": True}, {"feed": "pinned"}):
        with pytest.raises(DeviceError, match="needs a CUDA GPU"):
            step_of(**levers)
    with pytest.raises(DeviceError, match="fp16"):
        step_of(precision="fp16")
    with pytest.raises(UsageError, match="choose 'sent', 'pinned' or 'there'"):
        step_of(feed="by post")
    with pytest.raises(UsageError, match="can't be looked into"):
        step_of(compile="eager").counted()


def test_global_switches_come_back_even_after_an_error():
    step = step_of()
    step.levers |= {"search": True, "tf32": True}
    before = torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()
    with pytest.raises(ZeroDivisionError), step.settings():
        assert torch.backends.cudnn.benchmark and torch.get_float32_matmul_precision() == "high"
        raise ZeroDivisionError
    assert (torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()) == before


def test_a_recorded_step_reads_the_new_batch_from_the_old_ones_place():
    "The logic around a CUDA graph, with a replay that stands in for it: it sees only the tensors of the first batch."
    plain, graph = step_of(), step_of()
    graph.levers["graph"] = True

    def record(batch):
        graph.batch = gpu.map_batch(torch.clone, batch)
        graph.recorded = SimpleNamespace(replay=lambda: graph.method.step(graph.batch, graph.update))

    graph.record = record
    places = None
    for _ in range(3):
        plain(), graph()
        now = [t.data_ptr() for t in tensors_of(graph.batch)]
        assert places in (None, now)
        places = now
    assert torch.equal(weights(plain), weights(graph))


def test_batches_come_in_turn_and_pinned_ones_one_ahead(monkeypatch):
    batches, log = [torch.full((2,), float(k)) for k in range(3)], []
    for how in ("sent", "there"):
        feed = Feed(batches, "cpu", how)
        assert [int(feed()[0]) for _ in range(5)] == [0, 1, 2, 0, 1]

    class Stream:
        def __init__(self, *a): ...
        def wait_stream(self, other):
            log.append("wait")

        def __enter__(self):
            log.append("side")

        def __exit__(self, *e): ...

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda s: s)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda t: t)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda t, s: log.append("recorded"))
    feed = Feed(batches, "cpu", "pinned")
    sent, send = [], feed.send
    feed.send = lambda b: sent.append(int(b[0])) or send(b)
    assert [int(feed()[0]) for _ in range(5)] == [0, 1, 2, 0, 1]
    assert sent == [0, 1, 2, 0, 1, 2] and log[:3] == ["wait", "recorded", "side"], (
        "each is sent while the one before is in use, after its stream was waited for"
    )


def test_noise_has_the_shape_of_the_methods_batches():
    pairs = noise_batch(shifter(), 5)
    assert (
        isinstance(pairs, Pairs)
        and pairs.same.tolist() == [True, False, False, False, False]
        and pairs.target.image.shape == (5, 3, 32, 32)
    )
    assert set(noise_batch(CycleGAN(32, ngf=4, ndf=4, blocks=1, layers=2), 2)) == {"a", "b"}
    assert noise_batch(GAN(size=32, width=4), 3).shape == (3, 3, 32, 32) and not torch.equal(
        noise_batch(GAN(size=32, width=4), 3, 1), noise_batch(GAN(size=32, width=4), 3)
    )


def test_nobody_asks_the_device_in_the_middle_of_a_step():
    "A question (`.item()`) makes the CPU wait for the GPU, and can't be recorded; the plain Adam's count of steps is its own affair."
    for make in (shifter, lambda: GAN(size=32, width=8)):
        rows = step_of(make(), 4, freeze=True).counted(1).rows
        assert not [key for key in rows if key[2] == "_local_scalar_dense" and key[0] != "optimizers"]


def test_the_identity_encoder_sees_the_same_crop_in_half_precision():
    who, x = shifter().who, torch.rand(2, 3, 256, 256) * 2 - 1
    with torch.autocast("cpu", torch.bfloat16):
        half = who.see(x)
    assert torch.equal(half, who.see(x))


# Memory


def kept_by_layers(net, x):
    "Bytes of the input of every layer that has weights and of every LeakyReLU, and of the tanh's output; the loss's difference instead of the batch."
    sizes = []
    for m in net.modules():
        if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.LeakyReLU, nn.Tanh)):
            m.register_forward_hook(lambda m, i, o: sizes.append((o if isinstance(m, nn.Tanh) else i[0]).nbytes))
    net(x)
    return sum(sizes)  # less the batch, plus a difference of its size


@pytest.mark.parametrize("size,batch", [(16, 1), (32, 3)])
def test_memory_by_part_agrees_with_the_formula(size, batch):
    method = AutoencoderMethod(size, 4, 8)
    found, N = step_of(method, batch).memory(), sum(p.numel() for p in method.parameters())
    assert (found["weights"], found["gradients"]) == (4 * N, 4 * N)
    assert found["optimizer"] == 8 * N + 4 * len(list(method.parameters()))
    assert found["batch"] == 4 * batch * 3 * size**2
    assert found["activations"] == kept_by_layers(FaceAutoencoder(size, 4, 8), torch.randn(batch, 3, size, size))


def test_memory_of_faceshifter_is_linear_where_it_should_be():
    two, four, pieces = (step_of(n=n, **levers).memory() for n, levers in ((2, {}), (4, {}), (4, {"accumulate": 2})))
    fixed = ("weights", "gradients", "optimizer")
    assert [two[k] for k in fixed] == [four[k] for k in fixed] == [pieces[k] for k in fixed]
    assert 1.8 < four["activations"] / two["activations"] < 2.05 and abs(pieces["activations"] / two["activations"] - 1) < 0.05
    method = shifter()
    trained = sum(p.numel() for o in method.optimizers().values() for g in o.param_groups for p in g["params"])
    assert two["gradients"] == 4 * trained and two["weights"] == sum(t.nbytes for t in [*method.parameters(), *method.buffers()])


def test_kept_counts_a_storage_once_and_never_the_weights():
    w, x = torch.randn(8, 8, requires_grad=True), torch.randn(8, 8)
    with Kept([w]) as kept:
        y = x @ w
        z = y * y
    assert kept.most == x.nbytes + y.nbytes
    with kept:
        kept.again()
        z = x @ w
    assert kept.now == x.nbytes and kept.most == x.nbytes + y.nbytes and z.requires_grad


# Reports


def test_the_profiler_finds_the_convolutions():
    rows = hot_spots(step_of(n=4), 12)
    assert len(rows) == 12 and any("conv" in r["name"] for r in rows[:3])
    assert [r["ms"] for r in rows] == sorted((r["ms"] for r in rows), reverse=True) and 0 < sum(r["share"] for r in rows) <= 1


def test_a_step_is_explained():
    report = explain_step(GAN(size=32, width=8), n=4, device="cpu", machine=MACHINE, rounds=1, freeze=True, compile="eager")
    assert report.share == pytest.approx(report.flops / (report.ms / 1e3) / 1e11) and report.flops > 0
    assert {r["name"] for r in report.parts} >= {"Generator, forward", "Discriminator, backward", "optimizers"}
    text = report._repr_markdown_()
    assert "of the fp32 peak of a machine" in text and text.count("\n") == len(report.parts) + 3
    bound = lambda ms: report.bound({"ms": ms, "allowed": 1.0, "matrix": 0, "bytes": 1})
    assert (
        bound(10.0) == "neither"
        and bound(2.0) == "memory"
        and report.bound({"ms": 1.0, "allowed": 1.0, "matrix": 100, "bytes": 1}) == "compute"
    )


def test_figures_name_what_failed():
    fig = draw_waterfall([{"name": "plain", "ms": 10.0}, {"name": "+ bf16", "ms": 5.0}, {"name": "+ compile", "note": "stopped after 9 s"}])
    said = [t.get_text() for t in fig.axes[0].texts]
    assert " 2.00" in said and " stopped after 9 s" in said
    fig = draw_roofline([{"name": "x", "flops": 10, "bytes": 5, "ms": 1.0}, {"name": "idle", "flops": 0, "bytes": 5, "ms": 1.0}], MACHINE)
    assert len(fig.axes[0].collections) == 1 and "1  x" in [t.get_text() for t in fig.axes[0].texts] and fig.jpeg()[:2] == b"\xff\xd8"


# The script


def test_the_script_imports_what_a_bare_machine_has():
    "No gradio, nbdev, facenet-pytorch or plotting on the machine with the GPU."
    code = """
import sys
class No:
    def find_spec(self, name, *a):
        if name.split(".")[0] in ("gradio", "nbdev", "fastcore", "facenet_pytorch", "matplotlib", "ipywidgets", "IPython", "av", "c2pa", "cryptography", "execnb"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, No())
sys.path.insert(0, "benchmarks")
import gpu
print("imported")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "imported", done.stderr


def test_what_fails_is_a_note_and_not_the_end():
    bench = script("benchmarks/gpu.py")

    def full():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    assert bench.guarded(full) == {"note": "out of memory"}
    assert bench.guarded(lambda: 1 / 0) == {"note": "failed: ZeroDivisionError: division by zero"}
    assert bench.guarded(lambda: {"ms": 1}) == {"ms": 1}
    args, case = SimpleNamespace(device="cpu"), ("faceshifter", 32, 4, 2)
    assert bench.in_a_process(case, {"compile": "no such backend"}, args, 100)["note"].startswith("failed")
    assert bench.in_a_process(case, {"compile": True}, args, 5) == {"note": "not measured: out of time"}
    late = SimpleNamespace(left=lambda: 3.0)
    assert bench.row_of(case, {}, args, torch.device("cpu"), late, 100) == {"note": "not measured: out of time"}


def test_every_row_is_on_the_disk_at_once(tmp_path):
    bench, file = script("benchmarks/gpu.py"), tmp_path / "record.json"
    book = bench.Book(file, 100, {"date": "today"})
    book.keep("alone", "gan", value=[1])
    assert json.loads(file.read_text()) == {"date": "today", "alone": {"gan": [1]}} and 0 < book.left() <= 100


def test_each_lever_of_the_waterfall_stands_on_those_before():
    bench = script("benchmarks/gpu.py")
    ways = bench.cumulative(bench.GPU_LEVERS)
    assert list(ways)[0] == "plain" and ways["+ tf32"] == {"freeze": True, "tf32": True}
    assert "tf32" not in ways["+ bf16"] and ways["+ CUDA graph"] == ways["+ compile"] | {"graph": True}
    assert {k for v in ways.values() for k in v} <= gpu.LEVERS.keys() and {
        k for v in bench.CPU_LEVERS.values() for k in v
    } <= gpu.LEVERS.keys()
    row = bench.beside({"ms": 6.0, "eager ms": 12.0}, {"ms": 10.0})
    assert row["ms"] == 5 and row["ms there"] == 6 and bench.beside({"note": "failed"}, {"ms": 1}) == {"note": "failed"}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_record_holds_what_the_chapter_reads(device):
    file = ROOT / "benchmarks" / "results" / f"gpu_{device}.json"
    if not file.exists():
        assert device == "cuda", "a CPU is always at hand"
        pytest.skip("no GPU was recorded")
    found = json.loads(file.read_text())
    assert found["command"] == f"python benchmarks/gpu.py --device {device} --record" and found["machine"]["name"] and found["date"]
    assert found["waterfall"][0]["name"] == "plain" and all(r.get("ms") or r.get("note") for r in found["waterfall"])
    assert all(0 < r["share of peak"] < 1.2 for r in found["waterfall"] if r.get("ms"))
    assert {"faceshifter", "autoencoder", "gan", "cyclegan"} <= found["alone"].keys() and {"weights", "activations"} <= found[
        "memory"
    ].keys()
    assert found["hot spots"] and all(r["allowed"] >= 0 for r in found["parts"])
    assert device == "cuda" or set(found["two processes"]["ms"]) == {
        "one process, one core",
        "one process, two cores",
        "two processes, one core each",
    }


def test_the_chapter_can_show_the_record_of_a_gpu():
    "No GPU is at hand when the chapter is written: what reads such a record is tried on one of its form."
    from IPython.display import Markdown

    wanted = ("lever_table", "verdict", "batch_table", "memory_table", "hot_table", "feed_table", "table")
    room = {"Markdown": Markdown}
    for c in json.loads((ROOT / "nbs" / "56_gpu.ipynb").read_text())["cells"]:
        for node in ast.parse("".join(c["source"])).body if c["cell_type"] == "code" else ():
            if getattr(node, "name", None) in wanted or isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "table":
                exec(ast.unparse(node), room)
    rows = [
        {"name": "plain", "ms": 90.0, "share of peak": 0.1},
        {"name": "+ bf16", "ms": 20.0, "share of peak": 0.45},
        {"name": "+ CUDA graph", "note": "failed: X"},
    ]
    parts = [
        {"name": "generator", "ms": 30.0, "allowed": 10.0, "flops": 9, "matrix": 9, "bytes": 3},
        {"name": "optimizers", "ms": 9.0, "allowed": 8.0, "flops": 1, "matrix": 0, "bytes": 3},
    ]
    record = {
        "waterfall": rows,
        "parts": parts,
        "alone": {"gan": rows},
        "memory": {"weights": 10**9, "allocator's peak": 3 * 10**9},
        "hot spots": [{"name": "aten::convolution", "calls": 3, "ms": 4.0, "share": 0.5}],
        "feed": {"sent": 5.0, "pinned": 4.0, "there": 3.9},
        "batches": [{"batch": 4, "ms": 9.0, "share of peak": 0.2}, {"batch": 128, "note": "out of memory"}],
    }
    said = {k: room[k](record["hot spots"] if k == "hot_table" else record).data for k in wanted[:-1]}
    assert "**45%**" in said["verdict"] and said["verdict"].count("(reached)") == 2 and "generator, 30 ms of which 10" in said["verdict"]
    assert "4.50" in said["lever_table"] and "failed: X" in said["lever_table"] and "out of memory" in said["batch_table"]
    assert "3.00 GB" in said["memory_table"] and "| pinned | 4.0 |" in said["feed_table"] and "aten::convolution" in said["hot_table"]


def test_the_script_runs(tmp_path):
    "A smoke of everything but two processes and compiling: the rows and their order."
    bench, file = script("benchmarks/gpu.py"), tmp_path / "r.json"
    bench.two_processes = lambda case, args, *more: {"ms": {}, "megabytes": 1.0}
    args = SimpleNamespace(device="cpu", fast=True, record=False, out=file, limit=0, compile_limit=0, rounds=1, only=[])
    bench.record(args, torch.device("cpu"))
    found = json.loads(file.read_text())
    assert [r["name"] for r in found["waterfall"]] == ["plain", "+ freeze", "+ bf16", "+ channels-last", "+ fused Adam"]
    assert all(r["ms"] > 0 for r in found["waterfall"]) and set(found["alone"]) == {"faceshifter", "gan"}
    assert found["operations"]["freeze"] < found["operations"]["plain"]
    bench.alone = lambda case, levers, args, device, book, *more: book.keep("alone", case[0], value="again")
    bench.record(SimpleNamespace(**vars(args) | {"only": ["gan"]}), torch.device("cpu"))
    assert json.loads(file.read_text()) == found | {"alone": found["alone"] | {"gan": "again"}}, (
        "a part alone leaves the rest of the record"
    )
