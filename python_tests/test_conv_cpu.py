"""The native convolution of the blocks: against PyTorch's own, gradients, threads, every instruction set, empty inputs."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from isa_fixture import isa_fixture
from torch.nn.functional import conv1d, pad

from xlstm_cuda.blocks.conv import CausalConv1d, _DepthwiseConv
from xlstm_cuda.ops import conv_cpu


def operands(B=2, S=150, D=37, K=4, dtype=torch.float64):
    return [torch.randn(shape, dtype=dtype) for shape in ((B, S + K - 1, D), (K, D), (D,))]


def of_pytorch(x, weight, bias):
    return conv1d(x.transpose(1, 2), weight.t().unsqueeze(1), bias, groups=weight.shape[1]).transpose(1, 2)


isa = isa_fixture()


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 5, 8, 4), (3, 128, 16, 2), (2, 300, 70, 7), (1, 2, 3, 6)], ids=str)
def test_conv_matches_pytorch_forward_and_backward(shape, isa):
    x, weight, bias = operands(*shape)
    dy = torch.randn(shape[:3], dtype=torch.float64)
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    true = of_pytorch(*leaves)
    assert torch.allclose(conv_cpu.forward(x, weight, bias), true, atol=1e-12)
    for got, expected in zip(conv_cpu.backward(dy, x, weight), torch.autograd.grad(true, leaves, dy)):
        assert torch.allclose(got, expected, atol=1e-11)


def test_conv_has_the_gradient_of_its_forward():
    leaves = [t.requires_grad_() for t in operands(B=2, S=5, D=3)]
    assert torch.autograd.gradcheck(_DepthwiseConv.apply, leaves)


@pytest.mark.parametrize("K", [1, 4])
def test_conv_in_parts_is_that_of_every_part_alone(K, isa):
    """Forward and gradients, natively and by PyTorch's operators; a NaN of one part is not seen by another."""
    S, borders = 30, (0, 3, 4, 17, 30)
    x, weight, bias = (t.requires_grad_() for t in operands(B=1, S=S, D=37, K=K))
    part = torch.cat([torch.full((1, K - 1), -1)] + [torch.full((1, b - a), a) for a, b in pairwise(borders)], 1)
    y = _DepthwiseConv.apply(x, weight, bias, part)
    own = x[:, K - 1 :]
    alone = torch.cat([of_pytorch(pad(own[:, a:b], (0, 0, K - 1, 0)), weight, bias) for a, b in pairwise(borders)], 1)
    assert torch.allclose(y, alone, atol=1e-12)
    dy = torch.randn(1, S, 37, dtype=torch.float64)
    expected = torch.autograd.grad(alone, (x, weight, bias), dy)
    for create_graph in (False, True):  # natively, and by PyTorch's operators
        got = torch.autograd.grad(y, (x, weight, bias), dy, retain_graph=True, create_graph=create_graph)
        assert all(torch.allclose(a, b, atol=1e-11) for a, b in zip(got, expected))
    with torch.no_grad():
        x[0, K - 1 + 3] = torch.nan  # the one step of its part
        again = _DepthwiseConv.apply(x, weight, bias, part)
    assert torch.equal(again[:, :3], y[:, :3]) and torch.equal(again[:, 4:], y[:, 4:])


def test_conv_gives_the_same_bits_with_any_number_of_threads():
    x, weight, bias = operands(B=3, S=1000, D=64, dtype=torch.float32)
    dy, results = torch.randn(3, 1000, 64), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        results.append((conv_cpu.forward(x, weight, bias), *conv_cpu.backward(dy, x, weight)))
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(*results))


@pytest.mark.parametrize("B,S", [(0, 4), (2, 0)])
def test_conv_of_nothing_has_zero_gradients(B, S):
    x, weight, bias = (t.requires_grad_() for t in operands(B=B, S=S))
    y = _DepthwiseConv.apply(x, weight, bias)
    assert y.shape == (B, S, 37)
    gradients = torch.autograd.grad(y.sum(), (x, weight, bias))
    assert all(not g.any() for g in gradients)


@pytest.mark.parametrize("K", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_conv_step_has_the_bits_of_the_sequence(dtype, K, isa):
    conv = CausalConv1d(37, K).to(dtype)
    x = torch.randn(2, 9, 37, dtype=dtype)
    with torch.no_grad():
        whole, state, steps = conv(x), None, []
        for t in range(9):
            if t == 5 and K > 1:  # the official form of a sequence's last inputs, not contiguous
                state = (state[0].transpose(1, 2).contiguous().transpose(1, 2)[:, 1:],)
            before = None if state is None else state[0].clone()
            y, after = conv.step(x[:, t], state)
            assert before is None or torch.equal(state[0], before), "the given state is left as it is"
            state = after
            steps.append(y)
    assert torch.equal(torch.stack(steps, 1), whole)
    assert torch.equal(state[0], conv.last_inputs(x)[0])


@pytest.mark.parametrize("held", [(2, 2, 8), (1, 3, 8), (2, 3, 9)], ids=str)
def test_conv_step_names_a_state_that_does_not_fit(held):
    with torch.no_grad(), pytest.raises(ValueError, match=r"conv_state: got shape .*expected \(B, K, D\)"):
        CausalConv1d(8, 4).step(torch.zeros(2, 8), (torch.zeros(held),))
    with torch.no_grad(), pytest.raises(ValueError, match="conv_state: got a tensor on meta, expected cpu"):
        CausalConv1d(8, 4).step(torch.zeros(2, 8), (torch.zeros(2, 3, 8, device="meta"),))


@pytest.mark.parametrize("bias", [torch.bfloat16, torch.float64], ids=str)
def test_conv_step_takes_a_bias_of_another_dtype(bias):
    conv = CausalConv1d(8, 4)
    conv.conv.bias = torch.nn.Parameter(torch.arange(8).to(bias), False)
    with torch.no_grad():
        assert torch.equal(conv.step(torch.zeros(1, 8))[0], torch.arange(8.0).view(1, 8))


def test_conv_of_strided_input_and_gradient():
    x, weight, bias = operands()
    wide = torch.randn(2, 153, 74, dtype=torch.float64)
    wide[:, :, ::2] = x
    assert torch.equal(conv_cpu.forward(wide[:, :, ::2], weight, bias), conv_cpu.forward(x, weight, bias))
    dy = torch.randn(2, 37, 150, dtype=torch.float64).transpose(1, 2)
    for got, expected in zip(conv_cpu.backward(dy, x, weight), conv_cpu.backward(dy.contiguous(), x, weight)):
        assert torch.equal(got, expected)


def test_compiled_conv_takes_pytorchs_operators():
    x = pad(torch.randn(2, 6, 8), (0, 0, 3, 0))
    weight, bias = torch.randn(4, 8), torch.randn(8)
    compiled = torch.compile(_DepthwiseConv.apply, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(x, weight, bias), conv_cpu.forward(x, weight, bias), atol=1e-6)
