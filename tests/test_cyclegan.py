"CycleGAN: networks as in the papers, losses as in the formulas, the pool, two domains, and a run that stops and goes on."

import json
from pathlib import Path

import pytest
import torch
from common import Stop, script
from torch import nn

from deepswap.core import DataError, DeepswapError, UsageError, WeightsError
from deepswap.cyclegan import (
    CHANGES,
    CycleGAN,
    ImagePool,
    PatchDiscriminator,
    ResNetGenerator,
    TwoDomains,
    UNetGenerator,
    cycle_loss,
    identity_loss,
    known_task,
    psnr,
    receptive_field,
)
from deepswap.data import ProceduralFaces
from deepswap.gan import GAN
from deepswap.layers import ConvBlock
from deepswap.train import DropOnPlateau, LinearDecay, Trainer, load_method, run

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).resolve().parents[1]


def one_line(e):
    assert "\n" not in str(e) and 20 < len(str(e)) < 420, str(e)
    return str(e)


def small(**options):
    return CycleGAN(**{"size": 16, "ngf": 4, "blocks": 1, "ndf": 4, "layers": 1, "pool": 3, **options})


@pytest.fixture(scope="module")
def task():
    return known_task("person", 16, 7, 4)


def trainer(task, method=None, steps=6, options=(), **settings):
    torch.manual_seed(0)
    method = method or small(**dict(options))
    other = known_task("person", 16, 5, 2).b  # fewer than a
    return Trainer(method, TwoDomains(task.a, other, batch_size=2), steps=steps, seed=0, device="cpu", progress=False, preview_every=None, **settings)


def count(net):
    return sum(p.numel() for p in net.parameters())


def test_the_papers_numbers_of_parameters():
    g = ResNetGenerator()
    idle = sum(m[0].out_channels for m in g.modules() if isinstance(m, ConvBlock) and m[0].bias is None)
    assert count(g) + idle == 11_378_179 and round(count(g) / 1e6, 2) == 11.37
    assert count(PatchDiscriminator()) == 2_764_737
    assert round(count(UNetGenerator(256)) / 1e6, 2) == 54.41


@pytest.mark.parametrize("layers, side", ((1, 16), (2, 34), (3, 70)))
def test_receptive_field_is_what_the_gradient_sees(layers, side):
    d = PatchDiscriminator(3, layers, norm="none")
    x = torch.rand(1, 3, 144, 144, requires_grad=True)
    y = d(x)
    y[0, 0, y.shape[2] // 2, y.shape[3] // 2].backward()
    touched = x.grad.abs().sum((0, 1)) > 0
    assert receptive_field(d) == side == int(touched.any(0).sum()) == int(touched.any(1).sum())


def test_patches_of_256_pixels_are_30_by_30():
    assert PatchDiscriminator(2)(torch.zeros(1, 3, 256, 256)).shape == (1, 1, 30, 30)


@pytest.mark.parametrize("up", ("transposed-3", "transposed", "nearest", "shuffle"))
def test_network_shapes(up):
    x = torch.randn(2, 3, 16, 24)
    y = ResNetGenerator(4, 1, up=up)(x)
    assert y.shape == x.shape and y.abs().max() <= 1
    y = UNetGenerator(16, 4, up=up.removesuffix("-3"))(x[..., :16])
    assert y.shape == (2, 3, 16, 16) and y.abs().max() <= 1
    assert not any(isinstance(m, nn.InstanceNorm2d) and m.affine for m in ResNetGenerator(4, 1).modules())


def test_every_part_of_a_unet_is_used():
    net = UNetGenerator(16, 4)
    net(torch.randn(1, 3, 16, 16)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_losses_follow_the_formulas(task):
    torch.manual_seed(0)
    m = small(cycle=7.0, identity=3.0)
    a, b = task.test_a.image[:2], task.test_b.image[2:]
    losses, (fake_a, fake_b) = m.g_losses(a, b)
    adversarial = (m.d_b(m.g_ab(a)) - 1).square().mean() + (m.d_a(m.g_ba(b)) - 1).square().mean()
    cycle = (m.g_ba(m.g_ab(a)) - a).abs().mean() + (m.g_ab(m.g_ba(b)) - b).abs().mean()
    identity = (m.g_ba(a) - a).abs().mean() + (m.g_ab(b) - b).abs().mean()
    assert torch.allclose(sum(w * v for w, v in losses.values()), adversarial + 7 * cycle + 3 * identity, atol=1e-5)
    found = m.d_losses(a, b, fake_a, fake_b)
    for d, name, real, fake in ((m.d_a, "d_a", a, fake_a), (m.d_b, "d_b", b, fake_b)):
        assert torch.allclose(found[name], ((d(real) - 1).square().mean() + d(fake).square().mean()) / 2, atol=1e-6)
    assert cycle_loss(a, a) == 0 and torch.allclose(identity_loss(a, a + 0.5), torch.tensor(0.5), atol=1e-6)


@pytest.mark.parametrize("options", ({"generator": "unet"}, {"norm": "batch"}, {"objective": "hinge", "identity": 0.0}, {"objective": "wgan-gp"},
                                     {"cycle": 0.0, "pool": 0}, {"decay": "plateau"}, {"decay": "none", "up": "nearest"}), ids=str)  # fmt: skip
def test_every_option_trains(task, options):
    t = trainer(task, small(**options), steps=2).fit()
    assert t.status == "done" and ("cycle" in t.history[-1]) == (options.get("cycle", 1) > 0)


def test_calls_of_a_step(task):
    "Four calls of a generator, two of them for two batches; one call of a discriminator for each side and turn."
    seen = {}
    m = small()
    for name, net in m.networks().items():
        net.register_forward_hook(lambda net, x, y, name=name: seen.setdefault(name, []).append(len(x[0])))
    a, b = task.test_a.image[:1], task.test_b.image[:1]
    m.step({"a": a, "b": b}, lambda optimizer, f, *x: out[1] if isinstance(out := f(*x), tuple) else None)
    assert seen == {"g_ab": [2, 1], "g_ba": [2, 1], "d_a": [1, 2], "d_b": [1, 2]}


def test_generators_step_leaves_discriminators_alone(task):
    m = small(decay="none")
    t = trainer(task, m, steps=1)
    before = {k: [p.clone() for p in n.parameters()] for k, n in m.networks().items()}
    t._begin()
    m.step = None
    t.update("g", m.g_losses, task.test_a.image, task.test_b.image)
    same = {k: all(torch.equal(p, q) for p, q in zip(before[k], n.parameters())) for k, n in m.networks().items()}
    assert same == {"g_ab": False, "g_ba": False, "d_a": True, "d_b": True}
    assert all(p.grad is None for d in (m.d_a, m.d_b) for p in d.parameters())


def test_a_batch_cut_into_pieces_is_the_same_step(task):
    rows = [trainer(task, steps=2, accumulate=n).fit().history for n in (1, 2)]
    for x, y in zip(*rows):
        assert all(abs(x[k] - y[k]) < 1e-4 * max(1, abs(x[k])) for k in ("g_adv", "cycle", "identity", "d_a", "d_b"))


def test_pool_keeps_and_exchanges():
    torch.manual_seed(0)
    pool = ImagePool(5)
    numbered = lambda i: torch.full((1, 1, 1, 1), float(i))
    assert [int(pool.query(numbered(i))) for i in range(5)] == list(range(5))
    out = [int(pool.query(numbered(i))) for i in range(5, 3000)]
    fresh = sum(o == i for o, i in zip(out, range(5, 3000))) / len(out)
    assert abs(fresh - 0.5) < 0.03 and len(pool.images) == 5
    assert len(set(out)) == len(out)  # nobody is seen twice
    x = torch.rand(3, 3, 4, 4)
    assert ImagePool(0).query(x) is x
    grad = torch.rand(2, 3, 4, 4, requires_grad=True)
    assert not ImagePool(1).query(grad * 2).requires_grad


def test_schedules():
    assert isinstance(small().schedules()["g"], LinearDecay) and isinstance(small(decay="plateau").schedules()["d"], DropOnPlateau) and not small(decay="none").schedules()
    assert small().schedules()["g"] is not small().schedules()["d"]
    lr = [g["lr"] for o in small().optimizers().values() for g in o.param_groups]
    betas = {g["betas"] for o in small().optimizers().values() for g in o.param_groups}
    assert lr == [2e-4, 2e-4] and betas == {(0.5, 0.999)}


def test_domains_have_their_own_length_and_order(task):
    other = known_task("person", 16, 4, 2).b
    data = TwoDomains(task.a, other, batch_size=2, seed=3)
    it = iter(data)
    seen = [next(it) for _ in range(7)]
    assert all(x["a"].shape == x["b"].shape == (2, 3, 16, 16) for x in seen)
    state = data.state_dict()
    later = next(it)
    again = TwoDomains(task.a, other, batch_size=2, seed=3)
    again.load_state_dict(state)
    there = next(iter(again))
    assert all(torch.equal(there[k], later[k]) for k in "ab")
    assert not torch.equal(data.a.order(0)[:4], data.b.order(0)[:4]) or not torch.equal(data.a.order(1)[:4], data.b.order(1)[:4])
    shards = [TwoDomains(task.a, other, batch_size=2, seed=3).shard(r, 2) for r in (0, 1)]
    parts = [next(iter(s)) for s in shards]
    assert torch.equal(torch.cat([p["a"] for p in parts]), seen[0]["a"])


def test_bad_domains_are_named(task):
    one = ProceduralFaces(1, 1, 16)
    for make in (lambda: TwoDomains(task.a, one), lambda: TwoDomains(one, task.b), lambda: TwoDomains(task.a, ProceduralFaces(3, 1, 32)),
                 lambda: run("cyclegan", "procedural:smiling", size=24, steps=1, options={"ngf": 4}, progress=False), lambda: TwoDomains("no/such/folder", task.b)):  # fmt: skip
        with pytest.raises(DataError) as e:
            make()
        one_line(e.value)
    m = small()
    with pytest.raises(DataError) as e:
        m.step({"a": torch.zeros(1, 3, 16, 16), "b": torch.zeros(1, 3, 32, 32)}, None)
    assert "one size" in one_line(e.value)


def test_bad_input_is_one_sentence():
    x = torch.zeros(1, 3, 16, 16)
    for make in (lambda: CycleGAN(generator="vae"), lambda: CycleGAN(decay="cosine"), lambda: CycleGAN(ngf=0), lambda: CycleGAN(cycle=-1.0), lambda: CycleGAN(size=30),
                 lambda: CycleGAN(size=16), lambda: CycleGAN(objective="x"), lambda: small(generator="unet", size=24), lambda: ImagePool(-1), lambda: UNetGenerator(48),
                 lambda: UNetGenerator(16, 2)(torch.zeros(1, 3, 32, 32)), lambda: PatchDiscriminator(2)(torch.zeros(1, 3, 16, 16)), lambda: PatchDiscriminator(2, 1)(torch.zeros(1, 1, 16, 16)),
                 lambda: small().translate(x, "c"), lambda: small().translate(x[:, :1]), lambda: small().translate(torch.zeros(1, 4, 16, 16)),
                 lambda: small().translate(torch.zeros(1, 3, 18, 16)), lambda: small().translate(x[0]), lambda: known_task("hat"), lambda: known_task(n=1)):  # fmt: skip
        with pytest.raises(UsageError) as e:
            make()
        one_line(e.value)


@pytest.mark.parametrize("options", ({}, {"generator": "unet", "decay": "plateau"}), ids=str)
def test_resume_is_exact(task, tmp_path, options):
    whole = trainer(task, options=options, ema=0.9).fit()
    trainer(task, options=options, ema=0.9, out=tmp_path, callbacks=[Stop(3)]).fit()
    again = trainer(task, options=options, ema=0.9, out=tmp_path).resume().fit()
    a, b = whole.snapshot()[0], again.snapshot()[0]
    assert again.step == 6 and a.keys() == b.keys() and any("pools" in k for k in a)
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_saved_weights_come_back_and_others_are_refused(task, tmp_path):
    t = trainer(task, ema=0.5, out=tmp_path, steps=2).fit()
    x = task.test_a.image
    with t.averaged():
        expected = t.method.translate(x), t.method.translate(x, "a")
    again = load_method(tmp_path, device="cpu")
    assert all(torch.equal(again.translate(x, to), e) for to, e in zip("ba", expected)) and not torch.equal(*expected)
    for other in (small(ngf=8), GAN(size=16, width=4)):
        with pytest.raises(DeepswapError) as e:
            trainer(task, other, out=tmp_path).resume()
        one_line(e.value)
    data = (tmp_path / "last.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(WeightsError) as e:
        load_method(tmp_path / "cut.safetensors")
    one_line(e.value)


def test_a_run_by_name_with_previews(tmp_path):
    t = run("cyclegan", ("procedural:person=1,n=6", "procedural:person=2,n=5"), size=16, batch=2, steps=2, out=tmp_path, device="cpu", progress=False,
            options={"ngf": 4, "blocks": 1, "ndf": 4, "layers": 1, "identity": 0.0})  # fmt: skip
    rows = t.preview()
    assert set(rows) == {"a", "a to b", "and back", "b", "b to a"} and list((tmp_path / "previews").iterdir())
    assert t.method.options.keys() <= set(CycleGAN.__init__.__code__.co_varnames)


@pytest.mark.parametrize("data", (Path("pictures"), None, 3, ["only-one"], "pictures"), ids=str)
def test_one_set_of_pictures_is_no_pair(data):
    with pytest.raises(DataError, match="between two sets") as e:
        small().loader(data, 16, 2, 0)
    one_line(e.value)


@pytest.mark.parametrize("name", ("person", "dye", *CHANGES))
def test_known_answers_differ_where_they_should_only(name):
    t = known_task(name, 32, 6, 6)
    x, y = t.test_a.image, t.test_b.image
    apart = (x - y).abs().amax((1, 2, 3))
    assert (apart > 0.1).all() and not torch.equal(t.a.people.scene.values, t.b.people.scene.values)
    if name in CHANGES:
        assert not set(t.a.person.tolist()) & set(t.b.person.tolist())
    if name != "person":
        assert (x - y).abs().amax(1).lt(0.02).float().mean() > 0.3  # the rest stays
    assert torch.equal(known_task(name, 32, 6, 6).test_b.image, y)


def test_psnr():
    x = torch.zeros(2, 3, 4, 4)
    assert torch.allclose(psnr(x + 0.2, x), torch.tensor(20.0), atol=1e-4)
    where = torch.zeros(2, 1, 4, 4)
    where[0, 0, 0, 0] = 1
    y = x.clone()
    y[0, :, 0, 0] = 2.0
    assert psnr(y, x, where) == 0 and psnr(y, x, 1 - where) > 90


def test_learns_person_a_to_person_b():
    "Some seconds are enough to leave the untouched input behind."
    t = known_task("person", 32, 64, 16)
    m = CycleGAN(size=32, ngf=8, blocks=2, ndf=8, layers=2, lr=1e-3)
    Trainer(m, TwoDomains(t.a, t.b, batch_size=2), steps=90, seed=0, device="cpu", progress=False, preview_every=None).fit()
    nothing = psnr(t.test_a.image, t.test_b.image)
    assert psnr(m.translate(t.test_a.image, "b"), t.test_b.image) > nothing + 3
    assert psnr(m.translate(t.test_b.image, "a"), t.test_a.image) > nothing + 3


def test_the_plain_port_has_the_same_losses():
    from types import SimpleNamespace

    a = SimpleNamespace(device="cpu", size=32, batch=1, width=4, blocks=2)
    assert script("benchmarks/cyclegan.py").parity(a) < 1e-4


def test_what_was_recorded_is_what_was_asked_for():
    found = json.loads((ROOT / "benchmarks" / "results" / "cyclegan.json").read_text())
    runs = [r for r in found["known"] if (r["task"], r["arm"]) == ("person", "full")]
    assert len({r["seed"] for r in runs}) >= 3
    assert all(r["translated"]["ab"] > r["untouched"]["ab"] + 3 for r in runs)
    ways = found["step"][0]["ways"]
    assert ways["losses differ by"] < 1e-4
    assert any(w["ratio"] <= 0.8 and w["memory_mb"] <= ways["port"]["memory_mb"] for w in ways.values() if isinstance(w, dict))


def test_real_people(shared):
    "Faces of real people are read, cropped and translated; nothing of them is kept."
    faces = script("benchmarks/cyclegan.py").real_faces(shared / "data" / "london", 16)
    assert faces["neutral"].shape == faces["smiling"].shape == (80, 3, 16, 16)
    judge = script("benchmarks/cyclegan.py").smile_judge(*(x[:60] for x in faces.values()))
    assert (judge(faces["neutral"][60:]) < 0).float().mean() > 0.6 and (judge(faces["smiling"][60:]) > 0).float().mean() > 0.6
    b = script("benchmarks/cyclegan.py")
    data = TwoDomains(b.Pictures(faces["neutral"]), b.Pictures(faces["smiling"]), batch_size=2)
    t = Trainer(small(), data, steps=2, device="cpu", progress=False, preview_every=None).fit()
    assert t.method.translate(faces["neutral"][:3]).isfinite().all()
