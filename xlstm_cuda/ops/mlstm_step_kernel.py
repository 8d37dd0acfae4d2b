"""One token of the mLSTM by the step kernel (csrc/mlstm/step.cu), on CUDA tensors or, for tests, on the host executor."""

from __future__ import annotations

import torch

from .launch import KernelCall, kernel_dtype, same_dtype
from .signatures import MLSTMOptions, MLSTMToken, MLSTMTokenResults

MAX_HEAD_DIM = 512


def step(token: MLSTMToken, options: MLSTMOptions) -> MLSTMTokenResults:
    """M1-M3 for one token; the state is left as it is.

    Raises:
        TypeError: a dtype the kernel does not take. ValueError: a head dim it does not take.
    """
    q, k, v, i, f, C, n, m = token
    B, NH, DHQK = q.shape
    DHHV = v.shape[-1]
    for name, dim in (("DHQK", DHQK), ("DHHV", DHHV)):
        if dim % 8 or not 8 <= dim <= MAX_HEAD_DIM:
            raise ValueError(
                f"mlstm_step on {options.backend}: {name}: got {dim}, expected a multiple of 8 from 8 to {MAX_HEAD_DIM}"
            )
    i, f = same_dtype(i, f)
    dtype, gate_dtype = kernel_dtype(f"mlstm_step on {options.backend}: q", q), kernel_dtype("mlstm_step: i", i)
    call = KernelCall(options.backend, q.device)
    h = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    C_new, n_new, m_new = (torch.empty(s.shape, dtype=torch.float32, device=s.device) for s in (C, n, m))
    with call.on_device():
        call.launch(
            "mlstm_step", options=options, B=B, NH=NH, DHQK=DHQK, DHHV=DHHV, dtype=dtype, gate_dtype=gate_dtype,
            q=call.view(q, q.dtype), k=call.view(k, q.dtype), v=call.view(v, q.dtype),
            i=call.elements(i, i.dtype), f=call.elements(f, i.dtype), C=call.address(C), n=call.address(n), m=call.address(m),
            h=call.result(h), C_new=call.result(C_new), n_new=call.result(n_new), m_new=call.result(m_new),
        )  # fmt: skip
    return MLSTMTokenResults(h, C_new, n_new, m_new)
