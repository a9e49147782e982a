"Normalisation: every layer against torch's own, every claim of chapter 11, and one sentence for each wrong input."

import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from deepswap.core import UsageError
from deepswap.norms import (
    NORMS,
    SPADE,
    AdaIN,
    BatchNorm,
    EqualLinear,
    InstanceNorm,
    MappingNetwork,
    adain,
    label_planes,
    modulate,
    norm_layer,
    normalise,
    statistics,
    truncate,
)


@pytest.fixture(autouse=True)
def same_dice():
    torch.manual_seed(0)


def features(b=4, c=6, s=8):
    return 3 * torch.randn(b, c, s, s) + torch.arange(c)[:, None, None]


def close(a, b, eps=1e-5):
    assert a.shape == b.shape and a.dtype == b.dtype
    assert (a - b).abs().max() <= eps, (a - b).abs().max()


def test_batch_norm_is_torchs_in_training_and_evaluation():
    ours, theirs = BatchNorm(6, momentum=0.3), nn.BatchNorm2d(6, momentum=0.3)
    nn.init.normal_(theirs.weight), nn.init.normal_(theirs.bias)
    ours.load_state_dict(theirs.state_dict())
    for b in (4, 1, 7):
        x = features(b).requires_grad_()
        y = x.detach().clone().requires_grad_()
        close(ours(x), theirs(y))
        ours(x).pow(3).sum().backward(), theirs(y).pow(3).sum().backward()
        assert torch.allclose(x.grad, y.grad, rtol=1e-3, atol=1e-2 * float(y.grad.abs().mean()))
    for k, v in theirs.state_dict().items():
        assert torch.allclose(ours.state_dict()[k].float(), v.float(), atol=1e-5), k
    x = features()
    close(ours.eval()(x), theirs.eval()(x))


def test_running_variance_is_the_unbiased_one():
    bn = BatchNorm(1, momentum=1.0)
    x = torch.tensor([0.0, 2.0]).view(2, 1, 1, 1)
    bn(x)
    assert bn.running_var.item() == pytest.approx(2.0) and bn.running_mean.item() == pytest.approx(1.0)


@pytest.mark.parametrize("affine", [False, True])
def test_instance_norm_is_torchs(affine):
    ours, theirs = InstanceNorm(6, affine=affine), nn.InstanceNorm2d(6, affine=affine)
    x = features()
    for train in (True, False):
        close(ours.train(train)(x), theirs.train(train)(x))
    close(ours(x[:1]), ours(x)[:1], 1e-6)


def test_layer_norm_is_torchs():
    x = features()
    close(normalise(x, (1, 2, 3)), F.layer_norm(x, x.shape[1:]))
    close(normalise(x, (1, 2, 3)), F.group_norm(x, 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_statistics_survive_low_and_high_precision(dtype):
    x = (100 * features()).to(dtype)  # squares overflow float16
    out = normalise(x)
    assert out.dtype == dtype and out.isfinite().all()
    mean, std = statistics(out.double(), eps=0)
    assert mean.abs().max() < 0.02 and (std - 1).abs().max() < 0.02


def test_modulate_takes_three_shapes():
    x = features()
    g, b = torch.randn(6), torch.randn(6)
    want = x * g.view(1, 6, 1, 1) + b.view(1, 6, 1, 1)
    close(modulate(x, g, b), want)
    close(modulate(x, g.expand(4, 6), b.expand(4, 6)), want)
    close(modulate(x, g.view(1, 6, 1, 1).expand_as(x), b.view(1, 6, 1, 1).expand_as(x)), want)


def test_adain_takes_on_the_statistics():
    x, y = features(4), features(4, s=5) * 2 + 1
    for a, b in zip(statistics(adain(x, y)), statistics(y)):
        close(a, b, 1e-3)
    close(adain(x, y, alpha=0.0), x, 1e-6)
    close(adain(x, x), x, 1e-4)
    assert adain(x, y[:1]).shape == x.shape


def test_adain_layer_starts_near_instance_norm_and_follows_its_code():
    layer = AdaIN(6, 10)
    nn.init.zeros_(layer.affine.weight)
    x = features()
    close(layer(x, torch.randn(4, 10)), InstanceNorm(6)(x))
    nn.init.normal_(layer.affine.weight)
    w = torch.randn(4, 10)
    gamma, beta = layer.affine(w).chunk(2, 1)
    mean, std = statistics(layer(x, w))
    close(mean.flatten(1), beta, 1e-4)
    close(std.flatten(1), gamma.abs(), 1e-2)


def silent(spade, gamma, beta):
    "A SPADE whose modulation does not depend on the map."
    for conv, bias in ((spade.gamma, gamma - 1), (spade.beta, beta)):
        nn.init.zeros_(conv.weight)
        conv.bias.data.copy_(bias)
    return spade


def test_spade_with_constant_modulation_is_batch_norm():
    spade, bn, x = SPADE(6, 5), nn.BatchNorm2d(6), features()
    nn.init.normal_(bn.weight), nn.init.normal_(bn.bias)
    silent(spade, bn.weight.data, bn.bias.data)
    for train in (True, False):
        close(spade.train(train)(x, torch.rand(4, 5, 8, 8)), bn.train(train)(x))


def test_spade_over_one_label_is_conditional_normalisation():
    spade, x = SPADE(6, 5, norm="instance", pad="replicate"), features()
    m = label_planes(torch.tensor([0, 1, 4, 1]).view(4, 1, 1).expand(4, 8, 8), 5)
    gamma, beta = spade.painted(m, (8, 8))
    close(spade(x, m), modulate(normalise(x), gamma[:, :, 0, 0], beta[:, :, 0, 0]))
    zeros = SPADE(6, 5, norm="instance")
    assert zeros.painted(m, (8, 8))[0].std((2, 3)).max() > 1e-3  # the border shows through zero padding


def test_spade_shapes_and_map_of_another_size():
    spade = SPADE(6, 5, hidden=7)
    assert spade(features(), torch.rand(4, 5, 32, 32)).shape == (4, 6, 8, 8)
    assert spade(features(), torch.rand(4, 5, 2, 2)).shape == (4, 6, 8, 8)


def test_label_planes():
    parts = torch.randint(0, 14, (2, 5, 7), dtype=torch.uint8)
    planes = label_planes(parts, 14)
    assert planes.shape == (2, 14, 5, 7) and torch.equal(planes.argmax(1), parts.long()) and (planes.sum(1) == 1).all()


@pytest.mark.parametrize("name", [*NORMS, "group", "group-2"])
def test_norm_layer_by_name(name):
    make = pickle.loads(pickle.dumps(norm_layer(name)))
    for c in (3, 6, 32):
        x = features(c=c)
        assert make(c)(x).shape == x.shape
    assert norm_layer(make) is make


def test_mapping_network_shapes_scale_and_truncation():
    net = MappingNetwork(8, 5, layers=3, width=16)
    z = torch.randn(512, 8)
    w = net(z)
    assert w.shape == (512, 5) and 0.3 < w.std() < 3
    close(net.average, w.mean(0))
    close(net(5 * z), w)  # only the direction of z counts
    net.eval()
    before = net.average.clone()
    close(net(z, psi=0.0), before.expand(512, 5))
    close(net(z, psi=0.5), truncate(net(z), before, 0.5))
    close(net.average, before)


def test_equal_linear_learns_at_its_rate():
    layer = EqualLinear(64, 32, rate=0.01)
    x = torch.randn(2000, 64)
    assert layer(x).std().item() == pytest.approx(1.0, abs=0.1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    before = layer(x)
    layer.bias.grad, layer.weight.grad = torch.ones_like(layer.bias), torch.zeros_like(layer.weight)
    optimizer.step()
    close(before - layer(x), torch.full_like(before, 0.01), 1e-4)


@pytest.mark.parametrize("wrong", [
    lambda: norm_layer("batsh"),
    lambda: norm_layer("group-0"),
    lambda: norm_layer(None),
    lambda: BatchNorm(3)(torch.rand(2, 4, 8, 8)),
    lambda: BatchNorm(3)(torch.rand(1, 3, 1, 1)),
    lambda: InstanceNorm(3)(torch.rand(2, 3)),
    lambda: AdaIN(3, 4)(torch.rand(2, 3, 8, 8), torch.rand(2, 5)),
    lambda: SPADE(3, 4)(torch.rand(2, 3, 8, 8), torch.rand(2, 5, 8, 8)),
    lambda: SPADE(3, 4)(torch.rand(2, 5, 8, 8), torch.rand(2, 4, 8, 8)),
    lambda: MappingNetwork(4, 4)(torch.rand(2, 5)),
    lambda: MappingNetwork(4, 4, layers=0),
])
def test_wrong_input_is_one_sentence(wrong):
    with pytest.raises(UsageError) as e:
        wrong()
    assert "\n" not in str(e.value) and 20 < len(str(e.value)) < 300


def test_networks_save_and_load():
    for net, more in ((BatchNorm(6), ()), (SPADE(6, 5), (torch.rand(4, 5, 8, 8),)), (AdaIN(6, 3), (torch.rand(4, 3),))):
        x = features()
        net(x, *more)
        copy = pickle.loads(pickle.dumps(net)).eval()
        copy.load_state_dict(net.state_dict())
        assert torch.equal(net.eval()(x, *more), copy(x, *more))
