"""The checks of `make wheel` see what must not be released; the build itself is too slow for a test."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import shutil
import zipfile
from pathlib import Path

import pytest

from xlstm_cuda import native

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("release_wheel", ROOT / ".ci" / "release_wheel.py")
assert spec is not None and spec.loader is not None
release_wheel = importlib.util.module_from_spec(spec)
spec.loader.exec_module(release_wheel)

METADATA = """Metadata-Version: 2.1
Name: xlstm_cuda
Requires-Dist: torch>=2.5
Requires-Dist: numpy>=1.24
Requires-Python: >=3.10
License-Expression: Apache-2.0
"""


def write_wheel(folder: Path, change=None) -> Path:
    """A wheel with the right names; ``change`` edits its files {name: content}, then their RECORD is written."""
    files = {path.relative_to(ROOT).as_posix(): b"" for path in (ROOT / "xlstm_cuda").rglob("*.py")}
    files |= {"xlstm_cuda/py.typed": b"", "xlstm_cuda/_C.cpython-311-x86_64-linux-gnu.so": b"module"}
    files |= {f"xlstm_cuda-0.1.0.dist-info/licenses/{name}": b"" for name in ("LICENSE", "NOTICE")}
    files["xlstm_cuda-0.1.0.dist-info/METADATA"] = METADATA.encode()
    if change is not None:
        change(files)
    record = "xlstm_cuda-0.1.0.dist-info/RECORD"
    lines = []
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(content)}")
    wheel = folder / "xlstm_cuda-0.1.0-cp311-cp311-linux_x86_64.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, b"changed" if content == b"tampered" else content)
        archive.writestr(record, "\n".join([*lines, f"{record},,"]))
    return wheel


def test_a_good_wheel_passes(tmp_path):
    assert release_wheel.archive_errors(write_wheel(tmp_path)) == []


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda files: files.update({"xlstm_cuda/_simt.so": b""}), "foreign files: xlstm_cuda/_simt.so"),
        (lambda files: files.update({"csrc/mlstm/walk.cu": b""}), "foreign files: csrc/mlstm/walk.cu"),
        (lambda files: files.update({"python_tests/test_blocks.py": b""}), "foreign files: python_tests"),
        (lambda files: files.pop("xlstm_cuda/functional.py"), "missing files: xlstm_cuda/functional.py"),
        (lambda files: files.pop("xlstm_cuda/_C.cpython-311-x86_64-linux-gnu.so"), "compiled modules: got []"),
        (lambda files: files.update({"xlstm_cuda/states.py": b"tampered"}), "RECORD: hash or size of xlstm_cuda/states.py"),
        (lambda files: files.update({"xlstm_cuda-0.1.0.dist-info/METADATA": b"Name: other"}), "METADATA: got no"),
        (lambda files: files.pop("xlstm_cuda-0.1.0.dist-info/licenses/NOTICE"), "missing licence file: NOTICE"),
    ],
    ids=["executor", "source", "test", "missing", "no module", "tampered", "metadata", "licence"],
)
def test_a_wheel_that_is_not_fit_is_refused(tmp_path, change, message):
    assert any(message in error for error in release_wheel.archive_errors(write_wheel(tmp_path, change)))


def test_a_wheel_that_is_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(release_wheel, "MAX_BYTES", 1000)
    assert any("expected at most" in error for error in release_wheel.archive_errors(write_wheel(tmp_path)))


def test_a_wheel_that_promises_every_linux_is_refused():
    (error,) = release_wheel.tag_errors(Path("xlstm_cuda-0.1.0-cp311-cp311-linux_x86_64.whl"))
    assert "got platform tag linux_x86_64, expected manylinux_*" in error
    assert release_wheel.tag_errors(Path("xlstm_cuda-0.1.0-cp311-cp311-manylinux_2_34_x86_64.whl")) == []


@pytest.mark.parametrize(
    "version,driver",
    [
        ((12, 4), "driver 525.60 or newer (570 for compute capability 10 and newer); built with the static runtime of CUDA 12.4"),
        ((13, 0), "driver 580 or newer; built with the static runtime of CUDA 13.0"),
        ((14, 1), "driver of CUDA 14 or newer"),
    ],
)
def test_the_driver_that_a_wheel_needs_is_said(version, driver):
    assert driver in release_wheel.driver_needed(version)


LISTING = """ELF file    1: step.1.sm_80.cubin
ELF file    2: step.2.sm_90a.cubin
ELF file    3: step.3.sm_100.cubin
ELF file    4: dots.1.sm_80.cubin
PTX file    1: step.1.sm_90.ptx
"""


@pytest.mark.parametrize("named", ["80-real;90a-real;100f-real;90-virtual", "90-virtual;80-real;100-real;90a-real"])
def test_a_module_with_the_code_that_it_names_passes(named):
    assert release_wheel.code_errors(LISTING, named) == []


@pytest.mark.parametrize(
    "named", ["80-real;90a-real;100f-real", "80-real;90a-real;100f-real;90-virtual;86-real", "80;90a-real", ""]
)
def test_a_module_with_other_code_than_it_names_is_refused(named):
    (error,) = release_wheel.code_errors(LISTING, named)
    assert error.startswith("GPU code: got 100-real, 80-real, 90-virtual, 90a-real, expected ")


def test_a_target_without_a_kind_is_machine_code_and_ptx():
    assert release_wheel.code_errors("1: a.sm_80.cubin\n1: a.sm_80.ptx\n", "80") == []
    assert "got none" in release_wheel.code_errors("No PTX file found", "80")[0]


def test_a_wheel_without_nvcc_is_an_error_in_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDACXX", "/nonexistent/nvcc")
    with pytest.raises(SystemExit, match=r"^make wheel: no working nvcc was found: /nonexistent/nvcc"):
        release_wheel.build(tmp_path)


@pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf is not on PATH")
def test_the_installed_module_is_tied_to_no_machine(capsys):
    assert release_wheel.module_errors(Path(native._C.__file__)) == []
    assert "newest symbol versions" in capsys.readouterr().out
