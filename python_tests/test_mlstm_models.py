"""Blocks, stacks and models of mLSTM on the kernels, forward and backward, against the same module on the float64 reference."""

from __future__ import annotations

import copy

import mlstm_cases
import pytest
import tolerances
import torch
from backend_fixture import KERNELS, backend_fixture
from torch import nn

import xlstm_cuda

D, S, B, VOCABULARY = 32, 70, 2, 11  # S: more than one chunk of the kernels


backend = backend_fixture(KERNELS)


def block_config(**sizes: int) -> xlstm_cuda.mLSTMBlockConfig:
    layer = xlstm_cuda.mLSTMLayerConfig(num_heads=2, conv1d_kernel_size=4, qkv_proj_blocksize=4, **sizes)
    return xlstm_cuda.mLSTMBlockConfig(mlstm=layer)


def build(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A small module, every parameter away from its init, and its input."""
    if name == "mLSTMBlock":
        module: nn.Module = xlstm_cuda.blocks.mLSTMBlock(block_config(embedding_dim=D, context_length=S))
    elif name == "xLSTMBlockStack":
        module = xlstm_cuda.xLSTMBlockStack(
            xlstm_cuda.xLSTMBlockStackConfig(embedding_dim=D, num_blocks=2, context_length=S, mlstm_block=block_config())
        )
    elif name == "xLSTMLMModel":
        module = xlstm_cuda.xLSTMLMModel(
            xlstm_cuda.xLSTMLMModelConfig(
                vocab_size=VOCABULARY, embedding_dim=D, num_blocks=2, context_length=S, mlstm_block=block_config()
            )
        )
    else:
        module = xlstm_cuda.xLSTMLarge(
            xlstm_cuda.xLSTMLargeConfig(embedding_dim=D, num_heads=2, num_blocks=2, vocab_size=VOCABULARY, mode="train")
        )
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    tokens = torch.randint(VOCABULARY, (B, S), generator=generator)
    return module.train(), tokens if name in ("xLSTMLMModel", "xLSTMLarge") else torch.randn(B, S, D, generator=generator)


def outputs_and_gradients(module: nn.Module, x: torch.Tensor, backend: str) -> dict[str, torch.Tensor]:
    """Of a random loss on the output: the output, the input's gradient where it has one, all parameters' gradients."""
    device = mlstm_cases.device_of(backend)
    module, x = module.to(device), x.detach().to(device)
    wanted = dict(module.named_parameters())
    if x.is_floating_point():
        wanted["the input"] = x.requires_grad_()
    y = module(x, backend=backend)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64).to(y)
    gradients = torch.autograd.grad((y * weight).sum(), list(wanted.values()))
    return {"the output": y.detach().cpu(), **{f"d {name}": g.cpu() for name, g in zip(wanted, gradients)}}


@pytest.mark.parametrize("name", ["mLSTMBlock", "xLSTMBlockStack", "xLSTMLMModel", "xLSTMLarge"])
def test_mlstm_module_runs_forward_and_backward_on_the_kernels(name, backend):
    module, x = build(name)
    true = outputs_and_gradients(copy.deepcopy(module).double(), x.double() if x.is_floating_point() else x, "reference")
    got = outputs_and_gradients(module, x, backend)
    for tensor, value in got.items():
        allowed, scale = tolerances.MLSTM_GRAD, None
        if tensor == "the output":
            allowed = tolerances.MLSTM_H
        elif "fgate" in tensor:
            allowed = tolerances.MLSTM_DF
        if tensor.endswith("gate_preact.bias") and "ogate" not in tensor:
            # The sum of all di, or df. The same number added to every i is a change of gauge, which h does not see above the
            # floor, and df is a difference of q.dq and k.dk: what is left of both sums is measured against the gradient of the
            # weight, whose terms are as large and do not cancel.
            scale = true[tensor.replace("bias", "weight")]
        error = tolerances.rms_ratio(value, true[tensor], scale)
        assert error <= allowed[torch.float32], f"{tensor}: {error:.2e} > {allowed[torch.float32]:.2e}"
