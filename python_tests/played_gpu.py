"""A GPU that the host executor plays, so that the tests of backend "cuda" run where there is none: XLSTM_PLAYED_GPU=A100.

Tensors on "cuda" are `Played` tensors: their numbers lie in main memory, everything else behaves as on a device, in particular
what goes wrong there. Mixing them with CPU tensors raises, so does `.numpy()`, and an address that is not in a played tensor is
refused before a kernel reads it. `native._C` launches on the executor, which holds to the limits of the GPU that is played.
Inside a captured graph, whatever a capture forbids raises, and a replay runs the recorded operations again. Streams run one after
the other: what two kernels do to each other is not played, nor is time.
"""

from __future__ import annotations

import sys
import types
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from xlstm_cuda import native, simt
from xlstm_cuda.ops.library import IMPLEMENTATIONS


@dataclass(frozen=True)
class GPU:
    """sm: as the executor takes it; its table of limits has the shared memory of a block."""

    name: str
    sm: int
    shared_per_block: int
    processors: int


GPUS = {
    gpu.name: gpu
    for gpu in (
        GPU("A100", 80, 163 << 10, 108),
        GPU("RTX 4090", 89, 99 << 10, 128),
        GPU("H100", 90, 227 << 10, 132),
    )
}

#: Tests that need more of PyTorch than is played, by a part of their names.
NOT_PLAYED = {
    "opcheck": "torch.library.opcheck looks for the op's true device",
    "compil": "torch.compile traces under no mode that plays a device",
    "vanilla": "the official packages look for CUDA_HOME, which a build of PyTorch for CPUs does not keep",
}

CUDA = torch.device("cuda", 0)
ADDRESSES = 1 << 24  #: numbers above are addresses: no size or stride of a test is that large, and no heap begins below
STREAM = 0  #: the executor's
OF_EVERY_BUILD = frozenset(("version", "compiler", "fields"))  #: what every module has; the rest of the executor's are kernels


class Played(Tensor):
    """A tensor on the played GPU, around one in main memory. It is a CPU tensor to autograd, which needs no device of its own."""

    inner: Tensor
    allocated: ClassVar[weakref.WeakValueDictionary[int, Tensor]] = weakref.WeakValueDictionary()
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> Played:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=inner.device,
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner
        Played.allocated[id(inner)] = inner

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first."
        )

    __array__ = numpy

    def __repr__(self, *_: Any, **__: Any) -> str:
        return f"Played({self.inner!r})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Played, (self.inner,)

    @classmethod
    def __torch_dispatch__(cls, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(function, args, kwargs or {})

    @classmethod
    def holds(cls, address: int) -> bool:
        """Whether an address lies in the memory of a played tensor."""
        for inner in list(cls.allocated.values()):
            storage = inner.untyped_storage()
            if storage.data_ptr() <= address <= storage.data_ptr() + storage.nbytes():
                return True
        return False


class Transfer(torch.autograd.Function):
    """Between main memory and the played GPU; the gradient goes back the other way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, to_gpu: bool) -> Tensor:
        ctx.to_gpu = to_gpu
        with torch._C._DisableTorchDispatch():
            inner = x.inner if isinstance(x, Played) else x.detach()
            copy = inner.detach().clone()
        if not to_gpu:
            forbidden_in_a_capture("a copy to the host")
        return Played(copy) if to_gpu else copy

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return Transfer.apply(gradient, not ctx.to_gpu), None


class Moves(TorchFunctionMode):
    """What PyTorch decides by a tensor's device before anything is dispatched."""

    def __torch_function__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is Tensor.cuda:
            return moved(args[0], CUDA, args[0].dtype)
        if function is Tensor.cpu:
            return moved(args[0], torch.device("cpu"), args[0].dtype)
        if function is Tensor.tolist:
            return function(moved(args[0], torch.device("cpu"), args[0].dtype))
        if function is torch.tensor and torch.device(kwargs.get("device") or "cpu").type == "cuda":
            made = function(*args, **{**kwargs, "device": "cpu"})
            return moved(made, CUDA, made.dtype)
        if function is Tensor.to:
            x = args[0]
            other = next((one for one in args[1:2] if isinstance(one, Tensor)), None)
            if other is not None:
                return moved(x, other.device, other.dtype)
            device, dtype, *_ = torch._C._nn._parse_to(*args[1:], **{k: v for k, v in kwargs.items() if k != "copy"})
            if device is not None:
                y = moved(x, device, dtype or x.dtype)
                return y.clone() if kwargs.get("copy") and y is x else y
        return function(*args, **kwargs)


def moved(x: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    if device.type not in ("cuda", "cpu"):
        return x.to(device=device, dtype=dtype) if not isinstance(x, Played) else x
    if (device.type == "cuda") != isinstance(x, Played):
        x = Transfer.apply(x, device.type == "cuda")
    return x if x.dtype == dtype else x.to(dtype)


class Factories(TorchDispatchMode):
    """Makes tensors that are asked for on "cuda" played ones."""

    def __torch_dispatch__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(function, args, kwargs or {})


#: May take tensors of both devices.
MIXED = {torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default}
#: Ops that a CPU does not have.
ON_GPU_ALONE = {torch.ops.aten.bmm.dtype: lambda a, b, dtype: torch.ops.aten.bmm(a.to(dtype), b.to(dtype))}
#: Wait for the device.
TO_HOST = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default, torch.ops.aten.nonzero.default}


def dispatch(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Runs an op on the tensors in main memory; on the GPU when a tensor is there or its result is asked for there."""
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    on_gpu = any(isinstance(x, Played) for x in tensors)
    wanted = kwargs.get("device")
    if function.namespace == "xlstm_cuda":  # our own op: its Python runs on the played tensors themselves
        with modes():
            return IMPLEMENTATIONS[function._schema.name.removeprefix("xlstm_cuda::")](*with_defaults(function, args, kwargs))
    if on_gpu and function not in MIXED:
        if foreign := [x for x in tensors if not isinstance(x, Played) and x.dim() > 0 and not index_of(function, x, args)]:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"
                f" ({function}: one of shape {tuple(foreign[0].shape)})"
            )
    if wanted is not None:
        on_gpu = on_gpu or torch.device(wanted).type == "cuda"
        kwargs = {**kwargs, "device": torch.device("cpu") if on_gpu else wanted}
    if on_gpu and function in TO_HOST:
        forbidden_in_a_capture(str(function))
    inner_args, inner_kwargs = tree_map_only(Played, lambda x: x.inner, (args, kwargs))
    function = ON_GPU_ALONE.get(function, function) if on_gpu else function
    result = function(*inner_args, **inner_kwargs)
    if not on_gpu:
        return result
    if Graph.capturing is not None:
        Graph.capturing.record(function, inner_args, inner_kwargs, result)
    known = {id(x.inner): x for x in tensors if isinstance(x, Played)}  # in-place ops and `out=` give back what they were given
    return tree_map_only(Tensor, lambda x: known.get(id(x)) if id(x) in known else Played(x), result)


def with_defaults(function: Any, args: Any, kwargs: dict[str, Any]) -> list[Any]:
    """All arguments of an op by position."""
    left = function._schema.arguments[len(args) :]
    return [*args, *(kwargs.get(argument.name, argument.default_value) for argument in left)]


def index_of(function: Any, x: Tensor, args: Any) -> bool:
    """Whether a CPU tensor is an index, which PyTorch lets be on the CPU."""
    return "index" in str(function) and len(args) > 1 and isinstance(args[1], (list, tuple)) and any(x is one for one in args[1])


class Graph:
    """A CUDA graph: the ops and launches between begin and end, with the tensors they hold."""

    capturing: Graph | None = None

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []

    def record(self, function: Any, args: Any, kwargs: Any, result: Any) -> None:
        inputs = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        fresh = [x for x in tree_leaves(result) if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in inputs]

        def again() -> None:
            results = [x for x in tree_leaves(function(*args, **kwargs)) if isinstance(x, Tensor)]
            if fresh:
                for kept, new in zip(fresh, results):
                    kept.copy_(new)

        self.calls.append(again)

    def replay(self) -> None:
        with torch._C._DisableTorchDispatch(), torch.no_grad():
            for call in self.calls:
                call()


@contextmanager
def capture(graph: Graph, **_: Any) -> Iterator[None]:
    Graph.capturing = graph
    try:
        yield
    finally:
        Graph.capturing = None


def forbidden_in_a_capture(what: str) -> None:
    if Graph.capturing is not None:
        raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing ({what})")


class Module(types.ModuleType):
    """`native._C` as a build with kernels for the played GPU has it: launches go to the executor."""

    cuda_architectures = "80-real;89-real;90a-real"
    cuda_version = 13000

    @staticmethod
    def cuda_problem(index: int) -> tuple[str, str]:
        return "", ""

    def __init__(self, real: types.ModuleType) -> None:
        super().__init__(real.__name__)
        self.real, self.__file__ = real, real.__file__
        self.kernels = frozenset(name for name in dir(native.simt()) if not name.startswith("_")) - OF_EVERY_BUILD

    def __getattr__(self, name: str) -> Any:
        if name not in self.kernels or name.startswith("simt_"):
            return getattr(self.real, name)
        found = getattr(simt.module(), name)
        return (lambda *args, **kwargs: self.launch(name, args, kwargs)) if callable(found) else found

    def launch(self, name: str, args: Any, kwargs: Any) -> Any:
        for number in numbers((args, kwargs)):
            if number >= ADDRESSES and not Played.holds(number):
                raise AssertionError(f"{name}: address {number:#x} is of no tensor on the GPU: error 700, an illegal address")
        function = getattr(simt.module(), name)
        if Graph.capturing is not None and "stream" in kwargs:
            Graph.capturing.calls.append(lambda: function(*args, **kwargs))
        with torch._C._DisableTorchDispatch():
            return function(*args, **kwargs)


def numbers(values: Any) -> Iterator[int]:
    return (value for value in tree_leaves(values) if isinstance(value, int) and not isinstance(value, bool))


class Stream:
    """Everything is in order already."""

    cuda_stream, device_index = STREAM, 0

    def wait_stream(self, _: Stream) -> None: ...
    def synchronize(self) -> None: ...
    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: Any) -> None: ...


class Device(Stream):
    def __init__(self, _: Any) -> None: ...


class Event:
    def __init__(self, **_: Any) -> None: ...
    def record(self, *_: Any) -> None: ...
    def wait(self, *_: Any) -> None: ...
    def synchronize(self) -> None: ...


@contextmanager
def modes() -> Iterator[None]:
    """Tensors on "cuda" are played ones inside."""
    with Moves(), Factories():
        yield


@contextmanager
def played(gpu: GPU) -> Iterator[None]:
    """PyTorch and `native` find the GPU inside; tensors get there inside `modes`."""
    properties = types.SimpleNamespace(
        name=gpu.name, major=gpu.sm // 10, minor=gpu.sm % 10, multi_processor_count=gpu.processors, total_memory=1 << 30,
        shared_memory_per_block_optin=gpu.shared_per_block,
    )  # fmt: skip
    replaced = {
        "is_available": lambda: True, "is_initialized": lambda: True, "_lazy_init": lambda: None, "device_count": lambda: 1,
        "current_device": lambda: 0, "get_device_name": lambda *_: gpu.name, "synchronize": lambda *_: None,
        "_sleep": lambda _: None,
        "get_device_capability": lambda *_: (gpu.sm // 10, gpu.sm % 10), "get_device_properties": lambda *_: properties,
        "mem_get_info": lambda *_: (1 << 30, 1 << 30), "empty_cache": lambda: None, "memory_allocated": memory_allocated,
        "current_stream": lambda *_: Stream(), "stream": lambda stream: stream, "Stream": lambda *_, **__: Stream(),
        "device": Device, "Event": Event, "CUDAGraph": Graph, "graph": capture,
    }  # fmt: skip
    ops = [
        module for name, module in sys.modules.items() if name.startswith("xlstm_cuda.ops.") and hasattr(module, "must_dispatch")
    ]
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    with ExitStack() as stack:
        # Module.cuda() must keep the played tensors as they are, and a step must take the same way as without a mode.
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrites)
        for module in ops:
            stack.enter_context(mock.patch.object(module, "must_dispatch", another_mode))
        stack.enter_context(simt.options(sm=gpu.sm))
        stack.enter_context(mock.patch.multiple(torch.cuda, **replaced))
        stack.enter_context(mock.patch.object(native, "_C", Module(native._C)))
        yield


def another_mode(*_: Tensor) -> bool:
    """As library.must_dispatch, on a device without modes of its own."""
    return torch._C._len_torch_dispatch_stack() > 1


def memory_allocated(*_: Any) -> int:
    """Bytes of all played tensors, every storage once."""
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in list(Played.allocated.values())}
    return sum(storages.values())
