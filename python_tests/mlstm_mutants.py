"""Seeded bugs in the chunkwise mLSTM; the suite must turn red for each: `python python_tests/mlstm_mutants.py [--only TEXT]`."""

from __future__ import annotations

from planted_bugs import Bug, plant, scaled, table

KERNELS = "xlstm_cuda/ops/mlstm_kernels.py"
RETURN = "    return MLSTMGradients(dq, dk, dv, di, df, unpadded(dinitial[0], DHQK, DHHV), unpadded(dinitial[1], DHQK), dm0)\n"
RESULTS = {name: name for name in ("dq", "dk", "dv", "di", "df", "dm0")}
MUTANTS: dict[str, Bug] = scaled(KERNELS, RETURN, RESULTS) | table("mlstm")
TESTS = [
    "python_tests/test_mlstm_kernels.py",
    "python_tests/test_mlstm.py",
    "-k",
    "(simt and ((any_length and (65 or 129)) or (gate_edges and (every or one)) or split_at or (nan_touches and 16-nan-v)"
    " or of_nothing or detached or cu_seqlens or edges_match_reference_in_bfloat16 or keeps_its_state)) or any_schedule",
]


if __name__ == "__main__":
    raise SystemExit(plant(__doc__, MUTANTS, TESTS))
