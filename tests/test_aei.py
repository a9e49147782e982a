"FaceShifter's networks: the equations against a slow loop, the plan against the published layers, masks, and one sentence for each wrong input."

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from deepswap.aei import AAD, AADGenerator, AADResBlk, AEINet, AttributeEncoder, MultiScaleDiscriminator, enlarged, integrate, levels, work
from deepswap.core import UsageError
from deepswap.cyclegan import receptive_field

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def same_dice():
    torch.manual_seed(0)


def unit(n, dim):
    return F.normalize(torch.randn(n, dim))


def some_aad(channels=3, attribute_channels=2, identity_dim=4, **kw):
    layer = AAD(channels, attribute_channels, identity_dim, **kw)
    for p in layer.parameters():
        nn.init.normal_(p)
    return layer


def slow_aad(layer, h, attribute, identity, together):
    "Equations 4.3 to 4.7 for every number by itself; `together`: statistics over the batch (4.4, 4.5), else for each picture."
    out = torch.empty_like(h)
    pad = layer.attribute.padding[0]
    wide, gamma_beta = F.pad(attribute, [pad] * 4), layer.identity(identity)
    C, k = h.shape[1], layer.attribute.kernel_size[0]
    bar = torch.empty_like(h)
    for n in range(len(h)):
        for c in range(C):
            x = h[:, c] if together else h[n, c]
            mean = x.sum() / x.numel()
            bar[n, c] = (h[n, c] - mean) / (((x - mean) ** 2).sum() / x.numel() + layer.norm.eps).sqrt()
    looked = F.pad(bar, [pad] * 4)
    for n in range(len(h)):
        for y in range(h.shape[2]):
            for x in range(h.shape[3]):
                seen, inside = wide[n, :, y : y + k, x : x + k], looked[n, :, y : y + k, x : x + k]
                for c in range(C):
                    slope = (layer.attribute.weight[c] * seen).sum() + layer.attribute.bias[c]
                    shift = (layer.attribute.weight[C + c] * seen).sum() + layer.attribute.bias[C + c]
                    m = min(c, len(layer.attention.bias) - 1)
                    M = 1 / (1 + (-(layer.attention.weight[m] * inside).sum() - layer.attention.bias[m]).exp())
                    A, ident = slope * bar[n, c, y, x] + shift, gamma_beta[n, c] * bar[n, c, y, x] + gamma_beta[n, C + c]
                    out[n, c, y, x] = (1 - M) * A + M * ident
    return out


@pytest.mark.parametrize("norm", ["instance", "batch-plain"])
@pytest.mark.parametrize("kernel, mask", [(1, "one"), (3, "channel"), (3, "one")])
def test_aad_is_equations_4_3_to_4_7(norm, kernel, mask):
    layer = some_aad(norm=norm, kernel=kernel, mask=mask)
    h, attribute, identity = torch.randn(2, 3, 4, 5) * 2 + 1, torch.randn(2, 2, 4, 5), unit(2, 4)
    with torch.no_grad():
        torch.testing.assert_close(layer(h, attribute, identity), slow_aad(layer, h, attribute, identity, norm == "batch-plain"), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
def test_integrate_gives_each_side_alone_and_their_mixture(channels):
    h, a, i = torch.randn(2, 3, 4, 4), torch.randn(2, 2, 3, 4, 4), torch.randn(2, 2, 3)
    A, I = a[0] * h + a[1], i[0][..., None, None] * h + i[1][..., None, None]
    mask = torch.rand(2, channels, 4, 4)
    torch.testing.assert_close(integrate(h, a, i, torch.zeros_like(mask)), A)
    torch.testing.assert_close(integrate(h, a, i, torch.ones_like(mask)), I)
    torch.testing.assert_close(integrate(h, a, i, mask), (1 - mask) * A + mask * I)


def test_the_gradients_of_integrate_are_those_of_the_formula():
    leaves = [torch.randn(2, 3, 4, 4, requires_grad=True) for _ in range(3)] + [torch.randn(2, 3, requires_grad=True) for _ in range(2)] + [torch.rand(2, 1, 4, 4, requires_grad=True)]
    h, ga, ba, gi, bi, M = leaves
    plain = (1 - M) * (ga * h + ba) + M * (gi[..., None, None] * h + bi[..., None, None])
    weight = torch.randn_like(plain)
    for x, y in zip(torch.autograd.grad((plain * weight).sum(), leaves), torch.autograd.grad((integrate(h, (ga, ba), (gi, bi), M) * weight).sum(), leaves)):
        torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-4)


def test_a_new_aad_passes_the_features_on_where_nothing_modulates():
    "Slopes start at 1 and shifts at 0: with a zero map and a zero identity the layer is its normalisation."
    layer, h = AAD(4, 2, 3), torch.randn(2, 4, 8, 8)
    out = layer(h, torch.zeros(2, 2, 8, 8), torch.zeros(2, 3))
    torch.testing.assert_close(out, F.instance_norm(h), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mask, channels", [("one", 1), ("channel", 4)])
def test_the_mask_is_kept_without_its_graph(mask, channels):
    layer = AAD(4, 2, 3, mask=mask)
    assert layer.mask is None
    layer(torch.randn(2, 4, 8, 8), torch.randn(2, 2, 8, 8), unit(2, 3))
    assert layer.mask.shape == (2, channels, 8, 8) and not layer.mask.requires_grad
    assert 0 < layer.mask.min() and layer.mask.max() < 1 and layer.mask.std() > 0
    assert "mask" not in layer.state_dict() and copy.deepcopy(layer).mask is not None


def test_plan_of_the_original():
    plan = levels(256, 32)
    assert plan.sides == [2, 4, 8, 16, 32, 64, 128, 256]
    assert plan.attributes == [1024, 2048, 1024, 512, 256, 128, 64, 64]
    assert plan.features == [1024, 1024, 1024, 512, 256, 128, 64, 3]
    assert plan.encoder == [1024, 1024, 512, 256, 128, 64, 32]


@pytest.mark.parametrize("size, n", [(32, 5), (64, 6), (96, 6), (128, 7), (192, 7), (256, 8)])
def test_depth_follows_the_size(size, n):
    plan = levels(size, 4)
    assert len(plan.sides) == n and plan.sides[-1] == size and plan.sides[0] in (2, 3)
    assert all(b == 2 * a for a, b in zip(plan.sides, plan.sides[1:]))


@pytest.mark.parametrize("kw, wanted, parameters", [({}, 512, 184_343_381), ({"kernel": 3, "mask": "channel"}, 256, 439_274_304)])
def test_parameters_are_those_of_the_published_implementations(kw, wanted, parameters):
    with torch.device("meta"):
        net = AEINet(256, 32, wanted, **kw)
    assert sum(p.numel() for p in net.parameters()) == parameters


@pytest.mark.parametrize("size, depth", [(32, None), (64, None), (64, 4), (96, None), (128, None), (256, None)])
def test_shapes(size, depth):
    with torch.device("meta"):
        net = AEINet(size, 4, 16, depth)
        y, maps = net(torch.empty(2, 3, size, size), torch.empty(2, 16))
        again = net.encoder(y)
    assert y.shape == (2, 3, size, size)
    assert [tuple(m.shape) for m in maps] == [tuple(m.shape) for m in again] == [(2, c, s, s) for c, s in zip(net.encoder.channels, net.encoder.sides)]
    assert len(maps) == len(net.generator.blocks) == (depth or len(levels(size).sides))


def test_pictures_stay_in_range_and_both_inputs_count():
    net = AEINet(32, 4, 8)
    x, z = torch.rand(2, 3, 32, 32) * 2 - 1, unit(2, 8)
    y, _ = net(x, z)
    assert y.abs().max() <= 1
    assert (net(x.flip(0), z)[0] - y).abs().mean() > 1e-4 and (net(x, z.flip(0))[0] - y).abs().mean() > 1e-4


def test_every_parameter_learns():
    net = AEINet(32, 2, 4)
    y, maps = net(torch.randn(3, 3, 32, 32).clamp(-1, 1), unit(3, 4))
    (y.square().mean() + sum(m.square().mean() for m in maps)).backward()
    assert not [n for n, p in net.named_parameters() if p.grad is None]


def test_the_first_mask_knows_the_identity_alone():
    "Before the first modulation the features come from the identity; the mask cannot know the target there, and does in the next layer."
    net = AEINet(32, 4, 8).eval()
    a, b, z = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32), unit(1, 8)
    seen = []
    for x in (a, b):
        net(x, z)
        seen.append((net.masks(0)[0], net.masks(1)[0]))
    assert torch.equal(seen[0][0], seen[1][0]) and not torch.equal(seen[0][1], seen[1][1])


def test_masks_are_means_of_a_block_and_can_be_enlarged():
    net = AEINet(32, 4, 8, mask="channel")
    with pytest.raises(UsageError, match="call it first"):
        net.masks()
    net(torch.rand(2, 3, 32, 32), unit(2, 8))
    assert [m.shape[2] for m in net.masks()] == net.encoder.sides and all(m.shape[:2] == (2, 1) for m in net.masks())
    assert all(m.shape == (2, 1, 48, 48) for m in net.masks(size=48))
    block = net.generator.blocks[-1]
    assert len(block.aad) == 3
    torch.testing.assert_close(net.masks()[-1], torch.stack([a.mask.mean(1, keepdim=True) for a in block.aad]).mean(0))
    torch.testing.assert_close(net.masks(1)[-1], block.aad[1].mask.mean(1, keepdim=True))
    with pytest.raises(UsageError, match="The layer is 2"):
        net.masks(2)


@pytest.mark.parametrize("cin, cout, paths", [(4, 4, 2), (4, 3, 3)])
def test_res_block_has_its_own_way_around_where_channels_change(cin, cout, paths):
    block = AADResBlk(cin, cout, 2, 3)
    h = torch.randn(2, cin, 8, 8)
    with torch.no_grad():
        block.conv[1].weight.zero_()
        around = block(h, torch.randn(2, 2, 8, 8), unit(2, 3))
    assert len(block.aad) == paths and around.shape == (2, cout, 8, 8)
    assert torch.equal(around, h) == (cin == cout)


def test_compiled_network_draws_the_same_and_keeps_its_masks():
    net = AEINet(32, 2, 4).eval()
    x, z = torch.rand(2, 3, 32, 32) * 2 - 1, unit(2, 4)
    with torch.no_grad():
        plain, masks = net(x, z)[0], net.masks()
        for layer in net.modules():
            if isinstance(layer, AAD):
                layer.mask = None
        torch.testing.assert_close(torch.compile(net, backend="eager")(x, z)[0], plain)
    torch.testing.assert_close(net.masks(), masks)


def test_one_layer_learns_to_put_an_identity_in_its_place():
    "A disc that the features show gets the identity's colour, and the rest what the map says."
    layer, paint = AAD(4, 3, 3), nn.Conv2d(4, 3, 1)
    optimizer = torch.optim.Adam([*layer.parameters(), *paint.parameters()], 2e-2)

    def batch(n=32):
        disc, room, colour = (torch.rand(n, 1, 8, 8) > 0.6).float(), torch.randn(n, 3, 8, 8), torch.randn(n, 3)
        h = torch.cat([disc, 0.1 * torch.randn(n, 3, 8, 8)], 1)
        return h, room, colour, torch.where(disc > 0, colour[..., None, None], room)

    def loss(identity=lambda z: z):
        h, room, colour, answer = batch()
        return (paint(layer(h, room, identity(colour))) - answer).square().mean()

    for _ in range(200):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    with torch.no_grad():
        assert loss() < 0.1 and loss(lambda z: z.flip(0)) > 0.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near_full_precision(dtype):
    net = AEINet(32, 4, 8)
    x, z = torch.rand(2, 3, 32, 32) * 2 - 1, unit(2, 8)
    full, _ = net(x, z)
    with torch.autocast("cpu", dtype=dtype):
        half, _ = net(x, z)
        half.float().mean().backward()
    assert (half.float() - full).abs().mean() < 0.05


def test_last_map_is_the_one_before_it_enlarged():
    net = AttributeEncoder(32, 4)
    maps = net(torch.rand(2, 3, 32, 32))
    torch.testing.assert_close(maps[-1], enlarged(maps[-2]))
    assert maps[0].shape[2:] == (2, 2)


def test_fine_maps_know_where():
    "A change of one corner of the picture changes the finest decoder map near it most; the coarsest has no such place."
    net = AttributeEncoder(32, 4, norm="none")
    x = torch.rand(1, 3, 32, 32)
    y = x.clone()
    y[..., :8, :8] += 1
    change = [(a - b).abs().mean(1)[0] for a, b in zip(net(x), net(y))]
    near, far = change[-1][:8, :8].mean(), change[-1][16:, 16:].mean()
    assert near > 5 * far


@pytest.mark.parametrize("size, layers", [(32, 1), (64, 2), (128, 3), (256, 4)])
def test_discriminator_follows_the_size(size, layers):
    with torch.device("meta"):
        d = MultiScaleDiscriminator(size=size, ndf=4)
        verdicts = d(torch.empty(2, 3, size, size))
    assert d.layers == layers and len(verdicts) == 3 and all(v.shape[:2] == (2, 1) for v in verdicts)
    assert verdicts[0].shape[2] > verdicts[1].shape[2] > verdicts[2].shape[2] >= 1


def test_coarse_judges_see_more_of_the_picture():
    d = MultiScaleDiscriminator(size=64, ndf=4, norm="none")
    x = torch.rand(1, 3, 64, 64).requires_grad_()
    sides = []
    for v in d(x):
        h, w = v.shape[2:]
        (g,) = torch.autograd.grad(v[0, 0, h // 2, w // 2], x, retain_graph=True)
        sides.append((g.abs().sum((0, 1, 2)) > 0).sum().item())
    assert sides[0] == receptive_field(d.judges[0]) and sides[0] < sides[1] and sides[2] == 64


def test_discriminators_do_not_share_weights():
    d = MultiScaleDiscriminator(2, 32, 4)
    assert not torch.equal(d.judges[0].body[0][0].weight, d.judges[1].body[0][0].weight)


def test_work_of_one_convolution():
    count = work(nn.Sequential(nn.Conv2d(2, 5, 3, padding=1), nn.Flatten(), nn.Linear(5 * 16, 7)), torch.randn(3, 2, 4, 4))
    assert count[""] == 3 * (16 * 5 * 2 * 9 + 5 * 16 * 7) and count["0"] == 3 * 16 * 5 * 2 * 9


def test_work_falls_with_the_square_of_the_width():
    def of(width):
        with torch.device("meta"):
            return work(AEINet(256, width).eval(), torch.empty(1, 3, 256, 256), torch.empty(1, 512))

    full, half = of(32), of(16)
    assert 3.8 < full[""] / half[""] < 4.05
    assert full["encoder"] + full["generator"] == full[""]


net = lambda: AEINet(32, 2, 4)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: levels(62), "can't be halved twice"),
        (lambda: levels(64, depth=7), "allow 3 to 6 levels, and 7"),
        (lambda: levels(64, 0), "width 0"),
        (lambda: AAD(4, 2, 3, mask="two"), "'two'"),
        (lambda: AAD(4, 2, 3, kernel=2), "kernel 2"),
        (lambda: AAD(4, 2, 3)(torch.randn(1, 5, 4, 4), torch.randn(1, 2, 4, 4), torch.randn(1, 3)), r"takes \(B, 4, H, W\)"),
        (lambda: AAD(4, 2, 3)(torch.randn(1, 4, 4, 4), torch.randn(1, 2, 8, 8), torch.randn(1, 3)), r"must be \(1, 2, 4, 4\)"),
        (lambda: AAD(4, 2, 3)(torch.randn(1, 4, 4, 4), torch.randn(1, 2, 4, 4), torch.randn(2, 3)), r"must be \(1, 3\)"),
        (lambda: net()(torch.randn(1, 3, 64, 64), torch.randn(1, 4)), r"takes \(B, 3, 32, 32\)"),
        (lambda: net()(torch.randn(1, 3, 32, 32), torch.randn(1, 5)), r"takes \(B, 4\)"),
        (lambda: AADGenerator(4, 32, 2)(torch.randn(1, 4), []), "0 attribute maps"),
        (lambda: MultiScaleDiscriminator(3, 16), "allows 0 layers"),
        (lambda: MultiScaleDiscriminator(3, 64, layers=3), "allows 2 layers, and 3"),
        (lambda: MultiScaleDiscriminator(0), "At 0 scales"),
        (lambda: MultiScaleDiscriminator(2, 32, 4)(torch.randn(1, 3, 64, 64)), r"takes \(B, 3, 32, 32\)"),
    ],
)
def test_one_sentence_for_wrong_input(call, words):
    with pytest.raises(UsageError, match=words) as e:
        call()
    assert str(e.value).count(". ") == 0 and len(str(e.value)) < 260
