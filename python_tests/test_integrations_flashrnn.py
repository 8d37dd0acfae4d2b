"""flashrnn's sLSTM served by xlstm_cuda: all four states of every step, its layouts, its gradients; other cells stay its own."""

from __future__ import annotations

import pytest
import torch

from xlstm_cuda import integrations

flashrnn = pytest.importorskip("flashrnn", reason="pip install 'xlstm_cuda[peers]'")

R_SHAPES = ["GHDP", "HGDP", "HPGD", "HPDG"]
B_SHAPES = ["GHD", "HGD", "HDG"]


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def operands(B=3, T=13, H=2, D=4):
    """Wx "BTGHD", R "GHDP", b "GHD"."""
    tensors = randn(B, T, 4, H, D), 0.3 * randn(4, H, D, D, seed=1), randn(4, H, D, seed=2)
    return [x.requires_grad_() for x in tensors]


def a_state(B=3, H=2, D=4):
    """h, c, n, m "SBTHD"; n is at least 1, as after a step: flashrnn lifts a smaller one."""
    state = randn(4, B, 1, H, D, seed=3)
    state[2] = state[2].abs() + 1
    return state


def run(operands, states=None, **options):
    return flashrnn.flashrnn(
        *operands, states=states, **{"function": "slstm", "backend": "vanilla", "dtype": "float32", **options}
    )


def close(got, expected, bound=1e-5):
    assert got.shape == expected.shape
    assert (got - expected).norm() <= bound * expected.norm().clamp_min(1.0), (got - expected).abs().max()


@pytest.mark.parametrize("with_state", [False, True], ids=["fresh", "state"])
def test_states_of_every_step_and_gradients(with_state):
    xs, states = operands(), a_state() if with_state else None
    weight = randn(4, 3, 13, 2, 4, seed=4)

    def both():
        h, last = run(xs, states)
        return h, last, torch.autograd.grad((h * weight).sum() + (last * weight[:, :, :1]).sum(), xs)

    h0, last0, gradients0 = both()
    with integrations.flashrnn.enable():
        h1, last1, gradients1 = both()
    close(h1, h0)
    close(last1, last0)
    for got, expected in zip(gradients1, gradients0):
        close(got, expected)


@pytest.mark.parametrize("backend", ["vanilla", "vanilla_fwbw", "cuda", "cuda_fused", "triton_fused"])
@pytest.mark.parametrize("layouts", list(zip(R_SHAPES, [*B_SHAPES, "GHD"])), ids=str)
def test_every_backend_name_and_layout(backend, layouts):
    Wx, R, b = operands()
    expected = run([Wx, R, b])[0]
    config = flashrnn.FlashRNNConfig(
        head_dim=4,
        num_heads=2,
        function="slstm",
        backend=backend,
        dtype="float32",
        recurrent_shape=layouts[0],
        bias_shape=layouts[1],
    )
    R = R.permute(["GHDP".index(axis) for axis in layouts[0]])
    b = b.permute(["GHD".index(axis) for axis in layouts[1]])
    with integrations.flashrnn.enable():
        close(flashrnn.flashrnn(Wx, R, b, config=config)[0], expected)


def test_function_imported_before_is_served_too():
    kept = flashrnn.flashrnn
    xs = operands(T=5)
    with integrations.flashrnn.enable("reference"):
        expected = kept(*xs, function="slstm", backend="cuda_fused", dtype="float32")[0]  # its own would compile for a GPU
    close(run(xs)[0], expected)


def test_in_two_pieces_by_the_last_state():
    Wx, R, b = operands()
    expected = run([Wx, R, b])[0]
    with integrations.flashrnn.enable():
        first, state = run([Wx[:, :6], R, b])
        second, _ = run([Wx[:, 6:], R, b], state)
        empty, same = run([Wx[:, :0], R, b], state)
    close(torch.cat([first, second], 2), expected)
    assert empty.shape == (4, 3, 0, 2, 4) and torch.equal(same, state)


@pytest.mark.parametrize("options", [{"function": "lstm"}, {"function": "gru"}])
def test_other_cells_stay_its_own(options):
    Wx, R, b = operands(T=5)
    if options["function"] == "gru":
        R = R[:3]
    before = run([Wx, R, b], **options)[0]
    with integrations.flashrnn.enable():
        assert torch.equal(run([Wx, R, b], **options)[0], before)


def test_half_precision():
    halves = [x.detach().bfloat16() for x in operands()]
    expected = run([x.float() for x in halves])[0]
    with integrations.flashrnn.enable():
        h, last = run(halves, dtype="bfloat16")
    assert h.dtype == last.dtype == torch.bfloat16
    close(h.float(), expected, 1e-2)


def test_closed_gates_make_no_nan():
    Wx, R, b = (x.detach() for x in operands())
    Wx[:, 4, :2] = -torch.inf
    Wx[1, 7, 0] = -torch.inf
    with integrations.flashrnn.enable():
        h, last = run([Wx, R, b])
        alone, _ = run([Wx[:, 5:], R, b], h[:, :, 4:5])
    assert h[:3].isfinite().all() and last.isfinite().all()
    close(h[:, :, 5:], alone)


def test_disable_restores_the_function():
    import importlib

    module = importlib.import_module("flashrnn.flashrnn.flashrnn")
    before = module._get_kernel
    with integrations.flashrnn.enable():
        assert module._get_kernel is not before
    assert module._get_kernel is before
