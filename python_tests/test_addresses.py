"""Kernels read memory: whatever hooks, modes and views make of a tensor, what is read is what the tensor means."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from backend_fixture import KERNELS
from mlstm_cases import device_of
from torch import Tensor

import xlstm_cuda
from xlstm_cuda import functional
from xlstm_cuda.blocks.conv import CausalConv1d
from xlstm_cuda.ops import conv_cpu
from xlstm_cuda.ops.launch import Call
from xlstm_cuda.ops.signatures import MLSTMOptions

OPS = Path(functional.__file__).parent / "ops"


def test_only_one_place_asks_for_an_address():
    """Tensor.data_ptr is called in ops/launch.py alone, so that nothing reads a tensor whose layout nobody checked.

    generation.py compares addresses of weights, to see that they are where its CUDA graphs read them.
    """
    callers = {
        path.relative_to(OPS.parent).as_posix()
        for path in OPS.parent.rglob("*.py")
        if re.search(r"\bdata_ptr\b", path.read_text())
    }
    assert callers == {"ops/launch.py", "generation.py"}


def test_every_allocation_names_its_device():
    """torch.empty and its like follow torch.set_default_device; ops and layers must follow their operands."""
    factory = re.compile(r"torch\.(empty|zeros|ones|full|arange|tensor|linspace|eye|rand|randn)\((?!.*device=)(?!.*out=)")
    package = OPS.parent
    found = [
        f"{path.relative_to(package)}:{number}: {line.strip()}"
        for folder in ("ops", "layers")
        for path in sorted((package / folder).rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if factory.search(line) and "nn.Parameter" not in line and not line.lstrip().startswith((">>>", "..."))
    ]
    assert not found, "\n".join(found)


# ---- operands of every op


def mlstm(backend: str, dtype: torch.dtype = torch.float32, S: int = 40, D: int = 16) -> tuple[Callable, list[Tensor]]:
    shapes = [(2, S, 3, D)] * 3 + [(2, S, 3)] * 2
    tensors = [torch.randn(shape).to(dtype) for shape in shapes]
    tensors += [torch.randn(2, 3, D, D), torch.randn(2, 3, D), torch.randn(2, 3)]

    def call(*t: Tensor) -> list[Tensor]:
        h, state = functional.mlstm(*t[:5], state=t[5:], return_state=True, backend=backend)
        return [h, *state[:2]]

    return call, [x.to(device_of(backend)) for x in tensors]


def mlstm_fresh(backend: str) -> tuple[Callable, list[Tensor]]:
    _, tensors = mlstm(backend, torch.bfloat16 if backend in KERNELS else torch.float32, S=70, D=12)
    return lambda *t: [functional.mlstm(*t, backend=backend)], tensors[:5]


def slstm(backend: str, checkpoint_every: int | None = None) -> tuple[Callable, list[Tensor]]:
    tensors = [torch.randn(2, 7, 4, 2, 12), torch.randn(4, 2, 12, 12) / 4, torch.randn(4, 2, 12)]
    tensors += [torch.randn(2, 2, 12), torch.randn(2, 2, 12), torch.rand(2, 2, 12) + 1, torch.randn(2, 2, 12)]

    def call(*t: Tensor) -> list[Tensor]:
        h, state = functional.slstm(*t[:3], state=t[3:], return_state=True, checkpoint_every=checkpoint_every, backend=backend)
        return [h, *state[:3]]

    return call, [x.to(device_of(backend)) for x in tensors]


def slstm_checkpointed(backend: str) -> tuple[Callable, list[Tensor]]:
    return slstm(backend, checkpoint_every=3)


def conv(backend: str) -> tuple[Callable, list[Tensor]]:
    layer = CausalConv1d(6, 4).to(device_of(backend))
    names = [name for name, _ in layer.named_parameters()]

    def call(x: Tensor, *weights: Tensor) -> list[Tensor]:
        return [torch.func.functional_call(layer, dict(zip(names, weights)), (x,))]

    return call, [torch.randn(2, 9, 6, device=device_of(backend)), *(p.detach() for p in layer.parameters())]


OPERATIONS = [mlstm, mlstm_fresh, slstm, slstm_checkpointed, conv]
every_op = pytest.mark.parametrize("make", OPERATIONS, ids=lambda f: f.__name__)


def gradients(call: Callable, tensors: list[Tensor], hooks=None) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in tensors]
    with hooks or torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
        outputs = call(*leaves)
    weights = [torch.linspace(-1, 1, y.numel(), device=y.device).view(y.shape).to(y.dtype) for y in outputs]
    return [*outputs, *torch.autograd.grad(outputs, leaves, weights)]


def restrided(x: Tensor) -> Tensor:
    """The same values with the first axis innermost, one element off."""
    if x.dim() == 0:
        return x
    room = x.new_empty(x.numel() + 1)[1:]
    return room.view(*x.shape[1:], x.shape[0]).movedim(-1, 0).copy_(x)


HOOKS = {
    "clone": lambda: torch.autograd.graph.saved_tensors_hooks(torch.clone, torch.clone),
    "contiguous": lambda: torch.autograd.graph.saved_tensors_hooks(lambda x: x.contiguous().clone(), lambda x: x),
    "restride": lambda: torch.autograd.graph.saved_tensors_hooks(restrided, lambda x: x),
    "offload": lambda: torch.autograd.graph.save_on_cpu(),
    "to numpy and back": lambda: torch.autograd.graph.saved_tensors_hooks(
        lambda x: (x.device, x.cpu().to(torch.float64).numpy().copy(), x.dtype),
        lambda packed: torch.from_numpy(packed[1]).to(packed[2]).to(packed[0]),
    ),
}


@every_op
@pytest.mark.parametrize("hook", HOOKS)
def test_saved_tensors_may_come_back_in_any_layout(make, hook, backend):
    call, tensors = make(backend)
    for got, expected in zip(gradients(call, tensors, HOOKS[hook]()), gradients(call, tensors), strict=True):
        assert torch.equal(got, expected)


@every_op
def test_operands_may_be_lazily_negated(make, backend):
    """As torch.complex(a, b).conj().imag is: -b without a copy, is_neg() says so and the memory holds b."""
    call, tensors = make(backend)
    negated = [torch._neg_view(-x) for x in tensors]
    assert all(x.is_neg() for x in negated)
    with torch.no_grad():
        for got, expected in zip(call(*negated), call(*tensors), strict=True):
            assert torch.equal(got, expected)
    for got, expected in zip(gradients(call, negated), gradients(call, tensors), strict=True):
        assert torch.equal(got, expected)


def negated_view(x: Tensor) -> Tensor:
    return torch.complex(x, -x).conj().imag


@pytest.mark.parametrize("layout", [negated_view, restrided], ids=["negated", "restrided"])
@pytest.mark.parametrize("cell", ["mlstm", "slstm"])
def test_steps_read_what_their_operands_mean(cell, layout, backend):
    _, tensors = {"mlstm": mlstm, "slstm": slstm}[cell](backend)
    count = 5 if cell == "mlstm" else 3
    token = [x[:, 0] if index < (5 if cell == "mlstm" else 1) else x for index, x in enumerate(tensors)]
    step = getattr(functional, f"{cell}_step")
    h, state = step(*token[:count], token[count:], backend=backend)
    given = [layout(x) for x in token]
    h_, state_ = step(*given[:count], given[count:], backend=backend)
    assert all(torch.equal(a, b) for a, b in zip((h, *state), (h_, *state_), strict=True))


@every_op
@pytest.mark.parametrize("offset", [1, 2, 3])
def test_operands_may_begin_anywhere(make, offset, backend):
    """A view such as flat[1:].view(...) is contiguous and not aligned: whole vectors cannot be read from it."""

    def moved(x: Tensor) -> Tensor:
        return x.new_empty(x.numel() + offset)[offset:].view(x.shape).copy_(x)

    call, tensors = make(backend)
    incoming = [moved(torch.randn_like(y)) for y in call(*tensors)]

    def run(tensors: list[Tensor], incoming: list[Tensor]) -> list[Tensor]:
        leaves = [x.detach().requires_grad_() for x in tensors]
        outputs = call(*leaves)
        return [*outputs, *torch.autograd.grad(outputs, leaves, incoming)]

    expected = run(tensors, [g.clone() for g in incoming])
    for got, true in zip(run([moved(x) for x in tensors], incoming), expected, strict=True):
        assert torch.equal(got, true)


@pytest.mark.parametrize(("i_dtype", "f_dtype"), [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)])
def test_gates_may_differ_in_dtype(i_dtype, f_dtype, backend):
    q, k, v, i, f, *state = mlstm(backend, torch.bfloat16)[1]
    mixed = [t.detach().requires_grad_() for t in (q, k, v, i.to(i_dtype), f.to(f_dtype))]
    wide = [t.detach().requires_grad_() for t in (q, k, v, i.float(), f.float())]
    results = []
    for tensors in (mixed, wide):
        h = functional.mlstm(*tensors, state=state, backend=backend)
        results.append([h, *torch.autograd.grad(h.float().sum(), tensors)])
    for got, expected in zip(*results):
        assert torch.equal(got, expected.to(got.dtype))
    step = [[t[:, 0].detach() for t in tensors] for tensors in (mixed, wide)]
    h, h_ = (functional.mlstm_step(*tensors, state, backend=backend)[0] for tensors in step)
    assert torch.equal(h, h_)


META = """
import sys, torch, xlstm_cuda
torch.manual_seed(0)
backend = sys.argv[1]
functional = xlstm_cuda.functional
slstm, mlstm = xlstm_cuda.sLSTM(8, 16, num_heads=2), xlstm_cuda.mLSTM(8, 16, num_heads=2)
x = torch.randn(5, 2, 8)
packed = torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor([5, 3]))
q, k, v = (torch.randn(2, 9, 2, 8) for _ in range(3))
i, f = (torch.randn(2, 9, 2) for _ in range(2))
gates, R, b = torch.randn(2, 6, 4, 2, 8), torch.randn(4, 2, 8, 8) / 3, torch.randn(4, 2, 8)
cu_seqlens = torch.tensor([0, 4, 9], dtype=torch.int32)

def everything():
    results = []
    for layer in (slstm, mlstm):
        y, state = layer(x)
        results += [y, *state, *torch.autograd.grad(y.sum(), list(layer.parameters()))]
        results += [layer(packed)[0].data]
        with torch.no_grad():
            y, state = layer.step(x[0])
            results += [y, *state, layer.step(x[1], state)[0]]
    leaves = [t.detach().requires_grad_() for t in (q, k, v, i, f)]
    h, last = functional.mlstm(*leaves, return_state=True, backend=backend)
    results += [h, *last, *torch.autograd.grad(h.sum() + last.C.sum(), leaves)]
    results += [functional.mlstm(*(t[:1] for t in (q, k, v, i, f)), cu_seqlens=cu_seqlens, backend=backend)]
    results += [functional.mlstm_step(*(t[:, 0] for t in (q, k, v, i, f)), last, backend=backend)[0]]
    leaves = [t.detach().requires_grad_() for t in (gates, R, b)]
    h, last = functional.slstm(*leaves, return_state=True, backend=backend)
    results += [h, *last, *torch.autograd.grad(h.sum() + last.c.sum(), leaves)]
    results += [functional.slstm_step(gates[:, 0], R, b, last, backend=backend)[0]]
    return [t.detach() for t in results]

expected = everything()
torch.set_default_device("meta")
got = everything()
torch.set_default_device("cpu")
assert len(got) == len(expected) and all(a.is_cpu and torch.equal(a, b) for a, b in zip(got, expected))
print("same")
"""


def test_a_default_device_does_not_move_anything(backend):
    """In a process of its own: a kernel that is handed an address on another device crashes it."""
    if backend == "cuda":
        pytest.skip("tensors of this test are on the CPU; the default device of a GPU test is in test_gpu.py")
    run = subprocess.run([sys.executable, "-c", META, backend], capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout == "same\n", run.stderr


# ---- the checks themselves


@pytest.fixture
def call() -> Call:
    return Call(torch.device("cpu"), alignment=16)


def test_a_wrong_dtype_or_device_is_refused(call):
    for take in (call.address, call.view, call.elements):
        with pytest.raises(RuntimeError, match=r"got a tensor of torch\.float64 on cpu, expected torch\.float32 on cpu"):
            take(torch.zeros(2, 2, 4, dtype=torch.float64), torch.float32)
        with pytest.raises(RuntimeError, match=r"got a tensor of torch\.float32 on meta"):
            take(torch.zeros(2, 2, 4, device="meta"), torch.float32)


def test_operands_are_copied_only_where_they_must_be(call):
    x = torch.zeros(2, 3, 2, 8)
    assert call.address(x) == x.data_ptr() and call.view(x, x.dtype) == (x.data_ptr(), 48, 16, 8)
    assert call.view(x[:, 0], x.dtype) == (x.data_ptr(), 48, 0, 8)
    assert call.view(None, x.dtype) == (0, 0, 0, 0) and call.address(None) == 0 and call.result(None) == 0
    wide = torch.zeros(2, 3, 2, 9)[..., 1:]  # unit last stride, rows that begin anywhere
    address, *strides = call.view(wide, x.dtype)
    assert address % 16 == 0 and strides == [48, 16, 8]
    assert call.elements(wide[..., 0], x.dtype) == (wide.data_ptr(), 54, 18, 9)


def test_a_result_is_never_a_copy(call):
    for x in (torch.zeros(4, 4).t()[:, 1:], torch.zeros(9)[1:], torch.zeros(4, device="meta")):
        with pytest.raises(RuntimeError, match="expected contiguous memory"):
            call.result(x)


def test_copies_live_as_long_as_the_call(call):
    addresses = {call.address(torch.zeros(8, 8).t()[: 8 - k]) for k in range(1, 5)}
    assert len(addresses) == 4


def test_a_module_of_other_sources_is_found_at_the_call():
    launcher = xlstm_cuda.native._C.mlstm_step_cpu_float32
    tensors = dict.fromkeys(("q", "k", "v", "i", "f", "C", "n", "m", "h", "C_last", "n_last", "m_last"), 0)
    options = MLSTMOptions(scale=1.0, igate="exp", normalize=True, eps=0.0, backend="cpu")
    fields = dict(shape=(0, 1, 1), **tensors, options=options, threads=1)
    launcher(**fields)
    with pytest.raises(TypeError, match=r"mlstm_step_cpu_float32: missing field 'm_last'; .*reinstall"):
        launcher(**{name: value for name, value in fields.items() if name != "m_last"})
    with pytest.raises(TypeError, match=r"mlstm_step_cpu_float32: unknown field 'L'; .*reinstall"):
        launcher(**fields, L=1)
    with pytest.raises(TypeError, match=r"mlstm_step_cpu_float32: shape: got 1\.5, expected an int"):
        launcher(**{**fields, "shape": (1.5, 1, 1)})
    with pytest.raises(TypeError, match=r"mlstm_step_cpu_float32: shape: got \(0, 1\), expected a tuple of 3"):
        launcher(**{**fields, "shape": (0, 1)})
    with pytest.raises(TypeError, match="mlstm_step_cpu_float32: fields are keywords"):
        launcher((0, 1, 1), **fields)


def test_fields_are_found_by_name_in_any_order():
    """Also where the names are no strings of the source, as of a dict that was read from somewhere."""
    launcher = xlstm_cuda.native._C.conv_step_cpu_float32
    x, held, w, b = torch.randn(2, 3), torch.randn(2, 4, 3), torch.randn(3, 1, 4), torch.randn(3)
    expected, expected_window = conv_cpu.step(x, held, w, b)
    window, y = torch.empty(2, 4, 3), torch.empty(2, 3)
    tensors = dict(x=x, held=held, w=w, b=b, window=window, y=y)
    fields = dict(B=2, D=3, K=4, held_steps=4, **{name: t.data_ptr() for name, t in tensors.items()}, threads=1)
    for names in (list(fields), list(reversed(fields)), sorted(fields)):
        window.zero_()
        y.zero_()
        launcher(**{"".join([*name]): fields[name] for name in names})
        assert torch.equal(y, expected) and torch.equal(window, expected_window)


def test_enums_are_parsed_in_one_place(backend):
    if backend not in KERNELS:
        pytest.skip("the CPU backend's structs hold the forget gate alone")
    module = xlstm_cuda.native._C if backend == "cuda" else xlstm_cuda.simt.module()
    with pytest.raises(ValueError, match="dtype: got 'float63', expected one of 'float32', 'bfloat16', 'float16'"):
        module.mlstm_chunk_length("float63", 8, 8)
