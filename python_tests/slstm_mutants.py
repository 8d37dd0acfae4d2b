"""Seeded bugs in the sLSTM kernels; the suite must turn red for each: `python python_tests/slstm_mutants.py [--only TEXT]`."""

from __future__ import annotations

from planted_bugs import Bug, plant, scaled, table

KERNELS = "xlstm_cuda/ops/slstm_kernels.py"
RETURN = "    return sig.SLSTMGradients(dx, dR, db, *(unpadded(s, call.real_DH) for s in first))\n"
RESULTS = {"dx": "dx", "dR": "dR", "db": "db", "dh0": "first[0]", "dc0": "first[1]", "dn0": "first[2]", "dm0": "first[3]"}
MUTANTS: dict[str, Bug] = scaled(KERNELS, RETURN, RESULTS) | table("slstm")
TESTS = [
    "python_tests/test_slstm_kernels.py",
    "python_tests/test_slstm_step_kernel.py",
    "-k",
    "simt and not data_race and not reads_R_once or any_schedule",
]


if __name__ == "__main__":
    raise SystemExit(plant(__doc__, MUTANTS, TESTS))
