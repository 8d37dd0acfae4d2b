"""The official package xlstm: the cells of both blocks, and xLSTMLarge through mlstm_kernels.

Swapped are methods of the cells' classes: projections, convolutions and norms stay the official modules, so hooks, adapters,
weights and pickles do too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import functional
from ..states import MLSTMState, SLSTMState, state_dtype
from . import mlstm_kernels, patch
from .every_state import every_state
from .patch import Handle, Swap


def enable(backend: str | None = None) -> Handle:
    """Computes the mLSTM and sLSTM cells of `xlstm` with xlstm_cuda, and `mLSTMBackend` where mlstm_kernels is installed.

    sLSTM cells of backend "cuda" are then built without a compiler and run on any device. These stay official: cells that were
    given a function of the user's, function="lstm", and clipped or cut gradients. Raises what `patch.enable` raises.
    """
    return patch.enable("xlstm", backend, swaps)


def swaps(backend: str | None) -> list[Swap]:
    """What `enable` swaps."""
    if patch.is_on("alias_xlstm"):
        raise patch.IntegrationError("integrations.xlstm: alias_xlstm() is on, so `import xlstm` is this package already")
    package = functools.partial(patch.peer, "xlstm", distribution="xlstm", at_least=(2, 0), below=(3, 0))
    matrix, scalar = package("xlstm.blocks.mlstm.cell"), package("xlstm.blocks.slstm.cell")
    ours = [
        Swap(matrix.mLSTMCell, "forward", _mlstm_forward(matrix, backend), ("q", "k", "v")),
        Swap(matrix.mLSTMCell, "step", _mlstm_step(matrix, backend), ("q", "k", "v", "mlstm_state")),
        Swap(scalar.sLSTMCellBase, "forward", _slstm_forward(backend), ("input", "state")),
        Swap(scalar.sLSTMCellBase, "step", _slstm_step(backend), ("input", "state")),
        Swap(scalar, "sLSTMCellFuncGenerator", _generator(backend), ("training", "config")),
    ]
    try:
        return [*ours, *mlstm_kernels.swaps(backend)]
    except ImportError:  # then no xLSTMLarge of this package can be imported either
        return ours


def _mlstm_forward(module: Any, backend: str | None) -> Callable[[Callable], Callable]:
    def replace(original: Callable) -> Callable:
        def forward(self: Any, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
            if self.backend_fn is not module.parallel_stabilized_simple:
                return original(self, q, k, v, **options)
            i, f = _gates(self, q, k, v)
            heads = (*q.shape[:2], self.config.num_heads, -1)
            q, k, v = (x.view(heads) for x in (q, k, v))
            h, _ = functional.mlstm(q, k, v, i, f, return_state=True, backend=backend)
            return _normed(self, h)

        return patch.keeping_signature(original, forward)

    return replace


def _mlstm_step(module: Any, backend: str | None) -> Callable[[Callable], Callable]:
    """The official state has 1/sqrt(DH) in k: C (B, NH, DH, DH), n (B, NH, DH, 1), m (B, NH, 1, 1)."""

    def replace(original: Callable) -> Callable:
        def step(self: Any, q: Tensor, k: Tensor, v: Tensor, mlstm_state: Any = None, **options: Any) -> tuple[Tensor, tuple]:
            if self.backend_fn_step is not module.recurrent_step_stabilized_simple:
                return original(self, q, k, v, mlstm_state, **options)
            if q.shape[1] != 1:
                raise ValueError(f"q: got shape {tuple(q.shape)}, expected (B, S, D) with S = 1")
            i, f = _gates(self, q, k, v)
            B, NH = q.shape[0], self.config.num_heads
            q, k, v = (x.view(B, NH, -1) for x in (q, k, v))
            DH = q.shape[-1]
            dtype = state_dtype(q)
            if mlstm_state is None:
                shapes = ((B, NH, DH, DH), (B, NH, DH), (B, NH))
                before = MLSTMState(*(q.new_zeros(shape, dtype=dtype) for shape in shapes))
            else:
                C, n, m = (part.to(q.device, dtype) for part in mlstm_state)
                before = MLSTMState(C, n.squeeze(-1), m.flatten(1))
            h, (C, n, m) = functional.mlstm_step(q, k * DH**-0.5, v, i[:, 0], f[:, 0], before, scale=1.0, backend=backend)
            return _normed(self, h.unsqueeze(1)), (C, n.unsqueeze(-1), m[..., None, None])

        return patch.keeping_signature(original, step)

    return replace


def _gates(cell: Any, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Pre-activations i, f (B, S, NH)."""
    inputs = torch.cat([q, k, v], -1)
    return cell.igate(inputs), cell.fgate(inputs)


def _normed(cell: Any, h: Tensor) -> Tensor:
    """h (B, S, NH, DH) through the official norm, which takes and gives (B, NH, S, DH): (B, S, D)."""
    return cell.outnorm(h.transpose(1, 2)).transpose(1, 2).flatten(2)


def _slstm_forward(backend: str | None) -> Callable[[Callable], Callable]:
    def replace(original: Callable) -> Callable:
        def forward(self: Any, input: Tensor, state: Tensor | None = None, lengths: Any = None) -> tuple[Tensor, Tensor]:
            if not _implemented(self.config):
                return original(self, input, state, lengths)
            return _run_slstm(self, input, state, backend)

        return patch.keeping_signature(original, forward)

    return replace


def _slstm_step(backend: str | None) -> Callable[[Callable], Callable]:
    """The official `step` returns the state it was given; this one returns the new state."""

    def replace(original: Callable) -> Callable:
        def step(self: Any, input: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
            return _run_slstm(self, input, state, backend) if _implemented(self.config) else original(self, input, state)

        return patch.keeping_signature(original, step)

    return replace


def _implemented(config: Any) -> bool:
    """Whether an official cell computes the sLSTM without cuts and clipping."""
    plain = not config.gradient_recurrent_cut and config.gradient_recurrent_clipval is None and config.forward_clipval is None
    return config.function == "slstm" and plain


def _run_slstm(cell: Any, input: Tensor, state: Tensor | None, backend: str | None) -> tuple[Tensor, Tensor]:
    """input in the cell's input_shape; h in its output_shape and x's dtype, and the state (4, B, D) of h, c, n, m."""
    cell._check_input(input)
    NH, DH = cell.config.num_heads, cell.head_dim
    x = input.view(*input.shape[:2], 4, NH, DH)
    if cell.config.input_shape == "SBGNH":
        x = x.transpose(0, 1)
    R = cell._recurrent_kernel_int2ext(cell._recurrent_kernel_).permute(2, 0, 3, 1)  # from [head, in, gate, out]
    b = cell._bias_int2ext(cell._bias_).transpose(0, 1)
    R, b = (weight if weight.dtype in (x.dtype, torch.float32) else weight.to(x.dtype) for weight in (R, b))
    B, dtype = x.shape[0], state_dtype(x)
    before = None
    if state is not None:
        if state.shape != (4, B, NH * DH):
            raise ValueError(f"state: got shape {tuple(state.shape)}, expected (4, B, D) = {(4, B, NH * DH)}")
        before = SLSTMState(*state.to(dtype).view(4, B, NH, DH).unbind(0))
    if before is not None and x.shape[1] == 1:
        h, last = functional.slstm_step(x[:, 0], R, b, before, backend=backend)
        h = h.unsqueeze(1)
    else:
        h, last = functional.slstm(x, R, b, state=before, return_state=True, backend=backend)
    return cell._permute_output(h.transpose(0, 1).flatten(2)), torch.stack(last).flatten(2)


class StatesOfEveryStep:
    """In the place of the compiled function that the official "cuda" cell and TiRex hold: `apply` without a compiler."""

    def __init__(self, config: Any, backend: str | None = None):
        self.num_heads, self.backend = config.num_heads, backend

    def apply(self, training: bool, input: Tensor, state: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
        """States before the first and after every step.

        Args:
            input: (S, B, 4 D) indexed (head, gate, unit). state: (4, B, D) of h, c, n, m.
            kernel: (NH, DH, 4 DH) indexed [head, in, (gate, out)]. bias: (4 D) indexed (head, gate, unit).

        Returns:
            (4, S+1, B, D) in input's dtype. Differentiable.
        """
        S, B, _ = input.shape
        NH, DH = self.num_heads, kernel.shape[1]
        x = input.view(S, B, NH, 4, DH).permute(1, 0, 3, 2, 4)
        R = kernel.view(NH, DH, 4, DH).permute(2, 0, 3, 1)
        b = bias.view(NH, 4, DH).transpose(0, 1)
        R, b = (weight if weight.dtype in (x.dtype, torch.float32) else weight.to(x.dtype) for weight in (R, b))
        before = SLSTMState(*state.to(state_dtype(x)).view(4, B, NH, DH).unbind(0))
        h, _ = functional.slstm(x, R, b, state=before, return_state=True, backend=self.backend)
        after = every_state(x, R, b, h, before).flatten(3).transpose(1, 2)
        return torch.cat([state.unsqueeze(1).to(input.dtype), after.to(input.dtype)], 1)


def _generator(backend: str | None) -> Callable[[Callable], Callable]:
    def replace(original: Callable) -> Callable:
        def sLSTMCellFuncGenerator(training: bool, config: Any) -> Any:
            return StatesOfEveryStep(config, backend) if _implemented(config) else original(training, config)

        return patch.keeping_signature(original, sLSTMCellFuncGenerator)

    return replace
