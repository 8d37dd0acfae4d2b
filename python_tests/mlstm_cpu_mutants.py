"""Seeded bugs in the CPU backend; its tests must turn red for each: `python python_tests/mlstm_cpu_mutants.py`.

In the mLSTM over sequences, and in what stands around the recurrences: layers, the step of a block, the convolution.
"""

from __future__ import annotations

from planted_bugs import Bug, plant, scaled, table

OPS = "xlstm_cuda/ops/mlstm_cpu.py"
RESULT = "    return MLSTMGradients(dq, dk, dv, di, df, dC0, dn0, dm0)\n"
RESULTS = ("dq", "dk", "dv", "di", "df", "dC0", "dn0", "dm0")
MUTANTS: dict[str, Bug] = scaled(OPS, RESULT, {name: name for name in RESULTS}) | table("mlstm_cpu") | table("cpu_layers")
QUICK, SLOW = ("conv_cpu", "block_step_cpu", "mlstm_layer_cpu", "mlstm_cpu"), ("slstm_layer_cpu", "mlstm_limits", "threads_cpu")
TESTS = [*(f"python_tests/test_{name}.py" for name in QUICK + SLOW), "-k", "not simt and not cuda"]

if __name__ == "__main__":
    raise SystemExit(plant(__doc__, MUTANTS, TESTS, "_C"))
