"""The definition of right is right: gradcheck in float64, limits, and peers' pure-PyTorch functions as independent oracles."""

from __future__ import annotations

import importlib

import pytest
import torch
from tolerances import rms_ratio

from xlstm_cuda import functional


def double(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def mlstm_inputs(B=1, S=3, NH=2, DHQK=2, DHHV=3, state=True) -> list[torch.Tensor]:
    shapes = [(B, S, NH, DHQK)] * 2 + [(B, S, NH, DHHV)] + [(B, S, NH)] * 2
    shapes += [(B, NH, DHQK, DHHV), (B, NH, DHQK), (B, NH)] if state else []
    return [double(*shape) for shape in shapes]


def slstm_inputs(B=2, S=3, NH=2, DH=2, state=True) -> list[torch.Tensor]:
    tensors = [double(B, S, 4, NH, DH), double(4, NH, DH, DH), double(4, NH, DH)]
    if state:
        h, c, n, m = (double(B, NH, DH) for _ in range(4))
        tensors += [h, c, (n.detach().abs() + 0.5).requires_grad_(), m]
    return tensors


# A gauge-free loss: what the state is in true units. m itself has no gradient, so C exp(m) at fixed m is what C's gradient means.
@pytest.mark.parametrize(
    "options",
    [
        {"eps": 0.0},
        {"igate": "sigmoid", "eps": 0.0},
        {"igate": "sigmoid", "normalize": False},
        {"scale": 0.4, "eps": 0.0},
    ],
    ids=str,
)
def test_mlstm_reference_gradcheck(options):
    def loss(*tensors):
        h, state = functional.mlstm(*tensors[:5], state=tensors[5:], return_state=True, backend="reference", **options)
        gauge = torch.exp(state.m)
        return h, state.C * gauge[..., None, None], state.n * gauge[..., None]

    assert torch.autograd.gradcheck(loss, mlstm_inputs(), eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("forget_gate", ["sigmoid", "exp"])
@pytest.mark.parametrize("reset", [False, True], ids=["", "reset"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_slstm_reference_gradcheck(forget_gate, reset, bias):
    tensors = slstm_inputs()
    starts = torch.tensor([[False, True, False], [False, False, False]]) if reset else None

    def loss(x, R, b, *state):
        h, last = functional.slstm(
            x, R, b if bias else None,
            state=state, return_state=True, reset=starts, forget_gate=forget_gate, backend="reference",
        )  # fmt: skip
        gauge = torch.exp(last.m)
        return h, last.h, last.c * gauge, last.n * gauge

    assert torch.autograd.gradcheck(loss, tensors, eps=1e-6, atol=1e-6)


def test_m_requires_no_gradient():
    _, state = functional.mlstm(*mlstm_inputs(state=False), return_state=True, backend="reference")
    assert not state.m.requires_grad and state.C.requires_grad and state.n.requires_grad
    _, state = functional.slstm(*slstm_inputs(state=False), return_state=True, backend="reference")
    assert not state.m.requires_grad and state.c.requires_grad and state.n.requires_grad


@pytest.mark.parametrize("options", [{}, {"igate": "sigmoid"}], ids=str)
def test_mlstm_state_is_the_same_in_another_gauge(options):
    """(C e^a, n e^a, m - a) gives the same h: the incoming m0 is read, also by the sigmoid gate whose own m is 0."""
    q, k, v, i, f, C, n, m = (x.detach() for x in mlstm_inputs(S=5))
    a = torch.randn_like(m)
    moved = C * torch.exp(a)[..., None, None], n * torch.exp(a)[..., None], m - a
    one = functional.mlstm(q, k, v, i, f, state=(C, n, m), eps=0.0, backend="reference", **options)
    two = functional.mlstm(q, k, v, i, f, state=moved, eps=0.0, backend="reference", **options)
    assert rms_ratio(one, two) < 1e-13


def test_mlstm_forget_gate_of_minus_infinity_is_a_fresh_start():
    q, k, v, i, f = (x.detach() for x in mlstm_inputs(S=6, state=False))
    f[:, 3] = -torch.inf
    h = functional.mlstm(q, k, v, i, f, eps=0.0, backend="reference")
    fresh = functional.mlstm(*(x[:, 3:] for x in (q, k, v, i, f)), eps=0.0, backend="reference")
    assert rms_ratio(h[:, 3:], fresh) < 1e-13


def test_slstm_reset_and_forget_gate_of_minus_infinity_are_fresh_starts():
    x, R, b = (t.detach() for t in slstm_inputs(S=6, state=False))
    reset = torch.zeros(2, 6, dtype=torch.bool)
    reset[0, 3] = True
    h = functional.slstm(x, R, b, reset=reset, backend="reference")
    assert torch.equal(h[0:1, 3:], functional.slstm(x[0:1, 3:], R, b, backend="reference"))
    assert torch.equal(h[1:], functional.slstm(x[1:], R, b, backend="reference"))
    # A forget gate of -inf forgets c and n, but h of the step before still mixes into the gates: without R it is a reset.
    x[0, 3, 1] = -torch.inf
    without_R = functional.slstm(x, torch.zeros_like(R), b, backend="reference")
    assert torch.equal(without_R[0:1, 3:], functional.slstm(x[0:1, 3:], torch.zeros_like(R), b, backend="reference"))


def test_slstm_is_bounded_and_silent_until_its_first_open_input_gate():
    x, R, b = (t.detach() for t in slstm_inputs(S=40, state=False))
    x[:, :10, 0] = -torch.inf
    h, state = functional.slstm(10 * x, R, b, return_state=True, backend="reference")
    assert (h[:, :10] == 0).all() and (h.abs() <= 1).all() and (state.n >= 1).all()


def test_slstm_fresh_sample_does_not_change_its_neighbours():
    x, R, b, h, c, n, m = (t.detach() for t in slstm_inputs(B=2, S=5))
    n[0], c[0] = 0.0, 0.0
    both = functional.slstm(x, R, b, state=(h, c, n, m), backend="reference")
    for row in range(2):
        part = slice(row, row + 1)
        alone = functional.slstm(x[part], R, b, state=(h[part], c[part], n[part], m[part]), backend="reference")
        assert torch.equal(both[part], alone)


# ---- peers' pure-PyTorch functions (requirements-peers.txt)


def heads_first(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [x.transpose(1, 2) for x in tensors]


@pytest.mark.parametrize("normalizer_grad,kernel", [("exact", "native_autograd"), ("detached", "native_custbw")])
def test_mlstm_reference_equals_mlstm_kernels(normalizer_grad, kernel):
    """Outputs, states and gradients. Its custom backward takes the normaliser for a constant and drops dn of the last state."""
    peer = pytest.importorskip("mlstm_kernels.torch", reason="pip install 'xlstm_cuda[peers]'")
    tensors = mlstm_inputs(B=2, S=64, NH=3, DHQK=8, DHHV=16, state=False)
    weight = torch.randn(2, 64, 3, 16, dtype=torch.float64)
    h, state = functional.mlstm(*tensors, return_state=True, eps=0.0, normalizer_grad=normalizer_grad, backend="reference")
    gradients = torch.autograd.grad((h * weight).sum(), tensors)

    run = peer.get_mlstm_kernel(f"chunkwise--{kernel}")
    h_peer, (C, n, m) = run(*heads_first(*tensors), chunk_size=16, eps=0.0, return_last_states=True)
    expected = torch.autograd.grad((h_peer.transpose(1, 2) * weight).sum(), tensors)
    assert rms_ratio(h, h_peer.transpose(1, 2)) < 1e-12
    gauge = torch.exp(m[..., 0] - state.m)
    assert rms_ratio(state.C, C * gauge[..., None, None]) < 1e-12 and rms_ratio(state.n, n * gauge[..., None]) < 1e-12
    for name, a, b in zip("qkvif", gradients, expected):
        assert rms_ratio(a, b) < 1e-11, name


@pytest.mark.parametrize("normalize", [True, False])
def test_mlstm_reference_with_sigmoid_gate_equals_mlstm_kernels(normalize):
    pytest.importorskip("mlstm_kernels.torch", reason="pip install 'xlstm_cuda[peers]'")
    peer = importlib.import_module("mlstm_kernels.torch.parallel.native_siging.fwbw")
    tensors = mlstm_inputs(B=2, S=32, NH=3, DHQK=8, DHHV=16, state=False)
    weight = torch.randn(2, 32, 3, 16, dtype=torch.float64)
    options = {"igate": "sigmoid", "normalize": normalize, "eps": 1e-6}
    h = functional.mlstm(*tensors, backend="reference", **options)
    h_peer = peer.mlstm_siging_parallel__native_autograd(
        *heads_first(*tensors), eps=1e-6, stable_fgate=True, normalize=normalize
    ).transpose(1, 2)
    assert rms_ratio(h, h_peer) < 1e-12
    ours = torch.autograd.grad((h * weight).sum(), tensors)
    for name, a, b in zip("qkvif", ours, torch.autograd.grad((h_peer * weight).sum(), tensors)):
        assert rms_ratio(a, b) < 1e-11, name


def test_mlstm_step_reference_equals_mlstm_kernels():
    pytest.importorskip("mlstm_kernels.torch", reason="pip install 'xlstm_cuda[peers]'")
    peer = importlib.import_module("mlstm_kernels.torch.recurrent.native_step")
    q, k, v, i, f, C, n, m = (x.detach() for x in mlstm_inputs(S=1, B=2, NH=3, DHQK=8, DHHV=16))
    h, state = functional.mlstm_step(*(x[:, 0] for x in (q, k, v, i, f)), (C, n, m), backend="reference")
    h_peer, (C_peer, n_peer, m_peer) = peer.mlstm_recurrent_step__native(
        q[:, 0], k[:, 0], v[:, 0], i[:, 0, :, None], f[:, 0, :, None], C, n, m[..., None], eps=1e-6, dtype_state=torch.float64
    )
    assert rms_ratio(h, h_peer) < 1e-12 and rms_ratio(state.C, C_peer) < 1e-12
    assert rms_ratio(state.n, n_peer) < 1e-12 and rms_ratio(state.m, m_peer[..., 0]) < 1e-12


def test_slstm_reference_equals_flashrnn():
    """flashrnn tests n == 0 over the whole batch (so the whole batch starts fresh here) and returns no dm0."""
    peer = pytest.importorskip("flashrnn", reason="pip install 'xlstm_cuda[peers]'")
    B, S, NH, DH = 2, 9, 3, 16
    x, R, b = slstm_inputs(B, S, NH, DH, state=False)
    weight = torch.randn(B, S, NH, DH, dtype=torch.float64)
    h, state = functional.slstm(x, R, b, return_state=True, backend="reference")
    ours = torch.autograd.grad((h * weight).sum(), (x, R, b))
    start = torch.zeros(4, B, 1, NH, DH, dtype=torch.float64)
    states, last = peer.flashrnn(x, R, b, states=start, function="slstm", backend="vanilla", dtype="float32")
    expected = torch.autograd.grad((states[0] * weight).sum(), (x, R, b))
    assert rms_ratio(h, states[0]) < 1e-12
    for name, mine, theirs in zip("hcnm", state, last):
        assert rms_ratio(mine, theirs[:, 0]) < 1e-12, name
    for name, mine, theirs in zip("xRb", ours, expected):
        assert rms_ratio(mine, theirs) < 1e-11, name


def test_slstm_reference_equals_xlstm_vanilla():
    pytest.importorskip("xlstm", reason="pip install 'xlstm_cuda[peers]'")
    peer = importlib.import_module("xlstm.blocks.slstm.src.vanilla")
    B, S, NH, DH = 2, 9, 3, 16
    x, R, b = (t.detach() for t in slstm_inputs(B, S, NH, DH, state=False))
    h, state = functional.slstm(x, R, b, return_state=True, backend="reference")
    start = torch.zeros(4, B, NH * DH, dtype=torch.float64)
    x_peer = x.permute(1, 0, 2, 3, 4).reshape(S, B, 4 * NH * DH)
    R_peer = R.permute(1, 0, 2, 3).reshape(NH, 4 * DH, DH)
    function = peer.slstm_pointwise_function_registry["slstm"]
    states, last, _ = peer.slstm_forward(x_peer, start, R_peer, b.reshape(-1), function, constants={})
    assert rms_ratio(h, states[0, 1:].view(S, B, NH, DH).transpose(0, 1)) < 1e-12
    for name, mine, theirs in zip("hcnm", state, last):
        assert rms_ratio(mine, theirs.view(B, NH, DH)) < 1e-12, name
