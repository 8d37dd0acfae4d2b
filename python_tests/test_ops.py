"""Every op of the package as PyTorch sees it: opcheck on each backend, operation counts, the gradients that are refused."""

from __future__ import annotations

import mlstm_cases
import pytest
import slstm_cases
import torch
from mlstm_cases import Case
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from xlstm_cuda import functional, mLSTM, sLSTM
from xlstm_cuda.ops.signatures import MLSTMOptions

#: Everything torch.library.opcheck knows, AOT with static shapes included, which is not among its defaults.
CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static", "test_aot_dispatch_dynamic")


def mlstm_options(backend: str) -> MLSTMOptions:
    return MLSTMOptions(scale=0.25, igate="exp", normalize=True, eps=1e-6, backend=backend)


def opcheck(name: str, *operands) -> None:
    torch.library.opcheck(getattr(torch.ops.xlstm_cuda, name).default, operands, test_utils=CHECKS)


def on_device(tensors, backend):
    return [t if t is None else t.detach().to(mlstm_cases.device_of(backend)) for t in tensors]


def mlstm_operands(backend, state, lengths):
    case = Case(B=1 if lengths else 2, S=20, DHQK=8, DHHV=16, dtype=torch.float32, state=state, lengths=lengths)
    tensors = mlstm_cases.inputs(case)
    return on_device((*tensors[:5], *(tensors[5:] or (None,) * 3), case.cu_seqlens), backend)


def slstm_operands(backend, state):
    """x, R, b, state, reset, cu_seqlens, or a skip where the build has no sLSTM kernels."""
    case = slstm_cases.make_case(2, 5, 2, 8).to(torch.float32)
    tensors = on_device((case.x, case.R, case.b, *(case.state if state else (None,) * 4), None, None), backend)
    try:
        torch.ops.xlstm_cuda.slstm_forward(*tensors, "sigmoid", False, backend)
    except RuntimeError as error:
        pytest.skip(str(error))
    return tensors


def check_mlstm_sequence(backend, state=True, lengths=None):
    operands = mlstm_operands(backend, state, lengths)
    opcheck("mlstm_forward", *operands, *mlstm_options(backend))
    h, C, n, _, dot = torch.ops.xlstm_cuda.mlstm_forward(*operands, *mlstm_options(backend))
    incoming = (torch.randn_like(h), torch.randn_like(C), torch.randn_like(n))
    opcheck("mlstm_backward", *incoming, *operands, h, dot, C, n, None, *mlstm_options(backend))


def check_mlstm_step(backend):
    if backend not in mlstm_cases.KERNELS:
        pytest.skip(f"on backend {backend} the step is plain PyTorch, no op")
    q, k, v, i, f, *state, _ = mlstm_operands(backend, True, None)
    opcheck("mlstm_step", *(x[:, 0] for x in (q, k, v, i, f)), *state, *mlstm_options(backend))


def check_slstm_sequence(backend, state=True):
    operands = slstm_operands(backend, state)
    opcheck("slstm_forward", *operands, "sigmoid", True, backend)
    h, *last, gates, cells = torch.ops.xlstm_cuda.slstm_forward(*operands, "sigmoid", True, backend)
    saved = (operands[1], *operands[3:6], None, None, gates, cells, h, "sigmoid", backend)
    opcheck("slstm_backward", torch.randn_like(h), *(torch.randn_like(s) for s in last[:3]), *saved)


SEQUENCES = {
    ("mlstm_forward", "mlstm_backward"): check_mlstm_sequence,
    ("mlstm_step",): check_mlstm_step,
    ("slstm_forward", "slstm_backward"): check_slstm_sequence,
}


@pytest.mark.parametrize("check", SEQUENCES.values(), ids=["mlstm", "mlstm_step", "slstm"])
def test_every_op_passes_opcheck(check, backend):
    check(backend)


def test_fresh_and_packed_ops_pass_opcheck(backend):
    check_mlstm_sequence(backend, state=False, lengths=(3, 0, 17))
    check_slstm_sequence(backend, state=False)


def test_no_op_is_left_out():
    registered = {name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("xlstm_cuda::")}
    assert registered == {name for names in SEQUENCES for name in names}


@pytest.mark.parametrize("function", ["mlstm", "mlstm_step", "slstm", "slstm_step"])
def test_compiled_whole_on_the_kernels(function, backend):
    if backend not in mlstm_cases.KERNELS:
        pytest.skip("test_torch.py compiles everything on backend cpu")
    if function.startswith("mlstm"):
        operands = [t for t in mlstm_operands(backend, True, None) if t is not None]
        count = 5
    else:
        operands = [t for t in slstm_operands(backend, True) if t is not None]
        count = 3
    if function.endswith("step"):  # the weights of the sLSTM and the states have no steps
        stepped = 5 if count == 5 else 1
        operands = [t[:, 0] if index < stepped else t for index, t in enumerate(operands)]

    def call(*operands):
        extra = {} if function.endswith("step") else {"return_state": True}
        h, state = getattr(functional, function)(*operands[:count], state=operands[count:], backend=backend, **extra)
        return h * 2, *state[:3]

    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(compiled(*operands), call(*operands)))
    results = []
    for run in (compiled, call):
        leaves = [t.clone().requires_grad_() for t in operands]
        h, *state = run(*leaves)
        loss = h.square().sum() + sum(part.sum() for part in state if part.requires_grad)
        results.append((h, *torch.autograd.grad(loss, leaves)))
    assert all(torch.equal(a, b) for a, b in zip(*results))


# ---- floating-point operations


def flops(run) -> dict:
    with FlopCounterMode(display=False) as counter:
        run()
    return {op.__name__: count for op, count in counter.get_flop_counts()["Global"].items()}


def test_mlstm_flops_equal_a_hand_count():
    B, S, NH, DHQK, DHHV = 2, 130, 3, 8, 16
    tensors = mlstm_cases.inputs(Case(B=B, S=S, NH=NH, DHQK=DHQK, DHHV=DHHV, dtype=torch.float32))
    counts = flops(lambda: functional.mlstm(*tensors).sum().backward())
    pairs = 64 * 64 + 64 * 64 + 2 * 2  # chunks of 64, 64 and 2 steps
    per_head = 2 * pairs * (8 + 16) + 130 * (2 * 8 * 17) * 2
    assert counts["mlstm_forward"] == B * NH * per_head == 2_784_768
    backward_per_head = 2 * pairs * (3 * 8 + 2 * 16) + 130 * 2 * 8 * (5 * 16 + 2)
    assert counts["mlstm_backward"] == B * NH * backward_per_head
    assert flops(lambda: functional.mlstm(*tensors, chunk_size=16))["mlstm_forward"] == B * NH * (
        2 * (8 * 16 * 16 + 2 * 2) * 24 + 130 * (2 * 8 * 17) * 2
    )


def test_slstm_flops_equal_a_hand_count():
    B, S, NH, DH = 2, 7, 3, 8
    case = slstm_cases.make_case(B, S, NH, DH).to(torch.float32)
    counts = flops(lambda: functional.slstm(case.x.requires_grad_(), case.R, case.b).sum().backward())
    one_product = B * S * 4 * NH * (2 * 8 * 8)
    assert counts == {"slstm_forward": one_product, "slstm_backward": 2 * one_product}
    step = flops(lambda: functional.slstm_step(case.x.detach()[:, 0], case.R, case.b, case.state))
    assert step == {"slstm_forward": one_product // S}


def test_mlstm_step_flops_equal_a_hand_count(backend):
    if backend not in mlstm_cases.KERNELS:
        pytest.skip(f"on backend {backend} the step is plain PyTorch, no op")
    q, k, v, i, f, *state, _ = mlstm_operands(backend, True, None)
    counts = flops(lambda: functional.mlstm_step(*(x[:, 0] for x in (q, k, v, i, f)), state, backend=backend))
    assert counts == {"mlstm_step": 2 * 3 * 2 * (2 * 8 * 17)}


def test_flops_are_counted_without_data():
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        layer, x = sLSTM(8, 16, num_heads=2), torch.randn(5, 2, 8)
        counts = flops(lambda: layer(x)[0].sum().backward())
        assert counts["slstm_backward"] == 2 * counts["slstm_forward"] == 2 * (2 * 5 * 4 * 2 * 2 * 8 * 8)
        with torch.no_grad():  # a step without gradients takes the decode path
            assert flops(lambda: layer.step(x[0]))["slstm_forward"] == 2 * 4 * 2 * 2 * 8 * 8


# ---- gradients that are refused, never silently wrong


@pytest.mark.parametrize("step", [False, True], ids=["sequence", "step"])
@pytest.mark.parametrize("layer", [sLSTM, mLSTM], ids=["sLSTM", "mLSTM"])
def test_forward_mode_raises(layer, step):
    """Also for a step, whose decode path would drop the tangent."""
    model = layer(8, 16, num_heads=2).requires_grad_(False)
    x = torch.randn(2, 8) if step else torch.randn(5, 2, 8)
    run = model.step if step else model
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="forward mode AD"):
        run(forward_ad.make_dual(x, torch.ones_like(x)))
    with pytest.raises(RuntimeError, match=r"forward mode AD|setup_context"):
        torch.func.jvp(lambda x: run(x)[0], (x,), (torch.ones_like(x),))
    run(x)


@pytest.mark.parametrize("function", ["mlstm", "mlstm_step", "slstm", "slstm_step"])
def test_forward_mode_through_any_operand_raises(function):
    case = slstm_cases.make_case(2, 1, 2, 8).to(torch.float32)
    q, k, v, i, f, *state = (t.detach() for t in mlstm_cases.inputs(Case(S=1, dtype=torch.float32, state=True)))
    operands = {
        "mlstm": [q, k, v, i, f, *state],
        "mlstm_step": [*(x[:, 0] for x in (q, k, v, i, f)), *state],
        "slstm": [case.x, case.R, case.b, *case.state],
        "slstm_step": [case.x[:, 0], case.R, case.b, *case.state],
    }[function]
    count = 5 if function.startswith("mlstm") else 3
    for index in range(len(operands)):
        with forward_ad.dual_level():
            given = list(operands)
            given[index] = forward_ad.make_dual(given[index], torch.ones_like(given[index]))
            with pytest.raises(RuntimeError, match="forward mode AD"):
                getattr(functional, function)(*given[:count], state=tuple(given[count:]), backend="cpu")


@pytest.mark.parametrize("layer", [sLSTM, mLSTM], ids=["sLSTM", "mLSTM"])
def test_double_backward_raises(layer):
    """Also for a gradient penalty, where the incoming gradient of the first backward is a constant."""
    x = torch.randn(5, 2, 8, requires_grad=True)
    for loss in (torch.sum, lambda y: y.square().sum()):
        (dx,) = torch.autograd.grad(loss(layer(8, 16, num_heads=2)(x)[0]), x, create_graph=True)
        with pytest.raises(RuntimeError, match=r"double backward is not supported by the kernels; use backend='reference'"):
            dx.square().sum().backward()
