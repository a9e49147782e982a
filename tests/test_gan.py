"The GAN game: objectives, the toy, the networks, and a run that stops and goes on."

import math

import pytest
import torch
from common import Stop

from deepswap.core import DeepswapError, UsageError, WeightsError
from deepswap.gan import (
    GAN,
    OBJECTIVES,
    POINTS,
    Album,
    Discriminator,
    Generator,
    Minimax,
    Mixture,
    NonSaturating,
    Objective,
    Playground,
    PointGAN,
    arena,
    coverage,
    get_objective,
    js_divergence,
    landscape,
    latent_walk,
    lattice,
    modes_covered,
    nearest,
    points,
    r1_penalty,
    wishes,
)
from deepswap.train import Trainer, load_method

pytestmark = pytest.mark.usefixtures("one_thread")


def one_line(e):
    assert "\n" not in str(e) and 20 < len(str(e)) < 420, str(e)
    return str(e)


def small(**options):
    return GAN(**{"size": 16, "width": 8, "latent": 6, **options})


def faces(n=8, size=16):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def trainer(method=None, steps=6, options=(), **settings):
    torch.manual_seed(0)
    return Trainer(
        method or small(**dict(options)), [faces(), -faces()], steps=steps, seed=0, progress=False, preview_every=100, **settings
    )


def test_objectives_follow_the_formulas():
    real, fake = torch.tensor([1.5, -0.3]), torch.tensor([-2.0, 0.4])
    d = torch.sigmoid
    v = d(real).log().mean() + (1 - d(fake)).log().mean()
    for cls in (Minimax, NonSaturating):
        assert torch.allclose(cls().d_loss(real, fake), -v)
    assert torch.allclose(Minimax().g_loss(fake), (1 - d(fake)).log().mean())
    assert torch.allclose(NonSaturating().g_loss(fake), -d(fake).log().mean())
    smooth = NonSaturating(smoothing=0.1)
    x = torch.tensor(math.log(9.0), requires_grad=True)
    smooth.d_loss(x[None], fake).backward()
    assert abs(x.grad) < 1e-6  # D(x) = 0.9 is the best answer now
    assert torch.isfinite(smooth.d_loss(torch.tensor([1e4]), torch.tensor([1e4])))


def test_get_objective_takes_names_classes_specs_and_objects():
    o = get_objective("non-saturating", smoothing=0.2)
    assert isinstance(o, NonSaturating) and get_objective(o) is o
    assert get_objective(o.spec).real_target == o.real_target == 0.8 and Minimax().spec == "minimax"
    assert isinstance(get_objective(Minimax), Minimax) and set(OBJECTIVES) >= {"minimax", "non-saturating"}
    for bad in ("least-cubes", None, {"name": "x"}):
        with pytest.raises(UsageError) as e:
            get_objective(bad)
        assert "minimax" in one_line(e.value)
    with pytest.raises(UsageError) as e:
        get_objective("minimax", softness=1)
    assert "softness" in one_line(e.value)
    with pytest.raises(UsageError):
        NonSaturating(smoothing=0.7)
    assert Objective().penalty(None, None, None) is None


@pytest.mark.parametrize("size", (8, 16, 64))
@pytest.mark.parametrize("norm", ("spectral", "batch", "none"))
def test_network_shapes(size, norm):
    x = Generator(5, size, 4)(torch.randn(2, 5))
    assert x.shape == (2, 3, size, size) and x.abs().max() <= 1
    assert Discriminator(size, 4, norm)(x).shape == (2,)


def test_full_size_is_dcgan():
    assert [m.out_channels for m in Generator().body.modules() if isinstance(m, torch.nn.ConvTranspose2d)] == [512, 256, 128, 64, 3]
    assert [m.out_channels for m in Discriminator().body.modules() if isinstance(m, torch.nn.Conv2d)] == [64, 128, 256, 512, 1]


def test_bad_input_is_one_sentence():
    for make in (
        lambda: GAN(size=48),
        lambda: GAN(latent=0),
        lambda: GAN(optimizer="sgd"),
        lambda: GAN(norm="layer"),
        lambda: GAN(objective="x"),
        lambda: GAN(k=-1),
        lambda: GAN(r1=-1.0),
        lambda: small().sample(z=torch.zeros(2, 7)),
        lambda: small().sample(0),
        lambda: small().sample(z=torch.zeros(6)),
        lambda: Discriminator(16, 4)(torch.zeros(1, 3, 32, 32)),
        lambda: Discriminator(16, 4)(torch.zeros(1, 1, 16, 16)),
    ):
        with pytest.raises(UsageError) as e:
            make()
        one_line(e.value)
    with pytest.raises(UsageError) as e:
        trainer(small(k=9)).fit()
    assert "k = 9" in one_line(e.value)


def test_samples_repeat_and_do_not_depend_on_company():
    g = small()
    assert torch.equal(g.sample(4, seed=3), g.sample(4, seed=3)) and not torch.equal(g.sample(4), g.sample(4))
    z = g.noise(5, seed=1)
    assert torch.allclose(g.sample(z=z)[2:3], g.sample(z=z[2:3]), atol=1e-5)
    assert g.generator.training and g.sample(2).shape == (2, 3, 16, 16)


@pytest.mark.parametrize(
    "options", ({}, {"norm": "batch", "optimizer": "rmsprop", "k": 2}, {"r1": 0.1, "smoothing": 0.1, "objective": "minimax"}), ids=str
)
def test_resume_is_exact(tmp_path, options):
    whole = trainer(options=options, ema=0.9).fit()
    trainer(options=options, ema=0.9, out=tmp_path, callbacks=[Stop(3)]).fit()
    again = trainer(options=options, ema=0.9, out=tmp_path).resume().fit()
    a, b = whole.snapshot()[0], again.snapshot()[0]
    assert again.step == 6 and all(torch.equal(a[k], b[k]) for k in a if k.startswith(("network", "average")))


def test_k_minibatches_of_d_then_one_step_of_g():
    seen = []
    m = small(k=3)
    m.step(faces(9), lambda name, f, *x: seen.append((name, [len(t) for t in x])))
    assert seen == [("d", [3, 3])] * 3 + [("g", [3])]


def test_saved_weights_come_back_and_others_are_refused(tmp_path):
    t = trainer(ema=0.5, out=tmp_path, steps=2).fit()
    with t.averaged():
        expected = t.method.sample(3, seed=0)
    assert torch.equal(load_method(tmp_path, device="cpu").sample(3, seed=0), expected)
    for other in (small(latent=7), PointGAN()):
        with pytest.raises(DeepswapError) as e:
            trainer(other, out=tmp_path).resume()
        one_line(e.value)
    data = (tmp_path / "last.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(WeightsError) as e:
        load_method(tmp_path / "cut.safetensors")
    one_line(e.value)


@pytest.mark.parametrize("what", [*POINTS, "0,0; 1,0.5"])
def test_mixtures_sample_from_their_density(what):
    data = points(what, spread=0.1)
    x, n = data.sample(4000), 160
    side = ((torch.arange(n) + 0.5) / n * 2 - 1) * 2
    density = data.log_density(torch.cartesian_prod(side, side)).exp()
    assert abs(float(density.sum() * (4 / n) ** 2) - 1) < 1e-2
    mean = (density[:, None] * torch.cartesian_prod(side, side)).sum(0) / density.sum()
    assert torch.allclose(x.mean(0), mean, atol=0.08)
    assert next(iter(data)).shape == (128, 2)


@pytest.mark.parametrize("bad", ["a heart", "1,2; 3", "", "1;2", [[1.0, 2.0, 3.0]], []])
def test_points_that_are_none(bad):
    with pytest.raises(UsageError) as e:
        points(bad)
    one_line(e.value)


def test_an_expert_learns_p_over_p_plus_q():
    "Goodfellow and others 2014, proposition 1, with two fixed Gaussians."
    torch.manual_seed(0)
    real, fake = Mixture([[0.4, 0.0]], 256, 0.4), Mixture([[-0.4, 0.0]], 256, 0.4, seed=1)
    m = PointGAN(width=32, lr_d=5e-3)
    optimizer = m.optimizers()["d"]
    for _ in range(300):
        optimizer.zero_grad()
        Minimax().d_loss(m.discriminator(real.sample(256))[:, 0], m.discriminator(fake.sample(256))[:, 0]).backward()
        optimizer.step()
    x = torch.cat([real.sample(500), fake.sample(500)])
    best = torch.sigmoid(real.log_density(x) - fake.log_density(x))
    assert (m.discriminator(x)[:, 0].sigmoid() - best).abs().mean() < 0.06


def test_divergence_and_modes():
    ring = points("ring")
    a, b = ring.sample(3000), ring.sample(3000)
    assert js_divergence(a, a) == 0 and js_divergence(a, b) < 0.1 < 0.3 < js_divergence(a, b * 0.5)
    assert abs(js_divergence(a, b + 9) - js_divergence(b + 9, a)) < 1e-9  # symmetric, far points are clamped into the last cells
    assert modes_covered(a, ring.centres())[0] == 8 and modes_covered(a[a[:, 0] > 0], ring.centres())[0] < 6
    assert modes_covered(torch.zeros(5, 2), ring.centres()) == (0, 0.0)


def test_neighbours_and_coverage():
    x = torch.randn(50, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    far, which = nearest(x[:7], x)
    assert which.tolist() == list(range(7)) and far.max() < 1e-3
    assert abs(float(nearest(torch.zeros(1, 2), torch.tensor([[3.0, 4.0], [9.0, 9.0]]))[0]) - 5 / math.sqrt(2)) < 1e-5
    features = torch.randn(400, 3, generator=torch.Generator().manual_seed(1))
    assert coverage(features[:200], features[200:]) > 0.9 and coverage(features[:200], features[200:] * 0 + features[0]) < 0.2
    with pytest.raises(UsageError) as e:
        nearest(x, x[:2], 3)
    one_line(e.value)


def test_r1_and_wishes_are_gradients():
    line = torch.nn.Linear(2, 1, bias=False)
    line.weight.data = torch.tensor([[3.0, 4.0]])
    assert torch.allclose(r1_penalty(line, torch.randn(6, 2)), torch.tensor(25.0))
    game = PointGAN()
    game.discriminator = line
    x = torch.randn(5, 2)
    assert torch.allclose(wishes(game, x), torch.sigmoid(-line(x)) * line.weight, atol=1e-6)  # (1 - D) times the slope
    with torch.no_grad():
        assert r1_penalty(line, x) > 0  # also where gradients are off


def test_playground_is_a_film_that_can_be_wound():
    p = Playground("0,0; 1,1", k=2, batch=32)
    p.at(7)
    assert p.moves == "ddgddgd" and len(p.scores) == 8
    there, state = p.fakes(), torch.get_rng_state()
    p.at(2)
    p.at(7)
    assert torch.equal(p.fakes(), there) and torch.equal(torch.get_rng_state(), state)
    before = p.fakes()
    p.move("d")
    assert torch.equal(p.fakes(), before)
    p.rounds(1)
    assert not torch.equal(p.fakes(), before) and p.moves == "ddgddgd" + "d" + "gdd"
    assert p.picture().jpeg()[:2] == b"\xff\xd8"


def test_slow_motion_is_the_same_game():
    "Looking at the parts of a move does not change it, and only the last part touches the weights."
    quick, slow = (Playground("ring", k=2, noise=2, batch=32) for _ in range(2))
    quick.at(6)
    seen = []
    while len(slow.moves) < 6 or slow.part != 4:
        before = [p.clone() for p in slow.game.parameters()]
        slow.next_part()
        frame = slow.frame(n=32)
        seen.append(f"{slow.player}{slow.part}")
        same = all(torch.equal(a, b) for a, b in zip(before, slow.game.parameters()))
        assert same == (slow.part != 4), seen
        assert frame["fakes"].shape == (32, 2) and frame["beat"] == slow.part
    assert " ".join(seen[:13]) == "d0 d1 d2 d4 d0 d1 d2 d4 g0 g1 g2 g3 g4" and slow.moves == quick.moves == "ddgddg"
    assert torch.equal(slow.fakes(), quick.fakes()) and slow.scores == quick.scores and slow.losses == quick.losses
    slow.next_part()
    slow.move("g")  # in the middle of slow motion
    assert slow.part is None and slow.moves == "ddgddgg"


def test_points_and_rules_change_within_a_game():
    p = Playground("ring", noise=2, batch=32, lr_g=2e-3)
    p.rounds(5)
    there = p.fakes()
    p.paint([[0.0, 0.0], [1.0, 1.0]])
    p.rules(objective="minimax", k=3, lr_d=1e-4, r1=0.5)
    assert torch.equal(p.fakes(), there) and len(p.scores) == 11, "nobody has moved"
    assert isinstance(p.game.objective, Minimax) and not isinstance(p.game.objective, NonSaturating) and p.game.k == 3 and p.game.r1 == 0.5
    assert [g["lr"] for o in (p.trainer.optimizers[x] for x in "gd") for g in o.param_groups] == [2e-3, 1e-4]
    assert p.frame()["places"] == [[0.0, 0.0], [1.0, 1.0]] and p.frame()["data"] == "own"
    p.restart()
    assert p.frame()["rules"] == {"objective": "minimax", "k": 3, "r1": 0.5, "lr_g": 2e-3, "lr_d": 1e-4} and p.moves == "" and p.data.modes == 2
    p.rules(objective="non-saturating")
    assert p.game.k == 1, "an objective brings its own k"
    for bad in ({"k": -1}, {"objective": "x"}):
        with pytest.raises(UsageError) as e:
            p.rules(**bad)
        one_line(e.value)
    assert p.frame()["rules"]["objective"] == "non-saturating" and p.frame()["rules"]["k"] == 1, "a refused rule changes nothing"
    p.paint([])
    assert p.frame()["reals"].shape == (0, 2) and p.score() == 1
    with pytest.raises(UsageError) as e:
        p.move()
    assert "draw" in one_line(e.value) and p.moves == ""


def test_a_frame_is_what_the_game_says():
    p = Playground("ring", noise=2, batch=32)
    p.rounds(3)
    f = p.frame(n=50, cells=8, arrows=20)
    assert torch.equal(f["fakes"], p.fakes()[:50]) and torch.equal(f["mesh"], p.game.generator(lattice()).detach())
    x = torch.tensor([[-1.4, 1.0]])  # the first column, the seventh row from below
    assert torch.allclose(f["says"][6, 0], p.game.discriminator(x).sigmoid()[0, 0])
    w = wishes(p.game, f["fakes"][:20])
    assert torch.allclose(f["arrows"] / f["arrows"].norm(dim=1).max(), w / w.norm(dim=1).max(), atol=1e-6) and abs(f["arrows"].norm(dim=1).max() - 0.5) < 1e-5
    assert f["scores"].tolist() == pytest.approx(p.scores) and (f["moves"], f["d_moves"], f["g_moves"]) == (6, 3, 3)
    p.rounds(160)
    assert len(p.frame()["scores"]) <= 300, "a long game fits into one message"
    assert Playground("ring", noise=4).frame()["mesh"].shape == (0, 2), "a code of four numbers has no plane"
    shares = torch.randn(200_000, 2, generator=torch.Generator().manual_seed(0))
    lines = lattice(9)[:9, 1].contiguous()
    cell = (torch.bucketize(shares[:, 0].contiguous(), lines) * 10 + torch.bucketize(shares[:, 1].contiguous(), lines)).bincount(minlength=100).view(10, 10)[1:9, 1:9] / 200_000
    assert (cell - (0.96 / 8) ** 2).abs().max() < 1.5e-3, "every cell of the lattice has the same share of the noise"


def test_the_browser_asks_and_python_answers():
    import json

    from deepswap import objectives  # noqa: F401 (enters its objectives)
    from deepswap.gan import POINTS as presets

    play, said = Playground("ring", noise=2, batch=32), []
    box = arena(play)
    box.send = lambda content, buffers=None: said.append((json.loads(json.dumps(content)), buffers))

    def ask(what, /, **args):
        box._handle_custom_msg({"id": "7", "name": what, "args": args}, [])
        return said[-1]

    for name in presets:
        assert ask("preset", name=name)[0]["answer"]["data"] == name
    content, buffers = ask("look")
    assert content["id"] == "7" and len(buffers) == len(content["tensors"]) and len(buffers[content["tensors"].index("says")]) == 4 * box.state["cells"]
    assert ask("step", player="g")[0]["answer"]["g_moves"] == 1 and ask("step", n=3)[0]["answer"]["moves"] == 4 and ask("round")[0]["answer"]["moves"] == 6
    assert ask("paint", points=[[0, 0.5]])[0]["answer"]["places"] == [[0, 0.5]]
    for name in box.state["objectives"]:
        assert ask("rules", objective=name)[0]["answer"]["rules"]["objective"] == name and ask("round")[0]["answer"]["moves"] > 6
    assert {"least-squares", "wgan-gp"} <= set(box.state["objectives"])
    assert "draw" in (ask("paint", points=[]), ask("beat"))[1][0]["error"]
    assert "answers are" in ask("delete")[0]["error"] and "TypeError" in ask("step", by=3)[0]["error"]
    assert "https:" not in box._esm + box._css and "import " not in box._esm, "nothing is loaded from anywhere"


def test_an_objective_without_probabilities_has_a_landscape_too():
    from deepswap import objectives  # noqa: F401

    p = Playground("ring", noise=2, batch=64, objective="wgan-gp", lr_d=5e-3)
    p.rounds(20)
    real, fake = p.opinion(p.shown[:500]).mean(), p.opinion(p.fakes()[:500]).mean()
    assert 0 <= fake < 0.5 < real <= 1


def test_landscape_is_upright():
    from deepswap.show import figure

    says = landscape(figure()[1], lambda x: 9 * x[:, 1], n=10)
    assert says.shape == (10, 10) and says[0].max() < 0.1 and says[-1].min() > 0.9


def test_latent_walk_keeps_the_length():
    a = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    walk = latent_walk(a, 9)
    assert walk.shape == (9, 64) and torch.allclose(walk[[0, 4, 8]], a, atol=1e-4)
    assert walk.norm(dim=1).min() > a.norm(dim=1).min() - 1e-3
    assert torch.isfinite(latent_walk(a[[0, 0]], 4)).all()
    for bad in ((a[:1], 3), (a, 1)):
        with pytest.raises(UsageError) as e:
            latent_walk(*bad)
        one_line(e.value)


def test_album_keeps_previews_of_the_same_codes():
    album = Album()
    t = trainer(steps=4, callbacks=[album])
    t.preview_every = 2
    t.fit()
    assert len(album) == 2 and [album[i][0] for i in (0, 1)] == [2, 4] and album[0][1].shape == (36, 3, 16, 16)
    assert (album[1][1] - t.method.sample(36, seed=0)).abs().max() < 0.01


def test_toy_game_learns_the_ring():
    torch.manual_seed(0)
    game, data = PointGAN(lr_g=2e-3, lr_d=2e-3), points("ring", 128)
    t = Trainer(game, data, steps=400, seed=0, progress=False, preview_every=1000, log_every=100)
    before = js_divergence(game.generator(game.noise(1000)), data.sample(1000))
    t.fit()
    assert js_divergence(game.generator(game.noise(1000)), data.sample(1000)) < before - 0.2


def test_run_by_name_with_one_attribute():
    from deepswap.train import run

    t = run("gan", "procedural:smiling,n=12", size=16, batch=4, steps=2, options={"latent": 5, "width": 4, "k": 2}, progress=False)
    assert t.method.config["latent"] == 5 and t.preview().shape == (36, 3, 16, 16)
    assert t.history[-1]["step"] == 2
    p = run("point-gan", "grid", batch=16, steps=2, progress=False)
    assert p.preview().shape == (1, 3, 128, 128)
