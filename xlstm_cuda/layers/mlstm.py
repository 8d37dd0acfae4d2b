"""The mLSTM layer: projections, the recurrence of `functional.mlstm`, RMS norm per head, output gate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm

from .. import checks, functional
from ..states import MLSTMState
from ..weights import fill_
from .recurrent import RecurrentLayer, small_init_

NORM_EPS = 1e-6


class mLSTM(RecurrentLayer):
    """The matrix LSTM, parallel over the sequence, with torch.nn.LSTM's contract (arXiv 2405.04517, 2.3).

    ``output, state = layer(input, state=None)``, see `forward`. Per layer and direction, with x the layer's input at step t:

        q, k, v, o~ = W_ih x_t + b          i~, f~ = W_gate x_t + b_gate, one of each per head
        h~_t, state = M1-M3 of csrc/mlstm/README.md
        h_t         = sigmoid(o~) * (norm weight * RMSnorm(h~_t) per head)         without the norm if not normalize

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional: as in torch.nn.LSTM; hidden_size is a
            multiple of num_heads. There is no proj_size.
        num_heads: NH; value head dim DHHV = hidden_size / NH.
        qk_dim_factor: queries and keys have hidden_size * qk_dim_factor features, a multiple of num_heads.
        igate: "exp" or "sigmoid".
        normalize: False drops the normaliser of M3 and the RMS norm (only with igate="sigmoid").
        device, dtype: of the parameters.

    The state is MLSTMState(C (L, B, NH, DHQK, DHHV), n (L, B, NH, DHQK), m (L, B, NH)) with L = num_layers * num_directions, in
    float32 (float64 for float64 input), without B for unbatched input.

    The parameters of layer k, with ``_reverse`` appended for the second direction:

    - ``weight_ih_lk (2 * NH * DHQK + 2 * hidden_size, features)``, rows q, k, v, o: N(0, 2 / (5 features)), the official small
      init.
    - ``weight_gate_lk (2 * NH, features)``, rows i, f: zeros, as in the official package, so that gates start independent of the
      input.
    - ``bias_lk (2 * NH * DHQK + 2 * hidden_size)``: zeros.
    - ``bias_gate_lk (2 * NH)``: input gates N(0, 0.1), forget gates spread evenly over 3 to 6 (as in the official
      xLSTMBlockStack). The -10 at which the 7B model's input gates start is made for deep residual stacks. In nn.LSTM's place,
      without a residual path, it would start h below the epsilon of its norm, and so make the output far too small.
    - ``weight_norm_lk (hidden_size)``, absent with normalize=False: ones.

    bias=False drops both biases, also those of the gates: forget gates then start at one half.

    Raises:
        TypeError, ValueError: an option that does not fit (named, with what is expected).

    Examples:
        >>> layer = mLSTM(64, 128, batch_first=True, bidirectional=True)
        >>> output, state = layer(torch.randn(8, 100, 64))
        >>> output.shape
        torch.Size([8, 100, 256])
        >>> state
        MLSTMState(C=float32 (2, 8, 4, 32, 32), n=float32 (2, 8, 4, 32), m=float32 (2, 8, 4))
    """

    state_type = MLSTMState
    state_axes = ("NH, DHQK, DHHV", "NH, DHQK", "NH")

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
        qk_dim_factor: float = 1.0,
        igate: str = "exp",
        normalize: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, num_heads)
        checks.choice("igate", igate, ("exp", "sigmoid"))
        if not normalize and igate == "exp":
            raise ValueError("normalize: got False with igate 'exp', expected True (only igate 'sigmoid' may go without)")
        qk_size = round(hidden_size * qk_dim_factor)
        if abs(qk_size - hidden_size * qk_dim_factor) > 1e-6 or qk_size < 1 or qk_size % num_heads:
            raise ValueError(
                f"qk_dim_factor: got {qk_dim_factor}, so {hidden_size * qk_dim_factor:g} query features, "
                f"expected a multiple of num_heads = {num_heads}"
            )
        self.qk_dim_factor = qk_dim_factor
        self.igate = igate
        self.normalize = normalize
        self.head_dim = hidden_size // num_heads
        self.qk_head_dim = qk_size // num_heads
        for cell, features in self.cells():
            rows = 2 * qk_size + 2 * hidden_size
            shapes: dict[str, tuple[int, ...]] = {"weight_ih": (rows, features), "weight_gate": (2 * num_heads, features)}
            if bias:
                shapes |= {"bias": (rows,), "bias_gate": (2 * num_heads,)}
            if normalize:
                shapes["weight_norm"] = (hidden_size,)
            for name, shape in shapes.items():
                self.register_parameter(f"{name}_{cell}", nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws every parameter afresh, as the class documents."""
        for cell, _ in self.cells():
            small_init_(self.get_parameter(f"weight_ih_{cell}"))
            nn.init.zeros_(self.get_parameter(f"weight_gate_{cell}"))
            if self.bias:
                nn.init.zeros_(self.get_parameter(f"bias_{cell}"))
                bias = self.get_parameter(f"bias_gate_{cell}")
                input_gates = torch.empty(self.num_heads, dtype=bias.dtype, device=bias.device).normal_(0, 0.1)
                forget_gates = torch.linspace(3.0, 6.0, self.num_heads, device=bias.device)
                fill_(bias, torch.cat([input_gates, forget_gates.to(bias.dtype)]))
            if self.normalize:
                nn.init.ones_(self.get_parameter(f"weight_norm_{cell}"))

    def state_shapes(self) -> tuple[tuple[int, ...], ...]:
        NH, DHQK, DHHV = self.num_heads, self.qk_head_dim, self.head_dim
        return (NH, DHQK, DHHV), (NH, DHQK), (NH,)

    def extra_defaults(self) -> dict[str, Any]:
        return {"num_heads": 4, "qk_dim_factor": 1.0, "igate": "exp", "normalize": True}

    def run_sequence(
        self, x: Tensor, state: Any, cu_seqlens: Tensor | None, reset: Tensor | None, cell: str
    ) -> tuple[Tensor, MLSTMState]:
        q, k, v, i, f, o = self._operands(x, cell)
        h, last = functional.mlstm(
            q, k, v, i, f,
            state=state, return_state=True, igate=self.igate, normalize=self.normalize, reset=reset, cu_seqlens=cu_seqlens,
        )  # fmt: skip
        return self._output(h, o, cell), last

    def run_step(self, x: Tensor, state: Any, cell: str) -> tuple[Tensor, MLSTMState]:
        q, k, v, i, f, o = self._operands(x, cell)
        h, last = functional.mlstm_step(q, k, v, i, f, state, igate=self.igate, normalize=self.normalize)
        return self._output(h, o, cell), last

    def _operands(self, x: Tensor, cell: str) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """x (..., features) -> q, k (..., NH, DHQK); v (..., NH, DHHV); i, f (..., NH); o (..., hidden_size)."""
        projected = linear(x, getattr(self, f"weight_ih_{cell}"), getattr(self, f"bias_{cell}") if self.bias else None)
        qk_size = self.num_heads * self.qk_head_dim
        q, k, v, o = projected.split([qk_size, qk_size, self.hidden_size, self.hidden_size], -1)
        gates = linear(x, getattr(self, f"weight_gate_{cell}"))
        if gates.dtype != torch.float64:
            gates = gates.float()  # the bias is large and what x adds is small: half precision would round it away
        if self.bias:
            gates = gates + getattr(self, f"bias_gate_{cell}")
        i, f = gates.chunk(2, -1)
        heads = (self.num_heads, -1)
        return q.unflatten(-1, heads), k.unflatten(-1, heads), v.unflatten(-1, heads), i, f, o

    def _output(self, h: Tensor, o: Tensor, cell: str) -> Tensor:
        """h (..., NH, DHHV), o (..., hidden_size) -> (..., hidden_size)."""
        if self.normalize:
            wide = h if h.dtype == torch.float64 else h.float()
            weight = getattr(self, f"weight_norm_{cell}").view(self.num_heads, self.head_dim)
            h = (rms_norm(wide, (self.head_dim,), eps=NORM_EPS) * weight).to(h.dtype)
        return h.flatten(-2) * torch.sigmoid(o)
