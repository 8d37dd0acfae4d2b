"""Seeded bugs in the exchanges of the sLSTM's cluster and grid kernels.

`python python_tests/slstm_split_mutants.py [--only TEXT]`, with the executor's traced module: a missing release, acquire or
barrier changes no value there, it is a race. Not here, because the executor orders more than PTX promises: the warp barrier
between a cell warp's shuffles and its arrival.
"""

from __future__ import annotations

import os

from planted_bugs import Bug, plant, table

MUTANTS: dict[str, Bug] = table("slstm_split")
TESTS = [
    "python_tests/test_slstm_split_kernels.py",
    "-k",
    "test_split_kernels_have_no_data_race or (resets_and_cu_seqlens and simt and bfloat16)"
    " or (40_random_schedules and grid and bfloat16)",
]


if __name__ == "__main__":
    os.environ["XLSTM_SIMT_RACES"] = "1"
    raise SystemExit(plant(__doc__, MUTANTS, TESTS, module="_simt_trace"))
