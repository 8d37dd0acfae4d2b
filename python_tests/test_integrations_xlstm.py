"""The official package xlstm served by xlstm_cuda: cells, language model and xLSTMLarge, outputs, states and gradients."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from xlstm_cuda import integrations

official = pytest.importorskip("xlstm", reason="pip install 'xlstm_cuda[peers]'")
from xlstm.blocks.mlstm.cell import mLSTMCell, mLSTMCellConfig  # noqa: E402
from xlstm.blocks.slstm.cell import sLSTMCell, sLSTMCell_vanilla, sLSTMCellBase, sLSTMCellConfig  # noqa: E402
from xlstm.xlstm_large.model import xLSTMLarge, xLSTMLargeConfig  # noqa: E402

VANILLA = {"backend": "vanilla", "dtype": "float32", "enable_automatic_mixed_precision": False}


def away_from_init(module):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return module


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def language_model(slstm_at=(1,)):
    config = official.xLSTMLMModelConfig(
        vocab_size=30,
        context_length=40,
        num_blocks=2,
        embedding_dim=16,
        slstm_at=list(slstm_at),
        mlstm_block=official.mLSTMBlockConfig(mlstm=official.mLSTMLayerConfig(num_heads=2)),
        slstm_block=official.sLSTMBlockConfig(
            slstm=official.sLSTMLayerConfig(num_heads=2, **VANILLA), feedforward=official.FeedForwardConfig()
        ),
    )
    torch.manual_seed(0)
    return away_from_init(official.xLSTMLMModel(config)).eval()


def large_model(**options):
    config = xLSTMLargeConfig(
        embedding_dim=32,
        num_heads=2,
        num_blocks=2,
        vocab_size=40,
        chunkwise_kernel="chunkwise--native_autograd",
        sequence_kernel="native_sequence__native",
        step_kernel="native",
        autocast_kernel_dtype="float32",
        **{"mode": "inference", "return_last_states": True, **options},
    )
    torch.manual_seed(0)
    return xLSTMLarge(config).eval()


def close(got, expected, bound=2e-5):
    assert got.shape == expected.shape
    assert (got - expected).norm() <= bound * expected.norm().clamp_min(1.0), (got - expected).abs().max()


def gradients(result, leaves):
    return torch.autograd.grad((result * randn(*result.shape, seed=9)).sum(), leaves)


def slstm_cell(**options):
    return away_from_init(sLSTMCell(sLSTMCellConfig(hidden_size=12, num_heads=3, **{**VANILLA, **options})))


def an_slstm_state(B=2, D=12):
    state = randn(4, B, D, seed=1)
    state[2] = state[2].abs() + 1
    return state


def test_mlstm_cell_forward_with_gradients():
    cell = away_from_init(mLSTMCell(mLSTMCellConfig(context_length=33, embedding_dim=16, num_heads=2)))
    xs = [randn(2, 33, 16, seed=seed).requires_grad_() for seed in range(3)]
    leaves = [*xs, *cell.parameters()]
    expected = cell(*xs)
    with integrations.xlstm.enable():
        got = cell(*xs)
    close(got, expected)
    for a, b in zip(gradients(got, leaves), gradients(expected, leaves)):
        close(a, b, 1e-4)


def test_mlstm_cell_takes_more_than_context_length_and_leaves_a_function_of_the_users_alone():
    cell = away_from_init(mLSTMCell(mLSTMCellConfig(context_length=8, embedding_dim=16, num_heads=2)))
    xs = [randn(2, 33, 16, seed=seed) for seed in range(3)]
    with integrations.xlstm.enable():
        assert cell(*xs).shape == (2, 33, 16)
        cell.backend_fn = lambda queries, **_: torch.full_like(queries, 2.0)
        cell.outnorm = torch.nn.Identity()
        assert (cell(*xs) == 2).all()


def test_mlstm_cell_steps():
    cell = away_from_init(mLSTMCell(mLSTMCellConfig(context_length=8, embedding_dim=16, num_heads=2)))
    xs = [randn(2, 6, 16, seed=seed) for seed in range(3)]

    def run():
        state, hs = None, []
        for t in range(6):
            h, state = cell.step(*(x[:, t : t + 1] for x in xs), mlstm_state=state)
            hs.append(h)
        return torch.cat(hs, 1), state

    with torch.no_grad():
        h0, state0 = run()
        with integrations.xlstm.enable():
            h1, state1 = run()
            with pytest.raises(ValueError, match=r"expected \(B, S, D\) with S = 1"):
                cell.step(*xs)
    close(h1, h0)
    for a, b in zip(state1, state0):
        close(a, b)


@pytest.mark.parametrize("with_state", [False, True], ids=["fresh", "state"])
@pytest.mark.parametrize("output_shape", ["BNSH", "SBH", "SBNH"])
@pytest.mark.parametrize("input_shape", ["BSGNH", "SBGNH"])
def test_slstm_cell_forward_with_gradients(input_shape, output_shape, with_state):
    cell = slstm_cell(input_shape=input_shape, output_shape=output_shape)
    x = randn(*((2, 9) if input_shape[0] == "B" else (9, 2)), 48).requires_grad_()
    state = an_slstm_state().requires_grad_() if with_state else None
    leaves = [x, *cell.parameters(), *([state] if with_state else [])]
    h0, last0 = cell(x, state)
    with integrations.xlstm.enable():
        h1, last1 = cell(x, state)
    close(h1, h0)
    close(last1, last0)
    for a, b in zip(gradients(h1, leaves), gradients(h0, leaves)):
        close(a, b, 1e-4)


def test_slstm_cell_step_returns_the_new_state():
    """The official `step` returns the state that it was given."""
    cell, x = slstm_cell(), randn(2, 5, 48)
    with torch.no_grad():
        h0, last0 = cell(x)
        with integrations.xlstm.enable():
            state, hs = torch.zeros(4, 2, 12), []
            for t in range(5):
                h, state = cell.step(x[:, t : t + 1], state)
                hs.append(h)
            with pytest.raises(ValueError, match=r"state: got shape \(4, 3, 12\)"):
                cell(x, torch.zeros(4, 3, 12))
    close(torch.cat(hs, 2), h0)
    close(state, last0)


def test_slstm_cells_of_other_functions_stay_official():
    cell = slstm_cell(function="lstm")
    x = randn(2, 5, 48)
    expected = cell(x)[0]
    with integrations.xlstm.enable():
        assert torch.equal(cell(x)[0], expected)


def test_slstm_cell_of_backend_cuda_is_built_and_runs_without_a_compiler():
    vanilla, x = slstm_cell(), randn(2, 7, 48).requires_grad_()
    with integrations.xlstm.enable():
        cell = sLSTMCell(sLSTMCellConfig(hidden_size=12, num_heads=3, **{**VANILLA, "backend": "cuda"}))
        NH, DH = 3, 4
        with torch.no_grad():
            kernel = vanilla._recurrent_kernel_.view(NH, 4, DH, DH).permute(0, 3, 1, 2)
            cell._recurrent_kernel_.copy_(kernel.reshape(NH, DH, 4 * DH))
            cell._bias_.copy_(vanilla._bias_.view(4, NH, DH).transpose(0, 1).flatten())
        expected, last0 = vanilla(x)
        got, last1 = cell(x)
        cell.func = pickle.loads(pickle.dumps(cell.func))
    close(got, expected)
    close(last1, last0)
    got, last1 = cell(x)  # official again, but for the function that it was built with
    close(got, expected)
    close(last1, last0)
    close(gradients(got, [x])[0], gradients(expected, [x])[0], 1e-4)


def test_language_model_logits_gradients_and_steps():
    model, ids = language_model(), torch.randint(30, (2, 40), generator=torch.Generator().manual_seed(0))
    leaves = list(model.parameters())
    expected = model(ids)
    true = gradients(expected, leaves)
    with integrations.xlstm.enable():
        got = model(ids)
        state, steps = None, []
        with torch.no_grad():
            for t in range(10):
                logits, state = model.step(ids[:, t : t + 1], state)
                steps.append(logits)
    close(got, expected)
    close(torch.cat(steps, 1), expected[:, :10].detach())
    for a, b in zip(gradients(got, leaves), true):
        close(a, b, 2e-4)


def test_language_model_under_autocast():
    model, ids = language_model(), torch.randint(30, (2, 40), generator=torch.Generator().manual_seed(0))
    expected = model(ids)
    with integrations.xlstm.enable(), torch.autocast("cpu", torch.bfloat16):
        got = model(ids)
        got.float().square().mean().backward()
    close(got.float(), expected, 3e-2)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_language_model_in_bfloat16():
    model, ids = language_model(), torch.randint(30, (2, 40), generator=torch.Generator().manual_seed(0))
    expected = model(ids)
    with integrations.xlstm.enable():
        got = model.bfloat16()(ids)
    assert got.dtype == torch.bfloat16
    close(got.float(), expected, 5e-2)


def test_large_model_logits_state_and_generate():
    model, ids = large_model(), torch.randint(40, (2, 70), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits0, state0 = model(ids)
        tokens0, _ = model.generate(ids[:, :9], 12)
        with integrations.xlstm.enable():
            logits1, state1 = model(ids)
            tokens1, _ = model.generate(ids[:, :9], 12)
    close(logits1, logits0)
    assert torch.equal(tokens1, tokens0)
    for block in state0:
        for a, b in zip(state1[block], state0[block]):
            close(a, b)


def test_large_model_trains_at_any_length():
    model, ids = large_model(mode="train", return_last_states=True), torch.randint(40, (2, 300))
    with integrations.xlstm.enable():
        model(ids)[0].sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_models_pickle_and_copy():
    """Not sLSTM cells: the official package's `ParameterProxy` recurses without end when it is unpickled or copied."""
    ids = torch.randint(30, (1, 12))
    with torch.no_grad():
        for model, outputs in (
            (large_model(), lambda model: model(ids)[0]),
            (language_model(slstm_at=[]), lambda model: model(ids)),
        ):
            expected = outputs(model)
            with integrations.xlstm.enable():
                copies = pickle.loads(pickle.dumps(model)), copy.deepcopy(model)
                for one in copies:
                    close(outputs(one), expected)
            for one in copies:
                assert torch.equal(outputs(one), expected)


def test_hooks_of_the_official_modules_fire():
    model, fired = language_model(), set()
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: fired.add(name))
    with integrations.xlstm.enable():
        model(torch.randint(30, (1, 12)))
    cells = [name for name, module in model.named_modules() if isinstance(module, (mLSTMCell, sLSTMCell_vanilla))]
    assert {*cells, *(f"{cells[0]}.{part}" for part in ("igate", "fgate", "outnorm"))} <= fired


def test_disable_restores_every_class():
    import xlstm.blocks.slstm.cell as scalar

    watched = [vars(mLSTMCell)["forward"], vars(mLSTMCell)["step"], vars(sLSTMCellBase)["forward"], scalar.sLSTMCellFuncGenerator]
    with integrations.xlstm.enable(), integrations.mlstm_kernels.enable():
        assert integrations.enabled() == ("xlstm", "mlstm_kernels")
        assert vars(mLSTMCell)["forward"] is not watched[0]
    after = [vars(mLSTMCell)["forward"], vars(mLSTMCell)["step"], vars(sLSTMCellBase)["forward"], scalar.sLSTMCellFuncGenerator]
    assert all(a is b for a, b in zip(after, watched))
