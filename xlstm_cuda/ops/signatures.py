"""What the ops take and give, each list written once: schemas, implementations, backward, steps and flops are made from these."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class MLSTMOptions(NamedTuple):
    """The options of `functional.mlstm`, from there to the kernels (csrc/mlstm/params.h reads the first four by name)."""

    scale: float
    igate: str
    normalize: bool
    eps: float
    backend: str  #: without a default: a list that slips by one place is an error, not another backend
    chunk_size: int | None = None
    exact: bool = True  #: normalizer_grad="exact"
    return_state: bool = True  #: False: nobody reads the final state, and backend "cpu" leaves it out


class MLSTMOperands(NamedTuple):
    """(B, S, NH, D), the gates (B, S, NH), and the state before the first step, all of it or nothing."""

    q: Tensor
    k: Tensor
    v: Tensor
    i: Tensor
    f: Tensor
    C0: Tensor | None
    n0: Tensor | None
    m0: Tensor | None
    cu_seqlens: Tensor | None


class MLSTMResults(NamedTuple):
    """h in v's dtype, the final state (None: left out), and the dot products s q.n (B, S, NH) that the backward needs."""

    h: Tensor
    C: Tensor | None
    n: Tensor | None
    m: Tensor | None
    dot: Tensor


class MLSTMIncoming(NamedTuple):
    """Gradients of the results; None is zero."""

    dh: Tensor | None
    dC: Tensor | None
    dn: Tensor | None


class MLSTMSaved(NamedTuple):
    """The results that the backward reads, and the states between chunks where forward kept them (`mlstm_cpu.forward_kept`)."""

    h: Tensor
    dot: Tensor
    C: Tensor | None
    n: Tensor | None
    borders: Tensor | None


class MLSTMGradients(NamedTuple):
    """Of the operands, in their dtypes; None where there is no operand."""

    dq: Tensor
    dk: Tensor
    dv: Tensor
    di: Tensor
    df: Tensor
    dC0: Tensor | None
    dn0: Tensor | None
    dm0: Tensor | None


class MLSTMToken(NamedTuple):
    """The operands of one step: as above without the S axis, and the state before it."""

    q: Tensor
    k: Tensor
    v: Tensor
    i: Tensor
    f: Tensor
    C: Tensor
    n: Tensor
    m: Tensor


class MLSTMTokenResults(NamedTuple):
    h: Tensor
    C_new: Tensor
    n_new: Tensor
    m_new: Tensor


class SLSTMOptions(NamedTuple):
    """The options of `functional.slstm`, from there to the kernels."""

    forget_gate: str
    save: bool  #: leave what a backward needs; the op's own autograd formula asks for it by itself
    backend: str


class SLSTMOperands(NamedTuple):
    """x (B, S, 4, NH, DH), the weights, the state before the first step, all of it or nothing, and where rows begin."""

    x: Tensor
    R: Tensor
    b: Tensor | None
    h0: Tensor | None
    c0: Tensor | None
    n0: Tensor | None
    m0: Tensor | None
    reset: Tensor | None
    cu_seqlens: Tensor | None


class SLSTMResults(NamedTuple):
    """h in x's dtype, the final state, and the gates and cells of every step (empty unless saved)."""

    h: Tensor
    h_last: Tensor
    c_last: Tensor
    n_last: Tensor
    m_last: Tensor
    gates: Tensor
    cells: Tensor


class SLSTMIncoming(NamedTuple):
    """Gradients of the results; None is zero."""

    dh: Tensor | None
    dh_last: Tensor | None
    dc_last: Tensor | None
    dn_last: Tensor | None


class SLSTMSaved(NamedTuple):
    """What the backward reads."""

    R: Tensor
    h0: Tensor | None
    c0: Tensor | None
    n0: Tensor | None
    reset: Tensor | None
    cu_seqlens: Tensor | None
    gates: Tensor
    cells: Tensor
    h: Tensor | None  #: None on backend cpu, whose backward rebuilds it from the cells


class SLSTMBackwardOptions(NamedTuple):
    forget_gate: str
    backend: str


class SLSTMGradients(NamedTuple):
    """dx in x's dtype, the others in that of the state."""

    dx: Tensor
    dR: Tensor
    db: Tensor
    dh0: Tensor
    dc0: Tensor
    dn0: Tensor
    dm0: Tensor
