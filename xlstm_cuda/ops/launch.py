"""The one place where tensors become addresses: what a call of a compiled module needs, and what its operands must be.

Kernels read memory, not tensors. So everything that a tensor says beside its address is checked here, for operands and for saved
tensors alike, because hooks may give these back in another layout: device, dtype, strides, alignment, a pending negation. An
operand that a kernel cannot read as it lies is copied; a result never is. (Complex tensors, which alone can be conjugated, are of
no dtype that anything here takes.)
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from .. import native, simt

View = tuple[int, int, int, int]  #: csrc/common/view.h: address; elements from batch to batch, step to step, head to head
ABSENT: View = (0, 0, 0, 0)
DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}  #: as the kernels spell them


class Stream(NamedTuple):
    """csrc/common/view.h: a CUDA stream, and the index of its device."""

    handle: int = 0
    device: int = -1


class SLSTMShape(NamedTuple):
    """csrc/slstm/params.h: Shape."""

    B: int
    S: int
    NH: int
    DH: int
    cu_seqlens: int
    reset: View
    forget_gate: str


class Call:
    """One call into a compiled module, whose tensors are all on one device.

    The tensors that are given must live until the launch; copies that are made here live as long as the call. ``alignment``, in
    bytes, is of addresses and of the rows of views, because kernels read whole vectors.
    """

    _copies: tuple[Tensor, ...] = ()

    def __init__(self, device: torch.device, alignment: int) -> None:
        self.device, self.alignment = device, alignment
        self._on_cpu = device.type == "cpu"

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Uninitialised memory for a result or a workspace."""
        return torch.empty(shape, dtype=dtype, device=self.device)

    def address(self, x: Tensor | None, dtype: torch.dtype = torch.float32) -> int:
        """Of an operand that is read as contiguous memory; 0 for None."""
        if x is None:
            return 0
        ready = self._present(x, dtype)
        if not ready.is_contiguous() or ready.data_ptr() % self.alignment:
            ready = ready.clone(memory_format=torch.contiguous_format)
        return self._kept(ready, x).data_ptr()

    def rows(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """An operand whose last axis is read as whole rows: x itself where these have unit stride and are aligned."""
        ready = self._present(x, dtype)
        size = x.element_size()
        fits = ready.stride(-1) == 1 or ready.shape[-1] == 1
        if fits and self.alignment > 1:
            fits = ready.data_ptr() % self.alignment == 0 and all(s * size % self.alignment == 0 for s in ready.stride()[:-1])
        return self._kept(ready if fits else ready.clone(memory_format=torch.contiguous_format), x)

    def view(self, x: Tensor | None, dtype: torch.dtype) -> View:
        """Of an operand (B, S, NH, D), or (B, NH, D) without steps, that is read row by row."""
        if x is None:
            return ABSENT
        ready = self.rows(x, dtype)
        return _view(ready.data_ptr(), ready.stride()[:-1])

    def gate_views(self, x: Tensor, dtype: torch.dtype) -> tuple[View, int]:
        """Of an operand (B, S, 4, NH, DH): the view of its first gate, and the elements from gate to gate."""
        ready = self.rows(x, dtype)
        batch, step, gate, head, _ = ready.stride()
        return (ready.data_ptr(), batch, step, head), gate

    def converted(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """x in the dtype that the launch computes in, kept as long as the call."""
        return x if x.dtype is dtype else self._kept(x.to(dtype), x)

    def elements(self, x: Tensor | None, dtype: torch.dtype) -> View:
        """Of an operand (B, S, NH), or (B, NH) without steps, whose elements are read one by one, in any strides."""
        if x is None:
            return ABSENT
        ready = self._kept(self._present(x, dtype), x)
        return _view(ready.data_ptr(), ready.stride())

    def result(self, x: Tensor | None) -> int:
        """Of contiguous memory that the launch fills; 0 for None."""
        if x is None:
            return 0
        address = x.data_ptr()
        if self._here(x) and x.is_contiguous() and address % self.alignment == 0:
            return address
        raise RuntimeError(f"xlstm_cuda: got a result with strides {x.stride()} on {x.device}, expected contiguous memory")

    def result_view(self, x: Tensor) -> View:
        """`result` as a view."""
        return _view(self.result(x), x.stride()[:-1])

    def result_elements(self, x: Tensor) -> View:
        """`result` as a view of single elements."""
        return _view(self.result(x), x.stride())

    def _here(self, x: Tensor) -> bool:
        return x.is_cpu if self._on_cpu else x.device == self.device

    def _present(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        if x.dtype is not dtype or not self._here(x):
            raise RuntimeError(f"xlstm_cuda: got a tensor of {x.dtype} on {x.device}, expected {dtype} on {self.device}")
        return x.resolve_neg() if x.is_neg() else x

    def _kept(self, ready: Tensor, x: Tensor) -> Tensor:
        if ready is not x:
            self._copies += (ready,)
        return ready


def _view(address: int, strides: Sequence[int]) -> View:
    if len(strides) == 3:
        return address, strides[0], strides[1], strides[2]
    return address, strides[0], 0, strides[1]


class CPUCall(Call):
    """One call of the CPU backend, whose loads need no alignment. Decoding makes several per token, so this is lean."""

    device, alignment, _on_cpu = torch.device("cpu"), 1, True

    def __init__(self) -> None:
        pass

    def address(self, x: Tensor | None, dtype: torch.dtype = torch.float32) -> int:
        if x is not None and x.dtype is dtype and x.is_cpu and x.is_contiguous() and not x.is_neg():
            return x.data_ptr()
        return 0 if x is None else super().address(x, dtype)

    def result(self, x: Tensor | None) -> int:
        return x.data_ptr() if x is not None and x.is_cpu and x.is_contiguous() else super().result(x)

    def view(self, x: Tensor | None, dtype: torch.dtype) -> View:
        if x is not None and x.dtype is dtype and x.is_cpu and not x.is_neg():
            *strides, unit = x.stride()
            if unit == 1:
                return _view(x.data_ptr(), strides)
        return super().view(x, dtype)

    def elements(self, x: Tensor | None, dtype: torch.dtype) -> View:
        if x is not None and x.dtype is dtype and x.is_cpu and not x.is_neg():
            return _view(x.data_ptr(), x.stride())
        return super().elements(x, dtype)

    def like(self, x: Tensor) -> tuple[Tensor, int]:
        """A result of x's shape and dtype, and its address."""
        y = torch.empty_like(x)  # in the strides of x: naming another format takes longer than finding out that these will do
        if y.is_cpu and y.is_contiguous():
            return y, y.data_ptr()
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        return y, self.result(y)


def addresses(operands: Sequence[Tensor | None], shapes: Sequence[tuple[int, ...]], dtype: torch.dtype) -> tuple[int, ...] | None:
    """Of operands of a CPU call that lie as it reads them, 0 for None. None where one does not: nothing is copied here."""
    found = []
    for x, shape in zip(operands, shapes):
        if x is None:
            found.append(0)
        elif x.dtype is dtype and x.is_cpu and x.shape == shape and x.is_contiguous() and not x.is_neg():
            found.append(x.data_ptr())
        else:
            return None
    return tuple(found)


class KernelCall(Call):
    """One call of the CUDA kernels, on backend "cuda" or "simt": the module that has them, the device and its stream."""

    def __init__(self, backend: str, device: torch.device) -> None:
        super().__init__(device, 16)
        self.on_gpu = backend == "cuda"
        self.module: ModuleType = native._C if self.on_gpu else simt.module()
        self.stream = Stream()
        if self.on_gpu:
            current = torch.cuda.current_stream(device)
            self.stream = Stream(current.cuda_stream, current.device_index)

    def on_device(self) -> contextlib.AbstractContextManager[Any]:
        """Launchers ask the current device for its limits."""
        return torch.cuda.device(self.device) if self.on_gpu else contextlib.nullcontext()

    def launch(self, name: str, **fields: Any) -> None:
        """Enqueues a launcher of csrc/python/kernels.cpp; the fields are those of its parameter struct."""
        getattr(self.module, name)(**fields, stream=self.stream)


def kernel_dtype(op: str, x: Tensor) -> str:
    """How launchers spell x's dtype; TypeError for a dtype that they do not take."""
    if x.dtype not in DTYPES:
        raise TypeError(f"{op}: got {x.dtype}, expected {', '.join(map(str, DTYPES))}")
    return DTYPES[x.dtype]


def same_dtype(i: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
    """Both gates in one dtype; float32 holds either exactly."""
    return (i, f) if i.dtype == f.dtype else (i.float(), f.float())


def multiple_of_8(dim: int) -> int:
    """A head dim as the kernels read it."""
    return -(-dim // 8) * 8


def padded(x: Tensor, *dims: int) -> Tensor:
    """x with zeros after its last axes, up to these sizes; x itself where it has them."""
    missing = [dim - size for dim, size in zip(dims, x.shape[-len(dims) :])]
    return pad(x, [count for more in reversed(missing) for count in (0, more)]) if any(missing) else x


def unpadded(x: Tensor, *dims: int) -> Tensor:
    """The inverse of `padded`, contiguous."""
    for axis, dim in zip(range(-len(dims), 0), dims):
        x = x.narrow(axis, 0, dim)
    return x.contiguous()
