"Layers: every block against its formula, the claims of chapter 10, and one sentence for each wrong input."

import copy

import pytest
import torch
from common import Stop
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from deepswap.core import UsageError
from deepswap.layers import (
    ACTIVATIONS,
    ConvBlock,
    ResBlock,
    SelfAttention,
    Upsample,
    activation,
    checkerboard,
    init_normal,
    spectral,
)
from deepswap.train import Method, Trainer


@pytest.fixture(autouse=True)
def same_dice():
    torch.manual_seed(0)


def close(a, b, eps=1e-5):
    assert a.shape == b.shape
    assert (a - b).abs().max() <= eps, (a - b).abs().max()


@pytest.mark.parametrize("kernel, stride, size", [(1, 1, 16), (3, 1, 16), (7, 1, 16), (3, 2, 8), (4, 2, 8), (4, 1, 15)])
@pytest.mark.parametrize("pad", ["zeros", "reflect", "replicate"])
def test_conv_block_sizes(kernel, stride, size, pad):
    assert ConvBlock(3, 5, kernel, stride, pad=pad)(torch.randn(2, 3, 16, 16)).shape == (2, 5, size, size)


def test_conv_block_is_convolution_norm_activation_dropout():
    x = torch.randn(2, 3, 8, 8)
    block = ConvBlock(3, 4, norm=nn.InstanceNorm2d, act="leaky", dropout=0.5).eval()
    close(block(x), F.leaky_relu(F.instance_norm(F.conv2d(x, block[0].weight, padding=1)), 0.2))
    assert [type(m).__name__ for m in block] == ["Conv2d", "InstanceNorm2d", "LeakyReLU", "Dropout"]
    assert (block.train()(x) == 0).float().mean() > 0.3
    assert [type(m).__name__ for m in ConvBlock(3, 4, act=None)] == ["Conv2d"]


def test_bias_only_where_nothing_takes_it_away():
    assert ConvBlock(3, 4)[0].bias is not None and ConvBlock(3, 4, norm=nn.BatchNorm2d)[0].bias is None
    assert ConvBlock(3, 4, norm=nn.InstanceNorm2d, bias=True)[0].bias is not None and ConvBlock(3, 4, bias=False)[0].bias is None


def test_activations():
    x = torch.linspace(-3, 3, 7)
    assert activation(None) == []
    for name in ACTIVATIONS:
        (layer,) = activation(name)
        assert layer(x).shape == x.shape
    assert activation("leaky")[0](torch.tensor(-1.0)).item() == pytest.approx(-0.2)


def test_res_block_is_the_sum_and_the_identity_when_its_last_convolution_is_zero():
    x = torch.randn(2, 6, 8, 8)
    block = ResBlock(6, norm=nn.InstanceNorm2d, dropout=0.3).eval()
    close(block(x), x + block.residual(x))
    nn.init.zeros_(block.residual[1][0].weight)
    close(block(x), x)
    assert block.residual[0][0].padding_mode == "reflect" and ResBlock(6, pad="zeros").residual[0][0].padding_mode == "zeros"


@pytest.mark.parametrize("kind", Upsample.KINDS)
def test_upsample_doubles(kind):
    assert Upsample(6, 3, kind)(torch.randn(2, 6, 5, 7)).shape == (2, 3, 10, 14)


def test_pixel_shuffle_starts_as_nearest_and_learns_apart():
    up, x = Upsample(6, 3, "shuffle"), torch.randn(2, 6, 5, 5)
    y = up(x)
    close(y, F.interpolate(y[..., ::2, ::2], scale_factor=2))
    ((y - torch.randn_like(y)) ** 2).mean().backward()
    torch.optim.SGD(up.parameters(), 0.5).step()
    assert (up(x)[..., ::2, ::2] - up(x)[..., 1::2, ::2]).abs().max() > 1e-3


def test_attention_is_equation_5_for_many_shapes():
    for channels, reduction, h, w in ((8, 8, 4, 4), (16, 4, 3, 5), (5, 8, 1, 6)):
        layer, x = SelfAttention(channels, reduction), torch.randn(2, channels, h, w)
        assert (layer(x) == x).all()
        beta = layer.attention(x)
        assert beta.shape == (2, h * w, h * w)
        close(beta.sum(-1), torch.ones(2, h * w))
        nn.init.constant_(layer.gamma, 1.0)
        mixed = torch.einsum("bji,bci->bcj", beta, layer.value(x).flatten(2)).view(2, -1, h, w)
        close(layer(x), x + layer.out(mixed))


def test_attention_does_not_care_where_things_lie():
    layer, x = SelfAttention(8, 2), torch.randn(1, 8, 4, 4)
    nn.init.constant_(layer.gamma, 1.0)
    order = torch.randperm(16)
    shuffled = x.flatten(2)[..., order].view_as(x)
    close(layer(shuffled), layer(x).flatten(2)[..., order].view_as(x))


def test_gamma_learns_from_the_first_step_and_attention_from_the_second():
    layer, x = SelfAttention(8, 2), torch.randn(2, 8, 4, 4)
    layer(x).square().mean().backward()
    assert layer.gamma.grad != 0 and layer.query.weight.grad.abs().max() == 0


def test_a_gradient_penalty_can_go_through_every_block():
    D = nn.Sequential(ConvBlock(3, 8, 4, 2, act="leaky"), SelfAttention(8, 2), ResBlock(8), Upsample(8, 4, "shuffle"), nn.Flatten(), nn.Linear(256, 1))
    nn.init.constant_(D[1].gamma, 0.5)
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    (slope,) = torch.autograd.grad(D(x).sum(), x, create_graph=True)
    slope.square().sum().backward()
    assert D[1].query.weight.grad.abs().max() > 0


def test_init_normal_gives_each_kind_its_numbers():
    net = init_normal(nn.Sequential(ConvBlock(3, 64, 4, 2), ConvBlock(64, 64, norm=nn.BatchNorm2d), Upsample(64, 64, "transposed"), nn.InstanceNorm2d(64), SelfAttention(64)))
    for w in (net[0][0].weight, net[1][0].weight, net[2][0].weight, net[4].query.weight):
        assert abs(w.std() - 0.02) < 3e-3 and abs(w.mean()) < 3e-3
    assert abs(net[1][1].weight.mean() - 1) < 0.02 and net[1][1].weight.std() > 0.005
    assert net[0][0].bias.abs().max() == 0 and net[1][1].bias.abs().max() == 0 and net[4].gamma == 0
    wide = init_normal(nn.Linear(200, 50), std=0.5)
    assert abs(wide.weight.std() - 0.5) < 0.02 and wide.bias.abs().max() == 0


def test_init_normal_keeps_icnr_also_deep_inside():
    net = init_normal(nn.Sequential(ConvBlock(3, 16), nn.Sequential(Upsample(16, 3, "shuffle"))))
    y = net(torch.randn(2, 3, 8, 8))
    close(y, F.interpolate(y[..., ::2, ::2], scale_factor=2))


def test_spectral_is_torchs_and_holds_in_any_order_with_init_normal():
    blocks = lambda: nn.Sequential(ConvBlock(3, 8), Upsample(8, 4), nn.Flatten(), nn.Linear(4 * 256, 3))
    for net in (init_normal(spectral(blocks())), spectral(init_normal(blocks()))):
        for _ in range(30):
            net(torch.randn(2, 3, 8, 8))
        net.eval()
        for w in (net[0][0].weight.flatten(1), net[1][0].weight.transpose(0, 1).flatten(1), net[3].weight):
            assert torch.linalg.matrix_norm(w, 2).item() == pytest.approx(1, abs=0.05)
    assert spectral(net) is net and sum(parametrize.is_parametrized(m) for m in net.modules()) == 3


def test_spectral_leaves_normalisations_and_copies():
    net = spectral(nn.Sequential(ConvBlock(3, 8, norm=nn.BatchNorm2d), ConvBlock(8, 1)))
    assert not parametrize.is_parametrized(net[0][1])
    twin = copy.deepcopy(net).eval()
    x = torch.randn(2, 3, 8, 8)
    close(twin(x), net.eval()(x))


def test_checkerboard_is_the_fourier_peak():
    x = torch.randn(4, 3, 12, 20)
    power = torch.fft.fft2(x).abs().square().sum(1)
    peak = power[:, 6, 0] + power[:, 0, 10] + power[:, 6, 10]
    close(checkerboard(x), (peak / (power.sum((1, 2)) - power[:, 0, 0])).sqrt())


def test_checkerboard_knows_boards_stripes_and_pictures_without():
    i = torch.arange(16)
    board, stripes = ((i[:, None] + i) % 2).float(), (i % 2).float().expand(16, 16)
    assert checkerboard(torch.stack([board, stripes, 5 * board + 3])[:, None]).tolist() == pytest.approx([1, 1, 1])
    assert checkerboard((i // 4 % 2).float().expand(1, 1, 16, 16)).item() == pytest.approx(0, abs=1e-6)
    assert checkerboard(torch.zeros(2, 3, 9, 9)).tolist() == [0, 0]
    ramp = torch.linspace(-1, 1, 32).expand(1, 3, 32, 32)
    levels = [checkerboard(ramp + a * board.repeat(2, 2)).item() for a in (0, 0.05, 0.2, 1)]
    assert levels == sorted(levels) and levels[0] < 0.06 < levels[2]


def test_checkerboard_takes_odd_sizes_half_precision_and_gradients():
    x = torch.randn(2, 3, 9, 11, requires_grad=True)
    checkerboard(x).sum().backward()
    assert x.grad.isfinite().all()
    close(checkerboard(x.detach().half()), checkerboard(x.detach()), eps=1e-3)


def test_transposed_convolution_starts_with_a_board_and_shuffle_without():
    x = torch.rand(4, 8, 8, 8)
    crop = lambda y: y[..., 2:-2, 2:-2]
    score = {kind: sum(checkerboard(crop(Upsample(8, 3, kind)(x))).mean().item() for _ in range(5)) / 5 for kind in Upsample.KINDS}
    assert score["shuffle"] < 1e-5 < score["nearest"] < 0.3 < score["transposed"]


def test_residual_towers_pass_the_gradient():
    def first_gradient(block):
        x = torch.randn(2, 8, 8, 8, requires_grad=True)
        y = nn.Sequential(*(block() for _ in range(20)))(x)
        return torch.autograd.grad((y * torch.randn_like(y)).sum(), x)[0].norm() / y.numel() ** 0.5
    assert first_gradient(lambda: nn.Sequential(ConvBlock(8, 8), ConvBlock(8, 8))) < 1e-6
    assert 0.1 < first_gradient(lambda: ResBlock(8)) < 100


class Painter(Method):
    "Every block of the chapter in one network, for a training run."
    name = "painter"

    def __init__(self, width=8):
        super().__init__(width=width)
        body = [ConvBlock(3, width, 4, 2, norm=nn.BatchNorm2d), ResBlock(width, dropout=0.1), SelfAttention(width, 2), Upsample(width, 3, "shuffle")]
        self.painter = init_normal(nn.Sequential(*body))
        self.critic = spectral(nn.Sequential(ConvBlock(3, width, 4, 2, act="leaky"), ConvBlock(width, 1, act=None)))

    def optimizers(self):
        return {"g": torch.optim.Adam(self.painter.parameters(), 1e-3), "d": torch.optim.Adam(self.critic.parameters(), 1e-3)}

    def step(self, batch, update):
        update("d", lambda x: {"d": F.softplus(self.critic(self.painter(x).detach())).mean() + F.softplus(-self.critic(x)).mean()}, batch)
        update("g", lambda x: {"g": (self.painter(x) - x).abs().mean() + F.softplus(-self.critic(self.painter(x))).mean()}, batch)


class Noise:
    def __init__(self):
        self.dice = torch.Generator().manual_seed(3)

    def __iter__(self):
        while True:
            yield torch.rand(4, 3, 16, 16, generator=self.dice) * 2 - 1

    def state_dict(self):
        return {"dice": self.dice.get_state()}

    def load_state_dict(self, state):
        self.dice.set_state(state["dice"])


def train(out, steps, resume=False, stop=None):
    torch.manual_seed(1)
    trainer = Trainer(Painter(), Noise(), out=out, steps=steps, seed=1, device="cpu", ema=0.9, checkpoint_every=3, progress=False, callbacks=[Stop(stop)])
    return (trainer.resume() if resume else trainer).fit()


def test_training_with_all_blocks_resumes_to_the_last_bit(tmp_path):
    whole = train(tmp_path / "whole", 6)
    train(tmp_path / "parts", 6, stop=3)
    parts = train(tmp_path / "parts", 6, resume=True)
    assert parts.step == 6
    for (k, a), b in zip(whole.method.state_dict().items(), parts.method.state_dict().values()):
        assert torch.equal(a, b), k


@pytest.mark.parametrize("wrong, says", [
    (lambda: ConvBlock(3, 8, act="rule"), "'rule' is no activation; choose one of relu, leaky"),
    (lambda: Upsample(8, 4, "bilinear"), "'bilinear' is no way to enlarge; choose one of transposed, shuffle, nearest"),
    (lambda: checkerboard(torch.zeros(3, 16, 16)), r"Got a tensor of shape \(3, 16, 16\)"),
    (lambda: checkerboard(torch.zeros(1, 3, 1, 16)), "H and W from 2 up"),
    (lambda: ConvBlock(3, 8, pad="mirror"), "'mirror' is no padding; choose one of zeros, reflect, replicate"),
    (lambda: SelfAttention(8, 0), "reduction is 0; give a whole number from 1 up"),
    (lambda: SelfAttention(8)(torch.zeros(2, 4, 8, 8)), r"features have shape \(2, 4, 8, 8\); this self-attention takes \(B, 8, H, W\)"),
    (lambda: ResBlock(8)(torch.zeros(2, 4, 8, 8)), r"features have shape \(2, 4, 8, 8\); this residual block takes \(B, 8, H, W\)"),
])
def test_wrong_input_is_told_in_one_sentence(wrong, says):
    with pytest.raises(UsageError, match=says):
        wrong()
