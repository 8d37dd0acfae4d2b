"""One token of a whole residual block on a CPU in one native call (csrc/cpu/block_step.h), without gradients.

Eager decoding pays for every look at a tensor, so the functions here look once at each: they return None where an operand is not
what the call reads, and the modules, one after the other, then do the work or say what is wrong.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..native import _C
from .launch import CPUCall, addresses
from .library import must_dispatch
from .mlstm_layer_cpu import weight_shapes

_MLSTM = {torch.float32: _C.mlstm_block_step_cpu_float32, torch.float64: _C.mlstm_block_step_cpu_float64}
_SLSTM = {torch.float32: _C.slstm_block_step_cpu_float32, torch.float64: _C.slstm_block_step_cpu_float64}
MOST_ROWS = 16  #: above, a library's matrix products are faster

Shapes = Sequence[tuple[int, ...]]


def usable(x: Tensor) -> bool:
    """Whether a step of x (B, 1, D) may be one call: nobody differentiates, compiles, watches or casts it."""
    return not (
        torch.is_grad_enabled()
        or x.dtype not in _MLSTM
        or not x.is_cpu
        or torch.is_autocast_enabled("cpu")
        or forward_ad._current_level >= 0
        or must_dispatch(x)
        or x.shape[0] > MOST_ROWS  # last: a compiler must not be asked, or it would compile for these sizes alone
    )


def mlstm(
    x: Tensor,
    sizes: tuple[int, int, int, int, int],
    norm_eps: tuple[float, float],
    weights: Sequence[Tensor | None],
    held: Tensor | None,
    state: Sequence[Tensor] | None,
    in_place: bool,
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]] | None:
    """An mLSTM block: y (B, 1, D), the last inputs (B, K, I) and the official C, n, m, after x (B, 1, D).

    sizes: D, I, NH, K, width. norm_eps: of the block's norm and of the heads'. weights: norm, up, its bias, down, its bias, then
    MLSTMLayerWeights. held: the inputs before, (B, K or K-1, I), and ``state`` C, n, m; None is fresh. With ``in_place`` the
    given tensors hold the new state.
    """
    D, I, NH, K, width = sizes
    B, dtype, DH = x.shape[0], x.dtype, I // NH
    expected = _mlstm_shapes(D, I, NH, K, width)
    read = None if expected is None else addresses(weights, expected, dtype)
    shapes = (B, NH, DH, DH), (B, NH, DH, 1), (B, NH, 1, 1)
    if state is None:
        state, own = [x.new_zeros(shape) for shape in shapes], True
    else:
        own = in_place
    steps = K if held is None else held.shape[1]
    before = addresses((held, *state), ((B, steps, I), *shapes), dtype) if len(state) == 3 and K - 1 <= steps <= K else None
    if read is None or before is None:
        return None
    call = CPUCall()
    window = held if in_place and held is not None and steps == K else x.new_empty((B, K, I))
    last = state if own else [torch.empty_like(part) for part in state]
    y, to_y = call.like(x)
    _MLSTM[dtype](
        sizes=(B, *sizes, steps), x=call.address(x, dtype), block_norm=read[0], block_eps=norm_eps[0], norm_eps=norm_eps[1],
        projections=read[1:5], weights=read[5:], before=before,
        after=(call.result(window), *[call.result(part) for part in last]), y=to_y, threads=torch.get_num_threads(),
    )  # fmt: skip
    C, n, m = last
    return y, window, (C, n, m)


@functools.cache
def _mlstm_shapes(D: int, I: int, NH: int, K: int, width: int) -> Shapes | None:
    """Of the weights that `mlstm` takes."""
    layer = weight_shapes(I, NH, K, width)
    return None if layer is None else ((D,), (2 * I, D), (2 * I,), (D, I), (D,), *layer)


def slstm(
    x: Tensor,
    sizes: tuple[int, int, int, int],
    norm_eps: tuple[float, float, float],
    weights: Sequence[Tensor | None],
    held: Tensor | None,
    state: Tensor | None,
    in_place: bool,
) -> tuple[Tensor, Tensor | None, Tensor] | None:
    """An sLSTM block: y (B, 1, D), the last inputs (B, K, D), None for K = 0, and the official state (4, B, D) of h, c, n, m.

    sizes: D, NH, K, F. norm_eps: of the block's norm, the heads' and the feed-forward network's. weights: the block's norm, conv
    weight, bias, input weights of i, f, z, o, R, b, the heads' norm; norm, up, its bias, down, its bias of the feed-forward
    network.
    """
    D, NH, K, F = sizes
    B, dtype = x.shape[0], x.dtype
    read = addresses(weights, _slstm_shapes(D, NH, K, F), dtype)
    steps = K if held is None else held.shape[1]
    before = addresses((held, state), ((B, steps, D), (4, B, D)), dtype) if max(K - 1, 0) <= steps <= K else None
    if read is None or before is None:
        return None
    call = CPUCall()
    window = None
    if K:
        window = held if in_place and held is not None and steps == K else x.new_empty((B, K, D))
    last = state if in_place and state is not None else x.new_empty((4, B, D))
    y, to_y = call.like(x)
    _SLSTM[dtype](
        sizes=(B, *sizes, steps), x=call.address(x, dtype), block_norm=read[0], block_eps=norm_eps[0], norm_eps=norm_eps[1],
        ffn_eps=norm_eps[2], weights=read[1:10], feed_forward=read[10:], before=before,
        after=(call.result(window), call.result(last)), y=to_y, threads=torch.get_num_threads(),
    )  # fmt: skip
    return y, window, last


@functools.cache
def _slstm_shapes(D: int, NH: int, K: int, F: int) -> Shapes:
    """Of the weights that `slstm` takes."""
    DH, features = D // NH, (D,)
    cell = ((D, 1, K), features, *(((NH, DH, DH),) * 4), (NH, 4 * DH, DH), (4 * D,), features)
    return (features, *cell, features, (2 * F, D), (2 * F,), (D, F), features)
