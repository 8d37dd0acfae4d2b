"""The decoding step elsewhere: in ONNX Runtime, and compiled ahead of time by AOTInductor (docs/export.md)."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from xlstm_cuda import (
    mLSTMBlockConfig,
    mLSTMLayerConfig,
    sLSTMBlockConfig,
    sLSTMLayerConfig,
    xLSTMLarge,
    xLSTMLargeConfig,
    xLSTMLMModel,
    xLSTMLMModelConfig,
)

V = 20
KINDS = ("lm", "large")


class Step(nn.Module):
    """model.step as a program; backend "reference" is plain PyTorch, None keeps this package's operators."""

    def __init__(self, model: nn.Module, backend: str | None):
        super().__init__()
        self.model, self.backend = model, backend

    def forward(self, tokens: torch.Tensor, state):
        return self.model.step(tokens, state, backend=self.backend)


def make(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "large":
        return xLSTMLarge(xLSTMLargeConfig(embedding_dim=16, num_heads=2, num_blocks=1, vocab_size=V)).eval()
    cells = dict(
        mlstm_block=mLSTMBlockConfig(mLSTMLayerConfig(num_heads=2)), slstm_block=sLSTMBlockConfig(sLSTMLayerConfig(num_heads=2))
    )  # fmt: skip
    return xLSTMLMModel(xLSTMLMModelConfig(num_blocks=2, slstm_at=[1], embedding_dim=16, vocab_size=V, **cells)).eval()


def read(model: nn.Module, B: int):
    """A token (B, 1), and the state after some others."""
    with torch.no_grad():
        return torch.randint(0, V, (B, 1)), model(torch.randint(0, V, (B, 7)), None, True)[1]


def exported(kind: str, backend: str | None) -> tuple[nn.Module, torch.export.ExportedProgram]:
    """The model, and its step for any number of rows."""
    model = make(kind)
    tokens, state = read(model, 3)
    B = torch.export.Dim("B", min=1, max=1024)
    rows = tree_map(lambda part: {part.dim() - 2 if _is_slstm(part) else 0: B}, state)
    with torch.no_grad():
        return model, torch.export.export(Step(model, backend).eval(), (tokens, state), dynamic_shapes=({0: B}, rows))


def _is_slstm(part: torch.Tensor) -> bool:
    """Of the official sLSTM state (4, B, D), whose rows are on the second axis."""
    return part.dim() == 3 and part.shape[0] == 4


@torch.no_grad()
def agrees(model: nn.Module, step) -> None:
    """Three steps of ``step(tokens, state)``, each from its own state, for two numbers of rows."""
    for B in (1, 5):
        tokens, state = read(model, B)
        expected_state = state
        for _ in range(3):
            expected, expected_state = model.step(tokens, expected_state)
            logits, state = step(tokens, state)
            for got, true in zip(tree_leaves((logits, state)), tree_leaves((expected, expected_state)), strict=True):
                torch.testing.assert_close(got, true, atol=1e-5, rtol=1e-4)
            tokens = expected[:, -1:].argmax(-1)


# ---------------------------------------------------------------- ONNX


@pytest.fixture
def onnxruntime():
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name, reason="pip install 'xlstm_cuda[peers]'")
    return pytest.importorskip("onnxruntime", reason="pip install 'xlstm_cuda[peers]'")


@pytest.mark.parametrize("kind", KINDS)
def test_the_step_runs_in_onnx_runtime(kind, onnxruntime):
    model, program = exported(kind, "reference")
    converted = torch.onnx.export(program, dynamo=True, verbose=False)
    nodes = converted.model_proto.graph.node
    assert len(nodes) < 400 and {node.domain for node in nodes} <= {"", "pkg.onnxscript.torch_lib.common"}
    session = onnxruntime.InferenceSession(converted.model_proto.SerializeToString())
    names = [one.name for one in session.get_inputs()]

    def step(tokens, state):
        leaves = tree_leaves((tokens, state))
        results = session.run(None, {name: x.numpy() for name, x in zip(names, leaves, strict=True)})
        logits, *parts = map(torch.from_numpy, results)
        parts = iter(parts)
        return logits, tree_map(lambda _: next(parts), state)

    agrees(model, step)


def test_a_step_with_our_operators_is_refused_by_name(onnxruntime):
    _, program = exported("large", None)
    with pytest.raises(torch.onnx.OnnxExporterError, match=r"xlstm_cuda[.:]+mlstm_forward"):
        torch.onnx.export(program, dynamo=True, verbose=False)


# ---------------------------------------------------------------- AOTInductor

ALONE = """
import sys, torch
step = torch._inductor.aoti_load_package(sys.argv[1])
assert "xlstm_cuda" not in sys.modules
tokens, state, expected = torch.load(sys.argv[2], weights_only=True)
torch.testing.assert_close(step(tokens, state)[0], expected, atol=1e-5, rtol=1e-4)
"""


def compiled(program: torch.export.ExportedProgram, path: str) -> str:
    fast = {"aot_inductor.compile_wrapper_opt_level": "O0"}  # the compiler takes most of this test
    with torch.no_grad():
        return torch._inductor.aoti_compile_and_package(program, package_path=path, inductor_configs=fast)


def alone(package: str, model: nn.Module, folder) -> subprocess.CompletedProcess:
    """Runs the package in a process that does not know of xlstm_cuda."""
    with torch.no_grad():
        tokens, state = read(model, 5)
        torch.save((tokens, state, model.step(tokens, state)[0]), folder / "example.pt")
    command = [sys.executable, "-c", ALONE, package, str(folder / "example.pt")]
    return subprocess.run(command, cwd=folder, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, timeout=300)


def aoti(kind: str, backend: str | None, folder) -> None:
    model, program = exported(kind, backend)
    package = compiled(program, str(folder / "step.pt2"))
    agrees(model, torch._inductor.aoti_load_package(package))
    ended = alone(package, model, folder)
    if backend == "reference":
        assert ended.returncode == 0, ended.stderr[-2000:]
    else:
        assert ended.returncode != 0 and "Could not find schema for xlstm_cuda::" in ended.stderr, ended.stderr[-2000:]


def test_the_step_is_compiled_ahead_of_time_and_runs_without_the_package(tmp_path):
    aoti("large", "reference", tmp_path)


@pytest.mark.deep
@pytest.mark.parametrize(("kind", "backend"), [("lm", "reference"), ("lm", None), ("large", None)])
def test_every_step_is_compiled_ahead_of_time(kind, backend, tmp_path):
    """With our operators the package must be imported before; torch names the missing operator."""
    aoti(kind, backend, tmp_path)
