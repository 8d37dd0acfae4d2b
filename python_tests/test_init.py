"""The official initialisations: statistics of each function, and reset_parameters() wherever a module has parameters."""

from __future__ import annotations

import math

import pytest
import torch
from test_blocks import build

from xlstm_cuda import mLSTM, sLSTM, xLSTMLarge, xLSTMLargeConfig
from xlstm_cuda.blocks.init import linspace_bias, powerlaw_blockdependent, small_init_, uniform_, wang_init_

WEIGHT = (400, 500)  # standard deviations of 200,000 draws are known to 0.2 %


def statistics(weight):
    """Mean in units of its own error, standard deviation, kurtosis (3 for normal, 1.8 for uniform)."""
    mean, std = weight.mean().item(), weight.std().item()
    return mean / std * math.sqrt(weight.numel()), std, ((weight - mean) / std).pow(4).mean().item()


@pytest.mark.parametrize("dim", [64, 4096])
def test_small_init_is_normal_with_variance_2_over_5_dim(dim):
    mean, std, kurtosis = statistics(small_init_(torch.full(WEIGHT, torch.nan), dim))
    assert abs(mean) < 5 and std == pytest.approx(math.sqrt(2 / (5 * dim)), rel=0.01) and kurtosis == pytest.approx(3, rel=0.03)


@pytest.mark.parametrize("num_blocks,expected", [(None, 2), (1, 2), (8, 0.25)])
def test_wang_init_is_normal_and_shrinks_with_depth(num_blocks, expected):
    mean, std, kurtosis = statistics(wang_init_(torch.full(WEIGHT, torch.nan), 100, num_blocks))
    assert abs(mean) < 5 and std == pytest.approx(expected / 10, rel=0.01) and kurtosis == pytest.approx(3, rel=0.03)


def test_standard_init_is_uniform():
    weight = uniform_(torch.full(WEIGHT, torch.nan), 256)
    mean, std, kurtosis = statistics(weight)
    assert abs(mean) < 5 and std == pytest.approx(1 / 16 / math.sqrt(3), rel=0.01) and kurtosis == pytest.approx(1.8, rel=0.03)
    assert weight.abs().max() <= 1 / 16


def test_linspace_bias_runs_from_start_to_end():
    assert torch.allclose(linspace_bias(4, 3.0, 6.0, torch.empty(0)), torch.tensor([3.0, 4.0, 5.0, 6.0]))


@pytest.mark.parametrize(
    "block_idx,num_blocks,exponent", [(0, 1, 0.3), (0, 4, 0.3), (3, 4, 1.6), (1, 3, 0.95), (None, None, 0.3)]
)
def test_powerlaw_bias_opens_with_depth(block_idx, num_blocks, exponent):
    bias = powerlaw_blockdependent(9, block_idx, num_blocks, torch.empty(0))
    expected = torch.tensor([5 - 12 * (d / 8) ** exponent for d in range(9)])
    assert torch.allclose(bias, expected, atol=1e-5)
    assert bias[0] == 5 and bias[-1] == pytest.approx(-7, abs=1e-5)


def models():
    return {
        "LM": build("LM"),
        "sLSTM": sLSTM(8, 8, 2, bidirectional=True),
        "mLSTM": mLSTM(8, 8, 2, bidirectional=True),
        **{mode: xLSTMLarge(xLSTMLargeConfig(32, 2, 2, 20, use_bias=True, weight_mode=mode)) for mode in ("single", "fused")},
    }


@pytest.mark.parametrize("name", models())
def test_every_module_with_parameters_resets_them(name):
    """One by one, as FSDP does after to_empty(): nothing is left as it was."""
    model = models()[name]
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(torch.nan)
    for path, module in model.named_modules():
        if [*module.parameters(recurse=False)]:
            assert callable(getattr(module, "reset_parameters", None)), path
            module.reset_parameters()
    assert not [path for path, p in model.named_parameters() if not p.isfinite().all()]
