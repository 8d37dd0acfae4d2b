"""Recurrent states. Plain tuples of the same tensors are accepted wherever a state is."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree


class MLSTMState(NamedTuple):
    """State of the mLSTM: matrix memory, normaliser and stabiliser, float32 (float64 for float64 inputs).

    ``m`` is a gauge: (C, n, m) and (C e^a, n e^a, m - a) are the same state. A fresh state is all zeros.
    """

    C: Tensor  #: (B, NH, DHQK, DHHV)
    n: Tensor  #: (B, NH, DHQK)
    m: Tensor  #: (B, NH)


class SLSTMState(NamedTuple):
    """State of the sLSTM: output, cell, normaliser and stabiliser, each (B, NH, DH), float32 (float64 for float64 inputs).

    An element with ``n`` = 0 is fresh. A fresh state is all zeros.
    """

    h: Tensor
    c: Tensor
    n: Tensor
    m: Tensor


# A named tuple is a pytree as it is; a saved program also wants the name under which it is written down, and its example inputs
# are read with weights_only.
for _state in (MLSTMState, SLSTMState):
    _pytree._register_namedtuple(_state, serialized_type_name=f"xlstm_cuda.{_state.__name__}")
torch.serialization.add_safe_globals([MLSTMState, SLSTMState])
