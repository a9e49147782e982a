"The adversarial losses against their equations, against each other, and in training."

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from common import Stop

from deepswap.core import DataError, UsageError, WeightsError
from deepswap.gan import OBJECTIVES, Discriminator, PointGAN, get_objective
from deepswap.objectives import LSGAN, WGAN, Hinge, LeastSquares, WassersteinGP, earth_mover, pull, slopes
from deepswap.train import METHODS, Trainer, load_method, mlp, run

ROOT = Path(__file__).resolve().parents[1]
SMALL = {"width": 8, "latent": 8}
pytestmark = pytest.mark.usefixtures("one_thread")


def points(n, d=2, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def train(name, out=None, steps=6, resume=False, options=None, **settings):
    return run(name, "procedural:n=16", size=16, batch=4, steps=steps, seed=3, device="cpu", out=out, resume=resume, progress=False,
               options=SMALL | (options or {}), **settings)


def weights(trainer):
    return {k: v.clone() for k, v in trainer.method.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def one_line(e):
    assert "\n" not in str(e) and 20 < len(str(e)) < 300, str(e)
    return str(e)


# the equations


def test_least_squares_is_equations_2_and_3_of_the_coursework():
    real, fake = points(40, 1)[:, 0], points(30, 1, 1)[:, 0]
    for a, b, c in ((0., 1., 1.), (-1., 1., 0.), (0., .9, .9)):
        o = LeastSquares(a, b, c)
        torch.testing.assert_close(o.d_loss(real, fake), 0.5 * ((real - b) ** 2).mean() + 0.5 * ((fake - a) ** 2).mean())
        torch.testing.assert_close(o.g_loss(fake), 0.5 * ((fake - c) ** 2).mean())
        torch.testing.assert_close(pull(o, fake), c - fake, atol=1e-5, rtol=0)


@pytest.mark.parametrize("codes", [(-1., 1., 0.), (0., 1., 1.), (0., 1., .5), (-3., 2., 1.), (2., -1., -1.)])
def test_every_coding_measures_pearsons_chi_squared(codes):
    a, b, c = codes
    p, q = (torch.rand(200, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    p, q = p / p.sum(), q / q.sum()
    best = (b * p + a * q) / (p + q)
    both = (p * (best - c) ** 2).sum() + (q * (best - c) ** 2).sum()
    chi2 = ((2 * q - (p + q)) ** 2 / (p + q)).sum()
    torch.testing.assert_close(both, 2 * (b - c) ** 2 - 2 * (b - c) * (b - a) + (b - a) ** 2 * (1 / 2 + chi2 / 4))
    if b - c == 1 and b - a == 2:
        torch.testing.assert_close(both, chi2)


def test_the_best_discriminator_of_least_squares_is_found_by_descent():
    p, q = torch.tensor([.1, .6, .3]), torch.tensor([.5, .3, .2])
    table, o = torch.zeros(3, requires_grad=True), LeastSquares(-1., 1., 0.)
    real, fake = (torch.repeat_interleave(torch.arange(3), (v * 100).long()) for v in (p, q))
    for _ in range(300):
        grad, = torch.autograd.grad(o.d_loss(table[real], table[fake]), table)
        table = (table - grad).detach().requires_grad_()
    torch.testing.assert_close(table.detach(), (p - q) / (p + q), atol=1e-4, rtol=0)


def test_pulls():
    s = torch.linspace(-5, 5, 41)
    expected = {"minimax": s.sigmoid(), "non-saturating": (-s).sigmoid(), "least-squares": 1 - s, "wgan-gp": torch.ones(41), "hinge": torch.ones(41)}
    for name, value in expected.items():
        torch.testing.assert_close(pull(name, s), value, atol=1e-5, rtol=0)


def test_hinge_and_wasserstein_by_hand():
    real, fake = torch.tensor([2., 0., 1.]), torch.tensor([-3., .5, -1.])
    assert Hinge().d_loss(real, fake).item() == pytest.approx(1 / 3 + 1.5 / 3)
    assert Hinge().g_loss(fake).item() == pytest.approx(3.5 / 3)
    assert WassersteinGP().d_loss(real, fake).item() == pytest.approx(-3.5 / 3 - 1)
    assert WassersteinGP().g_loss(fake).item() == pytest.approx(3.5 / 3)
    assert Hinge().penalty(None, real, fake) is None and LeastSquares().penalty(None, real, fake) is None


def test_hinge_is_deaf_outside_its_margin():
    real, fake = torch.tensor([1.5, .5]).requires_grad_(), torch.tensor([-1.5, -.5]).requires_grad_()
    Hinge().d_loss(real, fake).backward()
    assert real.grad.tolist() == [0, -.5] and fake.grad.tolist() == [0, .5]


def test_patches_of_logits_are_averaged():
    "A patch discriminator gives (B, 1, H, W); every loss is one number."
    real, fake = torch.randn(2, 1, 3, 3), torch.randn(2, 1, 3, 3)
    for name in OBJECTIVES:
        o = get_objective(name)
        assert o.d_loss(real, fake).ndim == o.g_loss(fake).ndim == 0
        torch.testing.assert_close(o.d_loss(real, fake), o.d_loss(real.flatten(), fake.flatten()))


def test_earth_mover_is_the_cheapest_plan():
    x, y = points(5, 1)[:, 0], points(5, 1, 1)[:, 0]
    assert earth_mover(x, y).item() == pytest.approx(min((x - y[list(o)]).abs().mean().item() for o in itertools.permutations(range(5))), abs=1e-6)
    for wrong in (x[:4], x[:, None], x[:0]):
        with pytest.raises(UsageError, match="same shape"):
            earth_mover(wrong, x if wrong.ndim > 1 or len(wrong) else wrong)


# the penalty


def test_penalty_and_its_gradient_for_a_linear_critic():
    w = torch.tensor([3., 4.], requires_grad=True)
    value = WassersteinGP(10.).penalty(lambda x: x @ w, points(8), points(8, seed=1))
    assert value.item() == pytest.approx(160, rel=1e-5)
    torch.testing.assert_close(torch.autograd.grad(value, w)[0], 80 * torch.tensor([.6, .8]))
    short = torch.tensor([.3, .4], requires_grad=True)
    one = WassersteinGP(10., one_sided=True).penalty(lambda x: x @ short, points(8), points(8, seed=1))
    assert one.item() == 0 and WassersteinGP(10.).penalty(lambda x: x @ short, points(8), points(8, seed=1)).item() == pytest.approx(2.5, rel=1e-5)


def test_a_flat_critic_has_finite_gradients():
    net = mlp(2, 8, 1)
    for p in net.parameters():
        p.data.zero_()
    WassersteinGP().penalty(net, points(8), points(8, seed=1)).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


def test_slopes_lie_between_the_pair_and_match_differences():
    net = mlp(2, 16, 1).double()
    seen = []

    def watched(x):
        seen.append(x.detach())
        return net(x.to(torch.float64))

    real, fake = points(64), points(64, seed=1) + 5
    torch.manual_seed(0)
    steep = slopes(watched, real, fake)
    x, = seen
    assert (x >= torch.minimum(real, fake) - 1e-5).all() and (x <= torch.maximum(real, fake) + 1e-5).all()
    share = (x - fake) / (real - fake)
    torch.testing.assert_close(share[:, 0], share[:, 1], atol=1e-4, rtol=0)  # one epsilon for each pair
    h, eye, x = 1e-6, torch.eye(2, dtype=torch.float64), x.double()
    by_difference = torch.stack([(net(x + h * e) - net(x - h * e))[:, 0] / (2 * h) for e in eye], 1).norm(dim=1)
    assert ((steep.double() - by_difference).abs() < 1e-3).float().mean() > .98  # but for kinks


def test_the_penalty_works_without_grad_mode_in_bf16_and_compiled():
    net, real, fake = mlp(2, 16, 1), points(8), points(8, seed=1)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(0)
        half = slopes(net, real.bfloat16(), fake.bfloat16())
    assert half.dtype == torch.float32 and not half.requires_grad and half.isfinite().all()
    torch.manual_seed(0)
    plain = slopes(net, real, fake)
    net.compile(backend="aot_eager")
    net(real)
    torch.manual_seed(0)
    compiled = slopes(net, real, fake)
    torch.testing.assert_close(compiled, plain)
    compiled.sum().backward()
    assert net[0].weight.grad.isfinite().all()


def test_the_one_sided_critic_finds_the_distance_on_a_line():
    "And the two-sided one can't turn round there: the chapter's finding."
    torch.manual_seed(0)
    real = lambda n: torch.where(torch.rand(n, 1) < .5, -1.5, 1.) + .2 * torch.randn(n, 1)
    fake = lambda n: .3 * torch.randn(n, 1)
    r, f = real(5000), fake(5000)
    truth, guess = earth_mover(r[:, 0], f[:, 0]).item(), {}
    for one_sided in (False, True):
        torch.manual_seed(0)
        net, o = mlp(1, 64, 64, 1), WassersteinGP(one_sided=one_sided)
        adam = torch.optim.Adam(net.parameters(), 2e-3, betas=(.5, .99))
        for _ in range(500):
            x, y = real(64), fake(64)
            adam.zero_grad()
            (o.d_loss(net(x), net(y)) + o.penalty(net, x, y)).backward()
            adam.step()
        guess[one_sided] = (net(r).mean() - net(f).mean()).item() / truth
    assert .85 < guess[True] < 1.25 and guess[False] < .6


def test_a_penalised_critic_tells_the_distance_of_two_lines():
    torch.manual_seed(0)
    at = lambda x: torch.stack([torch.full((64,), x), torch.rand(64)], 1)
    net, o = mlp(2, 64, 1), WassersteinGP()
    adam = torch.optim.Adam(net.parameters(), 5e-3, betas=(.5, .99))
    for _ in range(200):
        x, y = at(0.), at(2.)
        adam.zero_grad()
        (o.d_loss(net(x), net(y)) + o.penalty(net, x, y)).backward()
        adam.step()
    assert -o.d_loss(net(at(0.)), net(at(2.))).item() == pytest.approx(2 * (1 + 2 / 20), rel=.12)  # exercise 3


# what is refused


@pytest.mark.parametrize("make, words", [
    (lambda: LeastSquares(1., 1.), "different ones"), (lambda: LeastSquares(0., 1., -1.), "not on the real side"),
    (lambda: WassersteinGP(0.), "above 0"), (lambda: train("wgan", options={"norm": "batch"}), "judges each picture by itself"), (lambda: train("gan", options={"objective": "wgan-gp", "norm": "batch"}), "judges each picture by itself"),
    (lambda: get_objective("wasserstein"), "choose one of"), (lambda: get_objective("hinge", margin=2), "does not take"),
    (lambda: LSGAN(size=20), "20"), (lambda: WGAN(latent=0, size=16), "latent"), (lambda: LSGAN(size=16, width=4).sample(z=torch.zeros(2, 7)), "7"),
    (lambda: train("lsgan", options={"objective": "hinge"}), "no option 'objective'"), (lambda: train("wgan", options={"r1": 1.}), "no option 'r1'")])
def test_mistakes_are_one_sentence(make, words):
    with pytest.raises(UsageError, match=words) as e:
        make()
    one_line(e.value)


# the methods


def test_they_are_registered_with_the_options_they_take():
    assert METHODS["lsgan"] is LSGAN and METHODS["wgan"] is WGAN
    assert {"least-squares", "wgan-gp", "hinge", "minimax", "non-saturating"} <= OBJECTIVES.keys()
    import inspect
    for cls in (LSGAN, WGAN):
        assert set(cls.options) <= set(inspect.signature(cls).parameters)
        assert json.loads(json.dumps(cls(size=16, **SMALL).config)) == cls(**cls(size=16, **SMALL).config).config
    assert WGAN(size=16, **SMALL).k == 5 and LSGAN(size=16, **SMALL).k == 1
    assert LSGAN(b=.9, c=.9, size=16, **SMALL).objective.spec == {"name": "least-squares", "a": 0., "b": .9, "c": .9}


@pytest.mark.parametrize("name, options", [("lsgan", {"a": -1., "c": 0.}), ("wgan", {"k": 2}), ("gan", {"objective": "hinge"})])
def test_three_steps_and_three_more_are_six_to_the_last_bit(tmp_path, name, options):
    whole = train(name, options=options)
    first = train(name, tmp_path / "run", options=options, callbacks=[Stop(3)])
    assert first.step == 3
    second = train(name, tmp_path / "run", options=options, resume=True)
    assert second.step == 6 and same(weights(second), weights(whole))
    again = load_method(tmp_path / "run", device="cpu")
    assert torch.equal(again.sample(2, seed=1), second.method.sample(2, seed=1)) and again.config == second.method.config


def test_a_checkpoint_of_other_codes_or_another_method_is_refused(tmp_path):
    train("lsgan", tmp_path / "run", steps=2)
    with pytest.raises(UsageError, match="a was 0.0 and is -1.0 now") as e:
        train("lsgan", tmp_path / "run", steps=4, resume=True, options={"a": -1., "c": 0.})
    one_line(e.value)
    with pytest.raises(UsageError, match="'lsgan'") as e:
        train("wgan", tmp_path / "run", steps=4, resume=True)
    one_line(e.value)
    whole = (tmp_path / "run" / "last.safetensors").read_bytes()
    (tmp_path / "run" / "last.safetensors").write_bytes(whole[:len(whole) // 2])
    with pytest.raises(WeightsError) as e:
        load_method(tmp_path / "run" / "last.safetensors")
    one_line(e.value)


def test_penalty_is_in_the_history_and_in_bf16_too():
    for precision in ("fp32", "bf16"):
        history = train("wgan", steps=2, options={"k": 1}, precision=precision).history
        assert all(math.isfinite(v) for v in history[-1].values()) and history[-1]["d_penalty"] > 0


def test_pieces_of_a_batch_and_a_whole_one_train_alike():
    "Not to the last bit: G has batch norm, and the penalty draws other places; the losses are means either way."
    one, cut = (train("wgan", steps=1, options={"k": 1}, accumulate=n).history[-1] for n in (1, 2))
    assert one["d_adv"] == pytest.approx(cut["d_adv"], abs=2e-4) and one["d_penalty"] == pytest.approx(cut["d_penalty"], rel=.05)


def test_no_picture_and_no_folder(tmp_path):
    with pytest.raises(DataError) as e:
        run("lsgan", tmp_path / "nowhere", size=16, batch=4, steps=1, device="cpu", progress=False, options=SMALL)
    one_line(e.value)


def test_least_squares_covers_the_ring():
    method = PointGAN("least-squares")
    data, _ = method.loader("ring", 0, 128, 0)
    Trainer(method, data, steps=900, seed=0, device="cpu", progress=False).fit()
    near = torch.cdist(method.generator(torch.randn(500, 4)).detach(), data.places) < .25
    assert (near.float().mean(0) > .02).sum() >= 6


def test_a_critic_has_no_batch_norm_because_slopes_would_mix():
    first, others, strangers = torch.randn(1, 3, 16, 16), torch.randn(7, 3, 16, 16), 2 * torch.randn(7, 3, 16, 16)

    def slope(net, rest):
        x = torch.cat([first, rest]).requires_grad_()
        return torch.autograd.grad(net(x).sum(), x)[0][0]

    with pytest.raises(UsageError, match="batch norm"):
        slopes(Discriminator(16, 8, "batch"), others, others)
    plain, batch = Discriminator(16, 8, "none"), Discriminator(16, 8, "batch")
    torch.testing.assert_close(slope(plain, others), slope(plain, strangers))
    assert (slope(batch, others) - slope(batch, strangers)).norm() > .1 * slope(batch, others).norm()


# the recorded experiment


def test_the_benchmark_runs():
    out = subprocess.run([sys.executable, "benchmarks/objectives.py", "ring", "--fast", "--steps", "6"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert out.returncode == 0, out.stderr[-2000:]
    table = json.loads(out.stdout)["table"]
    assert {"minimax", "least squares 0, 1, 1", "WGAN-GP", "hinge"} <= table.keys() and all(v["seeds"] == 1 for v in table.values())


def test_the_recorded_results_are_complete():
    book = json.loads((ROOT / "benchmarks" / "results" / "objectives.json").read_text())
    for part, key in (("ring", "modes"), ("faces", "fid")):
        runs = book[part]["runs"]
        seeds = {label: [r["seed"] for r in runs if r["label"] == label] for label in {r["label"] for r in runs}}
        assert len(seeds) >= 7 and all(len(s) >= 3 and len(s) == len(set(s)) for s in seeds.values())
        assert all(r["failed"] or math.isfinite(r[key]) for r in runs)
    assert book["faces"]["yardstick"]["real"] < min(r["fid"] for r in book["faces"]["runs"] if not r["failed"])
