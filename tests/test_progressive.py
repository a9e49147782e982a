"The growing CycleGAN: sizes, silence at alpha 0, the time-table, and resume across a growth."

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
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
