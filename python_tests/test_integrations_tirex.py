"""TiRex served by xlstm_cuda. Where tirex-ts and tirex-2 are not installed, by stand-ins with the same calls and layouts.

The recurrence of the stand-ins is the reference backend; the real cells are tested where they can be imported.
"""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from xlstm_cuda import functional, integrations
from xlstm_cuda.states import SLSTMState

NH, DH = 2, 4
D = NH * DH


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def close(got, expected, bound=1e-5):
    assert got.shape == expected.shape
    assert (got - expected).norm() <= bound * expected.norm().clamp_min(1.0), (got - expected).abs().max()


class CellStandIn:
    """The call of tirex.models.slstm.cell.sLSTMCell: input (S, B, 4, NH, DH), state (4, B, D), R (NH, DH, 4 DH), b (NH 4 DH)."""

    def __init__(self):
        self._recurrent_kernel_ = 0.3 * randn(NH, DH, 4 * DH, seed=1)
        self._bias_ = randn(NH * 4 * DH, seed=2)

    def _impl_torch(self, input, state):
        h, c, n, m = state.view(4, -1, NH, DH)
        outputs = []
        for x in input:  # x (B, 4, NH, DH)
            recurrent = torch.einsum("bhi,higo->bgho", h, self._recurrent_kernel_.view(NH, DH, 4, DH))
            gates = x + recurrent + self._bias_.view(NH, 4, DH).transpose(0, 1)
            R0 = torch.zeros(4, NH, DH, DH)
            h, (h, c, n, m) = functional.slstm_step(gates, R0, None, SLSTMState(h, c, n, m), backend="reference")
            outputs.append(h.flatten(1))
        return torch.stack(outputs), torch.stack((h, c, n, m)).flatten(2)

    def _impl_cuda(self, input, state):
        raise AssertionError("needs a GPU")


class LayerStandIn:
    """The call of tirex2's layer: Wx (B, T, 4, H, D), states (4, B, 1, H, D), R and b in the config's layouts."""

    def slstm_flashrnn(self, Wx, R, b, config, states=None):
        R = R.permute(["HPGD".index(axis) for axis in "GHDP"])
        before = None if states is None else SLSTMState(*states[:, :, 0])
        h, last = functional.slstm(Wx, R, b.transpose(0, 1), state=before, return_state=True, backend="reference")
        return h.unsqueeze(0), torch.stack(last).unsqueeze(2)


def module(monkeypatch, name, **entries):
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        one = ModuleType(".".join(parts[:end]))
        one.__path__ = []
        monkeypatch.setitem(sys.modules, one.__name__, one)
    vars(one).update(entries)


@pytest.fixture
def stand_ins(monkeypatch):
    pytest.importorskip("flashrnn", reason="pip install 'xlstm_cuda[peers]'")
    pytest.importorskip("mlstm_kernels", reason="pip install 'xlstm_cuda[peers]'")
    cell, layer = type("sLSTMCell", (CellStandIn,), {}), type("_FlashRNNLayer", (LayerStandIn,), {})
    module(monkeypatch, "tirex.models.slstm.cell", sLSTMCell=cell)
    module(monkeypatch, "tirex2.model.component.flashrnn_slstm", _FlashRNNLayer=layer)
    return SimpleNamespace(cell=cell, layer=layer)


@pytest.mark.parametrize("name", ["_impl_torch", "_impl_cuda"])
def test_stand_in_of_tirex_ts(stand_ins, name):
    cell, x, state = stand_ins.cell(), randn(9, 3, 4, NH, DH), torch.zeros(4, 3, D)
    h0, last0 = cell._impl_torch(x, state)
    with integrations.tirex.enable():
        assert name in vars(stand_ins.cell)
        h1, last1 = getattr(cell, name)(x, state)
        again, _ = getattr(cell, name)(x[:2], last1)
    assert name not in vars(stand_ins.cell)
    close(h1, h0)
    close(last1, last0)
    close(again, cell._impl_torch(x[:2], last0)[0])


@pytest.mark.parametrize("with_state", [False, True], ids=["fresh", "state"])
def test_stand_in_of_tirex_2(stand_ins, with_state):
    Wx, R, b = randn(3, 9, 4, NH, DH), 0.3 * randn(NH, DH, 4, DH, seed=1), randn(NH, 4, DH, seed=2)
    states = randn(4, 3, 1, NH, DH, seed=3).abs() + 1 if with_state else None
    config, layer = SimpleNamespace(recurrent_shape="HPGD", bias_shape="HGD"), stand_ins.layer()
    h0, last0 = layer.slstm_flashrnn(Wx, R, b, config, states)
    with integrations.tirex.enable():
        h1, last1 = layer.slstm_flashrnn(Wx=Wx, R=R, b=b, config=config, states=states)
    close(h1, h0)
    close(last1, last0)


def test_also_serves_what_tirex_2_stands_on(stand_ins):
    from mlstm_kernels.torch.backend_module import mLSTMBackend

    before = vars(mLSTMBackend)["forward"]
    with integrations.tirex.enable(), integrations.flashrnn.enable():
        assert vars(mLSTMBackend)["forward"] is not before
        assert integrations.enabled() == ("tirex", "flashrnn")
    assert vars(mLSTMBackend)["forward"] is before


def test_an_unknown_form_of_the_cell_is_refused_whole(stand_ins, monkeypatch):
    monkeypatch.delattr(CellStandIn, "_impl_torch")
    with pytest.raises(integrations.UnsupportedVersion, match="_impl_torch: got no such attribute"):
        integrations.tirex.enable()
    assert "slstm_flashrnn" not in vars(stand_ins.layer) and integrations.enabled() == ()


def test_one_package_that_cannot_be_imported_does_not_stop_the_other(stand_ins, monkeypatch):
    monkeypatch.setitem(sys.modules, "tirex.models.slstm.cell", None)
    with integrations.tirex.enable():
        assert "slstm_flashrnn" in vars(stand_ins.layer)
    monkeypatch.setitem(sys.modules, "tirex2.model.component.flashrnn_slstm", None)
    with pytest.raises(ImportError, match=r"the package tirex-ts cannot be imported"):
        integrations.tirex.enable()


def real(name, distribution):
    """A module of a real peer; skipped with what is lacking (a package without its own dependencies cannot be imported)."""
    return pytest.importorskip(name, reason=f"the PyPI package {distribution} cannot be imported here", exc_type=ImportError)


def test_real_cell_of_tirex_ts():
    """Against its recurrence in float32; on the CPU it computes in bfloat16 itself."""
    peer = real("tirex.models.slstm.cell", "tirex-ts")
    cell = peer.sLSTMCell(peer.sLSTMBlockConfig(embedding_dim=D, num_heads=NH), "torch")
    with torch.no_grad():
        cell._recurrent_kernel_.copy_(0.3 * randn(NH, DH, 4 * DH, seed=1))
        cell._bias_.copy_(randn(NH * 4 * DH, seed=2))
    x, state = randn(3, 9, 4 * D), None
    rough, _ = cell(x, state)
    gates = cell._get_input(x)
    bias = cell._bias_.view(NH, 4, DH).transpose(0, 1).flatten()
    h0, last0 = cell._impl_forward_torch(gates.flatten(2), torch.zeros(4, 3, D), cell._recurrent_kernel_, bias)
    with integrations.tirex.enable():
        h1, last1 = cell(x, state)
    close(h1, cell._permute_output(h0))
    close(last1, last0)
    close(rough, h1, 2e-2)


def test_real_layer_of_tirex_2():
    peer = real("tirex2.model.component.flashrnn_slstm", "tirex-2")
    config = peer.FlashRNNLayerConfig(
        embedding_dim=D,
        num_heads=NH,
        backend="vanilla",
        recurrent_shape="HPGD",
        bias_shape="HGD",
        recurrent_weight_init="standard",
    )
    layer, x = peer.sLSTMFlashRNNLayer(config, 0, 2), randn(3, 9, D).requires_grad_()
    leaves = [x, *(parameter for parameter in layer.parameters())]

    def run():
        y = layer(x)
        step, state = layer.step(x[:, :1])
        step, state = layer.step(x[:, 1:2], **state)
        return y, step, state["slstm_state"], torch.autograd.grad((y * randn(*y.shape, seed=4)).sum(), leaves)

    *before, gradients0 = run()
    with integrations.tirex.enable():
        *after, gradients1 = run()
    for got, expected in zip([*after, *gradients1], [*before, *gradients0]):
        close(got, expected, 2e-5)
