"The GAN game: objectives, the toy, the networks, and a run that stops and goes on."

import math

import pytest
import torch

from deepswap.core import DeepswapError, UsageError, WeightsError
from deepswap.gan import GAN, OBJECTIVES, Discriminator, Generator, Minimax, NonSaturating, Objective, PointGAN, get_objective
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


class Stop:
    def __init__(self, step):
        self.at = step

    def on_step(self, t):
        if t.step == self.at:
            t.request_stop()


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
