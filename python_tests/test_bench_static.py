"""The committed table of kernels holds its thresholds and is of these sources."""

from __future__ import annotations

import pytest

pytest.importorskip("bench.static.tables", reason="bench/ is only in a checkout")

from bench.static import compiler, sources, tables

committed = pytest.mark.skipif(not tables.FOLDER.exists(), reason="bench/results is only in a checkout")


@committed
def test_static_table_holds_its_thresholds():
    assert tables.violations(tables.load()) == []


@committed
def test_static_table_is_of_these_sources():
    found = tables.stale(tables.load())
    assert not found, f"refresh with {tables.REFRESH}: " + "; ".join(found)


@committed
def test_static_page_is_what_the_table_says():
    assert (tables.FOLDER / tables.PAGE).read_text() == tables.markdown(tables.load()), f"refresh with {tables.REFRESH}"


def test_key_follows_the_headers_of_a_kernel_file(monkeypatch, tmp_path):
    csrc = tmp_path / "csrc"
    csrc.mkdir()
    (csrc / "a.cu").write_text('#include "b.cuh"\n')
    (csrc / "b.cuh").write_text("one\n")
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    monkeypatch.setattr(sources, "CSRC", csrc)
    before = sources.key("csrc/a.cu")
    (csrc / "b.cuh").write_text("two\n")
    assert sources.key("csrc/a.cu") != before


def test_key_does_not_follow_comments_and_line_breaks():
    code = '#pragma once  // why\n#define TWO \\\n  2\nint a;  /* of\nmany */ int\n  b = f("no // comment", \'"\');\n'
    same = '// a.cuh - what\n#pragma once\n#define TWO \\\n  2\n\nint a; int b = f("no // comment", \'"\');  // more\n'
    assert sources.code(code) == sources.code(same)
    assert sources.code(code) != sources.code(code.replace("no // comment", "no"))
    assert sources.code(code) != sources.code(code.replace("int a;", "int c;"))


def test_thresholds_see_spills_missing_tensor_cores_shared_memory_and_bytes():
    kernel = {"name": "mlstm::walk_kernel<__nv_bfloat16, 64>", "registers": 40, "spill_bytes": 8, "hmma": 0, "hgmma": 0}
    launch = {"case": "c", "kernel": "mlstm_walk_h", "shared_bytes": 200_000, "bytes_over_least": 1.5}
    units = {"walk.cu|90a": {"problems": ["warning"], "kernels": [kernel]}}
    found = tables.violations({"units": units, "executor": {"launches": [launch]}})
    assert [word in text for word, text in zip(("warning", "spilled", "tensor-core", "shared", "least"), found)] == [True] * 5


def test_compiler_output_is_parsed():
    text = (
        "ptxas info    : Compiling entry function '_Z1kPf' for 'sm_90a'\nptxas info    : Function properties for _Z1kPf\n"
        "    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads\n"
        "ptxas info    : Used 40 registers, used 1 barriers, 1024 bytes smem\n"
    )
    (kernel,) = compiler.parse(text)
    assert (kernel.registers, kernel.stack, kernel.spill_bytes, kernel.shared) == (40, 8, 16, 1024)


def test_seconds_are_cpu_seconds_of_the_compiler(tmp_path):
    """Waiting, as on a busy machine, does not count; the compiler's own programs do."""
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\nsleep 1\necho warning: seen\nsh -c 'i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done'\nexit 3\n")
    nvcc.chmod(0o755)
    unit = compiler.compile_one(str(nvcc), None, "csrc/mlstm/dots.cu", "90a", tmp_path)
    assert unit["problems"] == ["warning: seen"]
    assert 0 < unit["seconds"] < 1
