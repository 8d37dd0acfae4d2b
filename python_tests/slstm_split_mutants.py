"""Seeded bugs in the exchanges of the sLSTM's cluster and grid kernels.

`python python_tests/slstm_split_mutants.py [--only TEXT]`, with the executor's traced module: a missing release, acquire or
barrier changes no value there, it is a race. Not here, because the executor orders more than PTX promises: the warp barrier
between a cell warp's shuffles and its arrival.
"""

from __future__ import annotations

import os

from planted_bugs import Bug, plant

COUNTERS, GRID, CLUSTER, FORWARD, BACKWARD = (
    "csrc/slstm/grid/counters.cuh",
    "csrc/slstm/grid/exchange.cuh",
    "csrc/slstm/cluster/exchange.cuh",
    "csrc/slstm/split/forward.cuh",
    "csrc/slstm/split/backward.cuh",
)
MUTANTS: dict[str, Bug] = {
    "grid: acquire removed": (
        COUNTERS,
        "device::load_acquire(counter XLSTM_FORWARD_SITE)",
        "device::load_relaxed(counter XLSTM_FORWARD_SITE)",
    ),
    "grid forward: release removed": (
        GRID,
        "device::add_release(counters + place.rank * kCounterPitch, 1);",
        "atomicAdd(counters + place.rank * kCounterPitch, 1u);",
    ),
    "grid forward: warp barrier before the release removed": (
        GRID,
        "    __syncwarp();\n    if (device::lane_id() == 0) device::add_release",
        "    if (device::lane_id() == 0) device::add_release",
    ),
    "grid forward: warp barrier after the acquire removed": (
        GRID,
        "    __syncwarp();\n    const auto* h =",
        "    const auto* h =",
    ),
    "grid forward: own counter not waited for": (GRID, "lane <= Product::STEPS * OWNERS", "lane < Product::STEPS * OWNERS"),
    "grid forward: one step too early": (GRID, "uint32_t(e) * CELL_WARPS", "uint32_t(e - 1) * CELL_WARPS"),
    "grid backward: release removed": (
        GRID,
        "device::add_release(counter(product.target(lane) / PIECES, e), 1);",
        "atomicAdd(counter(product.target(lane) / PIECES, e), 1u);",
    ),
    "grid backward: warp barrier before the release removed": (
        GRID,
        "    __syncwarp();\n    const int lane = int(device::lane_id());\n    if (lane < Product::SENT",
        "    const int lane = int(device::lane_id());\n    if (lane < Product::SENT",
    ),
    "grid backward: warp barrier after the acquire removed": (
        GRID,
        "    __syncwarp();\n    const float* from",
        "    const float* from",
    ),
    "grid backward: one buffer": (GRID, "((e % 2 * place.blocks + owner)", "(owner"),
    "grid backward: one counter for both buffers": (
        GRID,
        "owner * kCounterPitch + e % 2; }\n"
        "  XLSTM_DEVICE uint32_t complete(int e) const { return uint32_t(e + 1) / 2 * pieces; }",
        "owner * kCounterPitch; }\n  XLSTM_DEVICE uint32_t complete(int e) const { return uint32_t(e) * pieces; }",
    ),
    "grid backward: one step too early": (GRID, "uint32_t(e + 1) / 2 * pieces", "uint32_t(e - 1) / 2 * pieces"),
    "cluster forward: wait removed": (CLUSTER, "    barriers.wait(e);\n    const uint4* from", "    const uint4* from"),
    "cluster backward: wait removed": (CLUSTER, "    barriers.wait(e);\n    const float* from", "    const float* from"),
    "cluster: acquire at block scope": (CLUSTER, "device::mbarrier_wait_cluster(", "device::mbarrier_wait("),
    "cluster: wrong parity": (CLUSTER, "unsigned(e - 1) / 2 % 2", "unsigned(e) / 2 % 2"),
    "cluster: arrivals at the own block only": (
        CLUSTER,
        "      device::mbarrier_remote_arrive(&full[e % 2], unsigned(to));",
        "      device::mbarrier_arrive(&full[e % 2]);",
    ),
    "cluster forward: wrong buffer": (
        CLUSTER,
        "packets + e % 2 * pitch + product.lane",
        "packets + (e + 1) % 2 * pitch + product.lane",
    ),
    "cluster backward: one buffer": (CLUSTER, "(e % 2 * barriers.blocks + sender)", "sender"),
    "cluster forward: arrivals of cell warps removed": (
        CLUSTER,
        "    if (lane == 0) device::mbarrier_arrive(&barriers.full[e % 2]);\n",
        "",
    ),
    "cluster backward: too few bytes expected": (CLUSTER, "* 128 * int(sizeof(float)));", "* 64 * int(sizeof(float)));"),
    "forward: block barrier removed": (FORWARD, "    __syncthreads();\n", ""),
    "forward: reset not seen by the product": (FORWARD, "    if (reset) {", "    if (false) {"),
    "backward: block barrier removed": (BACKWARD, "    __syncthreads();\n", ""),
    "backward: one buffer of dg": (BACKWARD, "which = done % 2;", "which = 0;"),
    "backward: dh through a reset": (BACKWARD, "    cut = reset;\n", "    cut = false;\n"),
}
TESTS = [
    "python_tests/test_slstm_split_kernels.py",
    "-k",
    "test_split_kernels_have_no_data_race or (resets_and_cu_seqlens and simt and bfloat16)"
    " or (40_random_schedules and grid and bfloat16)",
]


if __name__ == "__main__":
    os.environ["XLSTM_SIMT_RACES"] = "1"
    raise SystemExit(plant(__doc__, MUTANTS, TESTS, module="_simt_trace"))
