"""The mLSTM ops as PyTorch sees them: opcheck, fullgraph compilation, export with a dynamic length, checkpointing, autocast."""

from __future__ import annotations

import mlstm_cases
import pytest
import torch
from mlstm_cases import Case
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

from xlstm_cuda import functional
from xlstm_cuda.ops.signatures import MLSTMOptions

OPTIONS = MLSTMOptions(scale=0.25, igate="exp", normalize=True, eps=1e-6, backend="cpu")


@pytest.mark.parametrize("state", [False, True], ids=["fresh", "state"])
@pytest.mark.parametrize("lengths", [None, (3, 0, 17)], ids=["batch", "cu_seqlens"])
def test_mlstm_ops_pass_opcheck(state, lengths):
    case = Case(B=1 if lengths else 2, S=20, dtype=torch.float32, state=state, lengths=lengths)
    tensors = [x.detach() for x in mlstm_cases.inputs(case)]
    operands = (*tensors[:5], *(tensors[5:] or (None, None, None)), case.cu_seqlens)
    opcheck(torch.ops.xlstm_cuda.mlstm_forward.default, (*operands, *OPTIONS))
    h, C, n, _, dot = torch.ops.xlstm_cuda.mlstm_forward(*operands, *OPTIONS)
    incoming = (torch.randn_like(h), torch.randn_like(C), torch.randn_like(n))
    opcheck(torch.ops.xlstm_cuda.mlstm_backward.default, (*incoming, *operands, h, dot, C, n, None, *OPTIONS))


def loss(*tensors: torch.Tensor) -> torch.Tensor:
    h, state = functional.mlstm(*tensors[:5], state=tuple(tensors[5:]) or None, return_state=True)
    return h.square().sum() + state.C.sum()


def test_mlstm_compiles_whole_with_one_recompile_over_five_lengths():
    graphs = []

    def counting(graph, example_inputs):
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend=counting)
    for S in (65, 17, 130, 64, 33):
        compiled(*mlstm_cases.inputs(Case(S=S, dtype=torch.float32, state=True)))
    assert len(graphs) <= 2


def test_mlstm_compiled_has_the_eager_gradients():
    tensors = mlstm_cases.inputs(Case(S=70, dtype=torch.float32, state=True))
    eager = torch.autograd.grad(loss(*tensors), tensors)
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for a, b in zip(torch.autograd.grad(compiled(*tensors), tensors), eager):
        assert torch.equal(a, b)


def test_mlstm_exports_with_a_dynamic_length():
    class Cell(torch.nn.Module):
        def forward(self, q, k, v, i, f):
            return functional.mlstm(q, k, v, i, f)

    tensors = [x.detach() for x in mlstm_cases.inputs(Case(S=70, dtype=torch.float32))]
    steps = torch.export.Dim("S", min=2, max=4096)
    program = torch.export.export(Cell(), tuple(tensors), dynamic_shapes=[{1: steps}] * 5)
    longer = [x.detach() for x in mlstm_cases.inputs(Case(S=150, dtype=torch.float32))]
    assert torch.equal(program.module()(*longer), functional.mlstm(*longer))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_mlstm_checkpointed_has_the_same_gradients(use_reentrant):
    tensors = mlstm_cases.inputs(Case(S=70, dtype=torch.float32, state=True))
    plain = torch.autograd.grad(loss(*tensors), tensors)
    checkpoint(loss, *tensors, use_reentrant=use_reentrant).backward()
    for a, b in zip((x.grad for x in tensors), plain):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_mlstm_under_autocast_takes_the_autocast_dtype_and_keeps_its_own_precision(dtype, backend):
    """q, k, v are rounded once, float32 gates are kept, and nothing inside is cast again."""
    tensors = mlstm_cases.inputs(Case(S=70, dtype=torch.float32))
    with torch.autocast("cpu", dtype):
        h = functional.mlstm(*tensors, backend=backend)
    q, k, v, i, f = tensors
    expected = functional.mlstm(q.to(dtype), k.to(dtype), v.to(dtype), i, f, backend=backend)
    assert h.dtype == dtype and torch.equal(h, expected)
    h.sum().backward()
    assert all(x.grad.dtype == torch.float32 for x in tensors)
