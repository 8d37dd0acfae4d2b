"""One token of the mLSTM by the step kernel (csrc/mlstm/step.cu), on CUDA tensors or, for tests, on the host executor."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import native, simt

State = tuple[Tensor, Tensor, Tensor]
MAX_HEAD_DIM = 512
DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def mlstm_step(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, state: State,
    *,
    scale: float, igate: str, normalize: bool, eps: float, backend: str,
) -> tuple[Tensor, State]:  # fmt: skip
    """M1-M3 for one token; the state is left as it is.

    Args:
        q, k: (B, NH, DHQK), v: (B, NH, DHHV), one dtype of float32, bfloat16, float16; any strides.
        i, f: (B, NH), q's dtype or float32.
        state: C (B, NH, DHQK, DHHV), n (B, NH, DHQK), m (B, NH), float32.
        backend: "cuda" or "simt".

    Returns:
        h (B, NH, DHHV) in v's dtype, and the new C, n, m.

    Raises:
        TypeError: a dtype the kernel does not take. ValueError: a head dim it does not take.
    """
    C_new = torch.empty(state[0].shape, dtype=torch.float32, device=q.device)
    return _step(q, k, v, i, f, state, C_new, scale, igate, normalize, eps, backend)


def mlstm_step_inplace(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, state: State,
    *,
    scale: float, igate: str, normalize: bool, eps: float, backend: str,
) -> Tensor:  # fmt: skip
    """`mlstm_step` for decoding loops: overwrites the state's tensors, which must be contiguous, and returns h alone."""
    for name, x in zip("Cnm", state):
        if not x.is_contiguous():
            raise ValueError(f"state.{name}: got strides {x.stride()}, expected a contiguous tensor (it is updated in place)")
    h, (_, n, m) = _step(q, k, v, i, f, state, state[0], scale, igate, normalize, eps, backend)
    state[1].copy_(n)
    state[2].copy_(m)
    return h


def _step(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, state: State, C_new: Tensor,
    scale: float, igate: str, normalize: bool, eps: float, backend: str,
) -> tuple[Tensor, State]:  # fmt: skip
    B, NH, DHQK = q.shape
    DHHV = v.shape[-1]
    for name, dim in (("DHQK", DHQK), ("DHHV", DHHV)):
        if dim % 8 or not 8 <= dim <= MAX_HEAD_DIM:
            raise ValueError(f"mlstm_step on {backend}: {name}: got {dim}, expected a multiple of 8 from 8 to {MAX_HEAD_DIM}")
    if q.dtype not in DTYPES:
        raise TypeError(f"mlstm_step on {backend}: q: got {q.dtype}, expected {', '.join(map(str, DTYPES))}")
    C, n, m = (x.contiguous() for x in state)
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    h = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    n_new, m_new = torch.empty_like(n), torch.empty_like(m)
    on_gpu = backend == "cuda"
    module = native._C if on_gpu else simt.module()
    with torch.cuda.device(q.device if on_gpu else -1):
        module.mlstm_step(
            q=q.data_ptr(), k=k.data_ptr(), v=v.data_ptr(), i=i.data_ptr(), f=f.data_ptr(),
            C=C.data_ptr(), n=n.data_ptr(), m=m.data_ptr(),
            h=h.data_ptr(), C_new=C_new.data_ptr(), n_new=n_new.data_ptr(), m_new=m_new.data_ptr(),
            B=B, NH=NH, DHQK=DHQK, DHHV=DHHV, dtype=DTYPES[q.dtype], gate_dtype=DTYPES[i.dtype],
            q_strides=q.stride()[:2], k_strides=k.stride()[:2], v_strides=v.stride()[:2],
            i_strides=i.stride(), f_strides=f.stride(),
            scale=scale, igate=igate, normalize=normalize, eps=eps,
            stream=torch.cuda.current_stream(q.device).cuda_stream if on_gpu else 0,
        )  # fmt: skip
    return h, (C_new, n_new, m_new)
