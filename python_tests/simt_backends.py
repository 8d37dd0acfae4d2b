"""Where the test kernels of csrc/simt/selftest run: under the host executor, and on a GPU when there is one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from xlstm_cuda import native, simt

BACKENDS = ("simt", "cuda")


def skip_unless_usable(backend: str) -> None:
    if backend == "simt":
        try:
            native.simt()
        except ImportError as error:
            pytest.skip(str(error))
        return
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if not hasattr(native._C, "run_primitive"):
        pytest.skip("_C was built without the test kernels; reinstall with XLSTM_SELFTEST=ON")


def skip_unless_traced() -> None:
    """For tests that profile or look for races: needs backend simt and its instrumented module."""
    for variant in ("", "_trace"):
        try:
            native.simt(variant)
        except ImportError as error:
            pytest.skip(str(error))


def has_sm90(backend: str) -> bool:
    return simt.current().sm >= 90 if backend == "simt" else torch.cuda.get_device_capability() >= (9, 0)


def run_primitive(backend: str, name: str, words: Any, out_words: int, n: int = 0, fill: int = 0xFFFFFFFF) -> np.ndarray:
    """Runs a test kernel on 32-bit words (float32 arrays bit by bit); returns ``out_words`` words, ``fill`` where unwritten."""
    words = np.ascontiguousarray(words)
    source = torch.from_numpy(words.view(np.int32).reshape(-1)).clone()  # PyTorch's memory, whose bounds are known
    out = torch.from_numpy(np.full(out_words, fill, np.uint32).view(np.int32)).clone()
    if backend == "cuda":
        source, out = source.cuda(), out.cuda()
        stream = torch.cuda.current_stream().cuda_stream
        native._C.run_primitive(name=name, input=source.data_ptr(), output=out.data_ptr(), n=n, stream=stream)
        torch.cuda.synchronize()
    else:
        simt.module().run_primitive(name=name, input=source.data_ptr(), output=out.data_ptr(), n=n, stream=0)
    return out.cpu().numpy().view(np.uint32)


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    """float32 -> uint16, rounded to nearest even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def to_float16(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x, np.float32).astype(np.float16).view(np.uint16)
