"""mlstm_kernels served by xlstm_cuda: outputs, states and gradients of its PyTorch kernels, every mode, its registries."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from xlstm_cuda import integrations

module = pytest.importorskip("mlstm_kernels.torch.backend_module", reason="pip install 'xlstm_cuda[peers]'")
mLSTMBackend, mLSTMBackendConfig = module.mLSTMBackend, module.mLSTMBackendConfig
STATE = ("c_initial", "n_initial", "m_initial")
GRADIENT = 2e-5


def operands(B=2, NH=2, S=64, DHQK=8, DHHV=16, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = ((B, NH, S, DHQK), (B, NH, S, DHQK), (B, NH, S, DHHV), (B, NH, S), (B, NH, S))
    q, k, v, i, f = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return [x.requires_grad_() for x in (q, k, v, i, f + 2)]


def a_state(B=2, NH=2, DHQK=8, DHHV=16):
    generator = torch.Generator().manual_seed(1)
    shapes = ((B, NH, DHQK, DHHV), (B, NH, DHQK), (B, NH, 1))
    return dict(zip(STATE, (torch.randn(shape, generator=generator).requires_grad_() for shape in shapes)))


def backend_module(**options):
    return mLSTMBackend(mLSTMBackendConfig(**{"autocast_kernel_dtype": "float32", **options}))


def gradients(h, leaves):
    weight = torch.randn(h.shape, generator=torch.Generator().manual_seed(2))
    return torch.autograd.grad((h * weight).sum(), leaves)


def close(got, expected, bound):
    assert got.shape == expected.shape
    assert (got - expected).norm() <= bound * expected.norm().clamp_min(1.0), (got - expected).abs().max()


@pytest.mark.parametrize("with_state", [False, True], ids=["fresh", "state"])
@pytest.mark.parametrize(
    "options,S",
    [({"mode": "train"}, 128), ({"mode": "inference"}, 100), ({"mode": "inference"}, 1)],
    ids=["train", "inference", "step"],
)
def test_backend_gives_the_same_with_gradients(options, S, with_state):
    served, xs, state = backend_module(**options), operands(S=S), a_state() if with_state else {}
    leaves = [*xs[: 5 if S > 1 or with_state else 4], *list(state.values())[:2]]  # from a fresh state one step has df = 0
    h0, last0 = served(*xs, **state)
    with integrations.mlstm_kernels.enable():
        h1, last1 = served(*xs, **state)
    close(h1, h0, 5e-6)
    gauge = torch.exp(last0[2] - last1[2])
    close(last1[0], last0[0] * gauge[..., None], 5e-6)
    close(last1[1], last0[1] * gauge, 5e-6)
    for got, expected in zip(gradients(h1, leaves), gradients(h0, leaves)):
        close(got, expected, GRADIENT)


@pytest.mark.parametrize("normed", [False, True], ids=["loss on h", "loss on the norm of h"])
def test_gradients_are_right_where_those_of_the_detached_kernel_are_not(normed):
    """What it drops acts along h, where a loss on the norm of h does not change: the table in docs/users.md."""
    xs = operands(S=64)

    def run(kernel):
        h = backend_module(chunkwise_kernel=kernel)(*xs)[0]
        return gradients(torch.layer_norm(h, h.shape[-1:]) if normed else h, xs)

    truth, theirs = run("chunkwise--native_autograd"), run("chunkwise--native_custbw")
    with integrations.mlstm_kernels.enable():
        ours = run("chunkwise--native_custbw")
    off = [((a - b).norm() / b.norm()).item() for a, b in zip(theirs, truth)]
    print("native_custbw, relative error of dq, dk, dv, di, df:", " ".join(f"{x:.2g}" for x in off))
    dropped = [off[0], off[1], off[3], off[4]]
    assert max(dropped) < 1e-4 if normed else min(dropped) > 0.4
    for got, expected in zip(ours, truth):
        close(got, expected, GRADIENT)


@pytest.mark.parametrize("normalize", [True, False])
def test_sigmoid_input_gate(normalize):
    served, xs = (
        backend_module(chunkwise_kernel="parallel--native_siging_autograd", return_last_states=False, normalize_siging=normalize),
        operands(),
    )
    expected = served(*xs)
    with integrations.mlstm_kernels.enable():
        got = served(*xs)
    close(got, expected, 2e-5)
    for got_gradient, true_gradient in zip(gradients(got, xs), gradients(expected, xs)):
        close(got_gradient, true_gradient, 1e-4)


def test_return_last_states_and_padding_follow_the_config():
    xs = operands(S=100)
    with integrations.mlstm_kernels.enable():
        assert isinstance(backend_module(mode="train_with_padding", return_last_states=False)(*xs), torch.Tensor)
        assert isinstance(backend_module(return_last_states=False)(*xs), torch.Tensor)
        assert len(backend_module(return_last_states=False)(*xs, return_last_states=True)) == 2
        _, last = backend_module(mode="inference", inference_state_dtype="bfloat16")(*xs)
        assert {part.dtype for part in last} == {torch.bfloat16}
        with pytest.raises(ValueError, match="mode: got 'fast'"):
            backend_module()(*xs, mode="fast")


def test_backend_option_reaches_the_kernels():
    served, xs = backend_module(), operands(S=20)
    with integrations.mlstm_kernels.enable("reference"):
        expected = served(*xs)[0]
    with integrations.mlstm_kernels.enable("cpu"):
        close(served(*xs)[0], expected, 5e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_with_float32_gates(dtype):
    q, k, v, i, f = operands(S=64)
    halves = [x.detach().to(dtype) for x in (q, k, v)]
    expected = backend_module()(*(x.float() for x in halves), i, f)[0]
    with integrations.mlstm_kernels.enable():
        h, last = backend_module()(*halves, i, f)
    assert h.dtype == dtype and last[0].dtype == torch.float32
    close(h.float(), expected, 1e-2)


def test_registered_kernel_trains_at_a_length_that_is_no_multiple_of_a_chunk():
    xs = operands(S=300)
    with pytest.raises(Exception, match="chunk"):
        backend_module()(*xs)
    expected = backend_module(mode="inference")(*xs)[0]
    with integrations.mlstm_kernels.enable():
        served = backend_module(chunkwise_kernel="chunkwise--xlstm_cuda", sequence_kernel="xlstm_cuda", step_kernel="xlstm_cuda")
    h, _ = served(*xs)  # after `disable` the model still holds our kernel
    close(h, expected, 5e-6)
    for got, true in zip(gradients(h, xs), gradients(expected, xs)):
        close(got, true, GRADIENT)
    with pytest.raises(ValueError, match="xlstm_cuda"):
        backend_module(chunkwise_kernel="chunkwise--xlstm_cuda")


def test_registered_step_kernel():
    q, k, v, i, f = operands(S=1)
    state = a_state()
    expected, last0 = backend_module(mode="inference")(q, k, v, i, f, **state)
    with integrations.mlstm_kernels.enable("cpu"):
        step = module.get_mlstm_step_kernel("xlstm_cuda")
    got, last1 = step(*(x.squeeze(2) for x in (q, k, v)), i, f, *state.values())
    close(got, expected.squeeze(2), 5e-6)
    for a, b in zip(last1, last0):
        close(a, b, 5e-6)


def test_models_pickle_and_copy_while_on_and_after():
    xs = operands(S=64)
    expected = backend_module()(*xs)[0]
    with integrations.mlstm_kernels.enable():
        served = backend_module(chunkwise_kernel="chunkwise--xlstm_cuda")
        copies = [pickle.loads(pickle.dumps(served)), copy.deepcopy(served)]
        for one in copies:
            close(one(*xs)[0], expected, 5e-6)
    for one in copies:
        close(one(*xs)[0], expected, 5e-6)


def test_disable_restores_class_and_registries():
    from mlstm_kernels.torch import chunkwise, recurrent

    registries = (chunkwise.registry, recurrent.registry_sequence, recurrent.registry_step)
    before = vars(mLSTMBackend)["forward"], [dict(one) for one in registries]
    with integrations.mlstm_kernels.enable():
        assert all("xlstm_cuda" in one for one in registries)
        assert vars(mLSTMBackend)["forward"] is not before[0]
        assert integrations.enabled() == ("mlstm_kernels",)
    assert vars(mLSTMBackend)["forward"] is before[0]
    assert [dict(one) for one in registries] == before[1]


def test_compiled_module_follows():
    served, xs = backend_module(), [x.detach() for x in operands(S=64)]
    expected = served(*xs)[0]
    with integrations.mlstm_kernels.enable():
        got = torch.compile(served, backend="aot_eager", fullgraph=True)(*xs)[0]
    close(got, expected, 5e-6)
