"""The sLSTM layer: input projection of the four gates, then the recurrence of `functional.slstm`."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, logsigmoid

from .. import checks, functional
from ..ops import slstm_layer_cpu
from ..ops.slstm_layer_cpu import SLSTMLayerOperands
from ..states import SLSTMState
from ..weights import fill_, under_autocast
from .recurrent import RecurrentLayer, small_init_


class sLSTM(RecurrentLayer):
    """The scalar LSTM with exponential gates and memory mixing per head, with torch.nn.LSTM's contract (arXiv 2405.04517, 2.2).

    ``output, state = layer(input, state=None)``, see `forward`. Per layer and direction, with x the layer's input at step t:

        i~, f~, z~, o~ = W_ih x_t + R h_{t-1} + b                   R connects the units of one head only
        h_t, state     = S1-S3 of csrc/slstm/README.md

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional: as in torch.nn.LSTM; hidden_size is a
            multiple of num_heads. There is no proj_size.
        num_heads: NH; each head has DH = hidden_size / NH units.
        forget_gate: "sigmoid" or "exp".
        device, dtype: of the parameters.

    The state is SLSTMState(h, c, n, m), each (num_layers * num_directions, B, NH, DH) in float32 (float64 for float64 input),
    without B for unbatched input.

    The parameters of layer k, with ``_reverse`` appended for the second direction; gates are in the order i, f, z, o:

    - ``weight_ih_lk (4 * hidden_size, features)``: N(0, 2 / (5 features)), the official package's small init.
    - ``weight_hh_lk (4, NH, DH, DH)``, indexed [gate, head, out, in]: uniform between -1/sqrt(DH) and 1/sqrt(DH), which is the
      rule of torch.nn.LSTM for the DH units that each unit sees. The official default is zeros, for blocks whose residual path
      carries the signal from the start; a layer in nn.LSTM's place has only its memory to carry it.
    - ``bias_lk (4 * hidden_size)``, absent with bias=False: forget gates are spread evenly over 3 to 6 in each head (the official
      ``small_init``: memories of 20 to 400 steps), other gates are 0. With forget_gate="exp" the decay per step is the same: log
      sigmoid of 3 to 6. The official power law starts most units of a single block with a closed forget gate.

    Raises:
        TypeError, ValueError: an option that does not fit (named, with what is expected).

    Examples:
        >>> layer = sLSTM(64, 128, num_layers=2, batch_first=True)
        >>> output, state = layer(torch.randn(8, 100, 64))
        >>> output.shape
        torch.Size([8, 100, 128])
        >>> state
        SLSTMState(h=float32 (2, 8, 4, 32), c=float32 (2, 8, 4, 32), n=float32 (2, 8, 4, 32), m=float32 (2, 8, 4, 32))
        >>> token, state = layer.step(torch.randn(8, 64), state)
        >>> token.shape
        torch.Size([8, 128])
    """

    state_type = SLSTMState
    state_axes = ("NH, DH",) * 4

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        num_heads: int = 4,
        forget_gate: str = "sigmoid",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, num_heads)
        checks.choice("forget_gate", forget_gate, ("sigmoid", "exp"))
        self.forget_gate = forget_gate
        self.head_dim = hidden_size // num_heads
        for cell, features in self.cells():
            shapes: dict[str, tuple[int, ...]] = {
                "weight_ih": (4 * hidden_size, features),
                "weight_hh": (4, num_heads, self.head_dim, self.head_dim),
            }
            if bias:
                shapes["bias"] = (4 * hidden_size,)
            for name, shape in shapes.items():
                self.register_parameter(f"{name}_{cell}", nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws every parameter afresh, as the class documents."""
        bound = 1 / math.sqrt(self.head_dim)
        for cell, _ in self.cells():
            small_init_(self.get_parameter(f"weight_ih_{cell}"))
            nn.init.uniform_(self.get_parameter(f"weight_hh_{cell}"), -bound, bound)
            if self.bias:
                bias = self.get_parameter(f"bias_{cell}")
                values = torch.zeros(4, self.num_heads, self.head_dim, device=bias.device)
                open_gate = torch.linspace(3.0, 6.0, self.head_dim, device=bias.device)
                values[1] = open_gate if self.forget_gate == "sigmoid" else logsigmoid(open_gate)
                fill_(bias, values.flatten().to(bias.dtype))

    def state_shapes(self) -> tuple[tuple[int, ...], ...]:
        return ((self.num_heads, self.head_dim),) * 4

    def extra_defaults(self) -> dict[str, Any]:
        return {"num_heads": 4, "forget_gate": "sigmoid"}

    def run_sequence(
        self, x: Tensor, state: Any, cu_seqlens: Tensor | None, reset: Tensor | None, cell: str
    ) -> tuple[Tensor, SLSTMState]:
        if cu_seqlens is None:
            W, R = getattr(self, f"weight_ih_{cell}"), getattr(self, f"weight_hh_{cell}")
            b = getattr(self, f"bias_{cell}") if self.bias else None
            h0, c0, n0, m0 = state or (None,) * 4
            operands = SLSTMLayerOperands(x, W, R, b, h0, c0, n0, m0, reset)
            if slstm_layer_cpu.usable(operands):
                h, last = slstm_layer_cpu.slstm_layer(operands, self.forget_gate)
                return h.flatten(-2), SLSTMState(*last)
        h, last = functional.slstm(
            *self._operands(x, cell),
            state=state, return_state=True, reset=reset, cu_seqlens=cu_seqlens, forget_gate=self.forget_gate,
        )  # fmt: skip
        return h.flatten(-2), last

    def run_step(self, x: Tensor, state: Any, cell: str) -> tuple[Tensor, SLSTMState]:
        h, last = functional.slstm_step(*self._operands(x, cell), state, forget_gate=self.forget_gate)
        return h.flatten(-2), last

    def _operands(self, x: Tensor, cell: str) -> tuple[Tensor, Tensor, Tensor | None]:
        """x (..., features) -> what it adds to the gates (..., 4, NH, DH); R; b (4, NH, DH)."""
        gates = (4, self.num_heads, self.head_dim)
        x = linear(x, getattr(self, f"weight_ih_{cell}")).unflatten(-1, gates)
        b = under_autocast(getattr(self, f"bias_{cell}")).view(gates) if self.bias else None
        return x, under_autocast(getattr(self, f"weight_hh_{cell}")), b
