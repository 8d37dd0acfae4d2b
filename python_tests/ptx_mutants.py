"""Seeded bugs in what nvcc makes of the kernels: the tests on its PTX must turn red for each; the host executor is blind to them.

The counter of the grid kernel is the exception: a schedule that starves a warp shows it in either way.

`python python_tests/ptx_mutants.py [--only TEXT]`, where nvcc is. A bug costs the time in which nvcc
compiles what includes its file, to PTX of one target.
"""

from __future__ import annotations

from planted_bugs import Bug, plant

MATRIX, KERNEL, ORDER, STATE, GRID = (
    "csrc/device/matrix.cuh",
    "csrc/device/kernel.cuh",
    "csrc/device/memory_order.cuh",
    "csrc/mlstm/walk/state.cuh",
    "csrc/slstm/grid/exchange.cuh",
)
LOOP = """#pragma unroll
      for (int i = 0; i < OUTPUT_TILES; ++i) {
        const float v = s[i / 2][2 * (i & 1)];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int column = device::c_coordinate(place.fragment, e).column;  // of O; a row of S^T
          s_of_column[i][e] = __shfl_sync(device::kAllLanes, v, device::c_lane(column, 0));
          if (place.contracted_warp) s_of_column[i][e] = 0.0f;  // counted once
        }
      }
"""
ONE_COUNTER = "grid backward: one counter for both buffers"
COUNTER = """return counters + owner * kCounterPitch{buffer}; }}
  XLSTM_DEVICE uint32_t complete(int e) const {{ return {exchanges} * pieces; }}"""
MUTANTS: dict[str, Bug] = {
    "walk: no braces around a pragma, a loop is lost": (
        STATE,
        f"    if constexpr (DELTA) {{\n{LOOP}    }}\n",
        f"    if constexpr (DELTA)\n{LOOP}",
    ),
    "mma: accumulators are results only": (
        MATRIX,
        """bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0])""",
        """bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "=f"(d[0])""",
    ),
    "ldmatrix: two registers exchanged in the asm string": (
        MATRIX,
        "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];",
        "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%2,%1,%3}, [%4];",
    ),
    "warp_id: wrong branch for nvcc": (
        KERNEL,
        "return __shfl_sync(kAllLanes, threadIdx.x / 32, 0);",
        "return __shfl_sync(kAllLanes, threadIdx.x / 16, 0);",
    ),
    "ld.acquire: no clobber, so that the compiler may read the flag once": (
        ORDER,
        """asm volatile("ld.acquire.gpu.global.b32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");""",
        """asm("ld.acquire.gpu.global.b32 %0, [%1];" : "=r"(value) : "l"(flag));""",
    ),
    ONE_COUNTER: (
        GRID,
        COUNTER.format(buffer=" + e % 2", exchanges="uint32_t(e + 1) / 2"),
        COUNTER.format(buffer="", exchanges="uint32_t(e)"),
    ),
}
WRAPPERS = "primitives and (ldmatrix or mma_registers or lane_and_warp_id or flags_release)"
KERNELS = "(options_match_reference_in_16_bits and detached) or (grid and 40_random)"
FILES = ["python_tests/test_simt_primitives.py", "python_tests/test_mlstm_kernels.py", "python_tests/test_slstm_split_kernels.py"]
TESTS = [*FILES, "-k", f"({WRAPPERS}) or ({KERNELS})"]


if __name__ == "__main__":
    switches = ["-DXLSTM_PTX=ON", "-DXLSTM_PTX_ARCHITECTURES=90a"]
    raise SystemExit(plant(__doc__, MUTANTS, ["--ptx=90a", *TESTS], "_ptx", switches, TESTS, [ONE_COUNTER]))
