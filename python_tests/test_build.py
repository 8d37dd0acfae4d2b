"""What the build promises: CUDA is optional and never a surprise, no libtorch, no dynamic CUDA library, no stale module."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from xlstm_cuda import native

ROOT = Path(__file__).parents[1]
CSRC = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".h", ".cpp", ".cu", ".cuh")]

needs_cmake = pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not on PATH")


def configure(folder: Path, **environment: str) -> subprocess.CompletedProcess:
    """Runs CMake's configuration alone, with a compiler named nvcc that does not work."""
    pybind11 = pytest.importorskip("pybind11", reason="pip install 'xlstm_cuda[test]'")
    switches = [f"-D{name}={value}" for name, value in environment.items() if name.startswith("XLSTM")]
    return subprocess.run(
        ["cmake", "-S", str(ROOT), "-B", str(folder), f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
         f"-DPython_EXECUTABLE={sys.executable}", *switches],
        capture_output=True, text=True, env={**os.environ, "CUDACXX": "/nonexistent/nvcc"},
    )  # fmt: skip


@needs_cmake
def test_cuda_on_without_nvcc_is_an_error(tmp_path):
    result = configure(tmp_path, XLSTM_CUDA="ON")
    assert result.returncode != 0
    assert "XLSTM_CUDA=ON, but no working nvcc was found" in result.stderr


@needs_cmake
@pytest.mark.parametrize("value,reason", [("AUTO", "no working nvcc found"), ("OFF", "XLSTM_CUDA=OFF")])
def test_cuda_auto_and_off_say_in_one_line_what_is_built(tmp_path, value, reason):
    result = configure(tmp_path, XLSTM_CUDA=value)
    assert result.returncode == 0, result.stderr
    (line,) = [line for line in (result.stdout + result.stderr).splitlines() if line.startswith("xlstm_cuda:")]
    assert "without CUDA kernels" in line and reason in line


@needs_cmake
@pytest.mark.parametrize("switch", ["XLSTM_CUDA", "XLSTM_SIMT"])
def test_an_unknown_switch_value_is_an_error(tmp_path, switch):
    result = configure(tmp_path, **{"XLSTM_CUDA": "OFF", switch: "PERHAPS"})
    assert result.returncode != 0 and f"{switch}: got 'PERHAPS'" in result.stderr


@pytest.mark.skipif(shutil.which("ldd") is None, reason="ldd is not on PATH")
def test_module_needs_no_cuda_and_no_torch_library():
    libraries = subprocess.run(["ldd", native._C.__file__], capture_output=True, text=True, check=True).stdout
    assert not re.search(r"libcuda|libcudart|libtorch|libc10", libraries), libraries


def test_sources_include_no_torch_header():
    found = [path for path in CSRC if re.search(r'#include\s*[<"](torch|ATen|c10)/', path.read_text())]
    assert not found


def test_sources_keep_assembly_and_compiler_switches_in_the_device_layer():
    """Kernels read the same for nvcc and for the executor: no asm, no launch syntax, no bare __shared__ outside csrc/device."""
    kernels = [path for path in CSRC if path.parent.name in ("mlstm", "slstm")]
    assert kernels
    for path in kernels:
        code = re.sub(r"//.*", "", path.read_text())
        for pattern in (r"\basm\b", r"<<<", r"\b__shared__\b", r"__CUDACC__"):
            assert not re.search(pattern, code), f"{path.relative_to(ROOT)}: {pattern}"


def test_checkout_finds_the_installed_module():
    """Running from the checkout imports its Python files and the compiled module of the installed package."""
    code = "import xlstm_cuda; print(xlstm_cuda.__file__); print(xlstm_cuda.native._C.__file__)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout.split()
    assert Path(output[0]).is_relative_to(ROOT) and Path(output[1]).exists()


def test_stale_module_is_refused():
    class Stale:
        __name__ = "xlstm_cuda._simt"
        fields = native._C.fields + 1

    with pytest.raises(ImportError, match=r"xlstm_cuda\._simt and xlstm_cuda\._C were built of different sources.*reinstall"):
        native._check_fields(Stale())
