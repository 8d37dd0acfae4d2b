"""Run by release_wheel.py with the fresh environment's Python: the installed package computes without any compiler in reach."""

import shutil
import sys
from pathlib import Path

import torch

import xlstm_cuda
from xlstm_cuda import functional

environment = Path(sys.argv[1]).resolve()
assert Path(xlstm_cuda.__file__).resolve().is_relative_to(environment), xlstm_cuda.__file__
for tool in ("nvcc", "gcc", "g++", "cc", "c++", "clang", "cmake", "ninja"):
    assert shutil.which(tool) is None, f"{tool} is on PATH"
assert xlstm_cuda.native._C.cuda_architectures, "the wheel has no CUDA kernels"
assert not hasattr(xlstm_cuda.native._C, "run_primitive"), "the wheel has test kernels"
assert not xlstm_cuda.backends()["simt"], "the wheel has the host executor"
print(f"CUDA architectures {xlstm_cuda.native._C.cuda_architectures}")

torch.manual_seed(0)
q, k, v = (torch.randn(2, 70, 2, 16, requires_grad=True) for _ in "qkv")
i, f = (torch.randn(2, 70, 2, requires_grad=True) for _ in "if")
x, R, b = (torch.randn(*shape, requires_grad=True) for shape in ((2, 9, 4, 2, 8), (4, 2, 8, 8), (4, 2, 8)))
runs = {
    "functional.mlstm": (lambda backend: functional.mlstm(q, k, v, i, f, backend=backend), (q, k, v, i, f)),
    "functional.slstm": (lambda backend: functional.slstm(x, R, b, backend=backend), (x, R, b)),
}
for name, (run, leaves) in runs.items():
    results = [(h := run(backend), *torch.autograd.grad(h.square().sum(), leaves)) for backend in ("cpu", "reference")]
    for got, expected in zip(*results):
        torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-3)
    print(f"{name}: backend cpu equals the reference")

for layer in (xlstm_cuda.sLSTM(8, 16, 2, batch_first=True), xlstm_cuda.mLSTM(8, 16, 2, batch_first=True)):
    output, state = layer(torch.randn(2, 11, 8))
    token, _ = layer.step(torch.randn(2, 8), state)
    (output.sum() + token.sum()).backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())
    print(f"{type(layer).__name__}: forward, backward, step")

config = xlstm_cuda.xLSTMLMModelConfig(
    vocab_size=50,
    num_blocks=2,
    embedding_dim=32,
    slstm_at=[1],
    mlstm_block=xlstm_cuda.mLSTMBlockConfig(),
    slstm_block=xlstm_cuda.sLSTMBlockConfig(),
)
large = xlstm_cuda.xLSTMLarge(xlstm_cuda.xLSTMLargeConfig(embedding_dim=32, num_heads=2, num_blocks=1, vocab_size=50))
for model in (xlstm_cuda.xLSTMLMModel(config), large):
    model(torch.randint(50, (2, 70))).square().mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    print(f"{type(model).__name__}: forward, backward")
