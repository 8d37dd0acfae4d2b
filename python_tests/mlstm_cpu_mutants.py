"""Seeded bugs in the mLSTM of the CPU backend; its tests must turn red for each: `python python_tests/mlstm_cpu_mutants.py`."""

from __future__ import annotations

from planted_bugs import Bug, plant

OPS = "xlstm_cuda/ops/mlstm_cpu.py"
FORWARD, BACKWARD, GATES, STATE = (f"csrc/cpu/mlstm_{part}" for part in ("forward.cpp", "backward.cpp", "gates.h", "state.h"))
RESULT = "    return MLSTMGradients(dq, dk, dv, di.to(i.dtype), df.to(f.dtype), dC0, dn0, dm0)\n"


def scaled(name: str) -> Bug:
    return OPS, RESULT, f"    {name} = {name} * 0.98\n{RESULT}"


MUTANTS: dict[str, Bug] = {
    **{f"{name} x 0.98": scaled(name) for name in ("dq", "dk", "dv", "di", "df", "dC0", "dn0", "dm0")},
    "normaliser gradient dropped": (BACKWARD, "if (p_.exact && p_.normalize) {", "if (false) {"),
    "normaliser gradient of the wrong sign": (BACKWARD, "-r_[t] * (dot_[t] > 0", "r_[t] * (dot_[t] > 0"),
    "df without the state's gradient": (BACKWARD, "written_[t] = kept;", "written_[t] = kept = 0;"),
    "state read through a reset": (GATES, "t < steps; ++t) u[t] = 0;", "t < steps; ++t) u[t] = 1;"),
    "dC without decay": (BACKWARD, "carried = gates_.g * load(after_.C + at);", "carried = load(after_.C + at);"),
    "dk without w": (BACKWARD, "y = (y + load(after_.n + at)) * gates_.w[j + row];", "y = y + load(after_.n + at);"),
    "the future is seen": (GATES, "return lane >= Integer(j - t) && lane", "return lane >= Integer(j - t - 1) && lane"),
    "reset seen through": (GATES, "if (log_f[t] == never) until = t;", ""),
    "low parts of the exponents dropped": (GATES, "low[t] = static_cast<Real>(y - high[t]);", "low[t] = 0;"),
    "state read without u": (FORWARD, "tile.scale_rows(gates_.u + t);", ""),
    "q.n without u": (FORWARD, "dot_[t] *= gates_.u[t];", "dot_[t] *= 1;"),
    "an unsound step is used": (FORWARD, "if (steps_ < head_.steps_of(chunk)) sound =", "if (false) sound ="),
    "no exp(min(m, 0)) in the denominator": (GATES, "shrink = negative ? e : Real(1)", "shrink = Real(1)"),
    "tiny denominators are inverted": (GATES, "denominator < std::numeric_limits<Real>::min()", "denominator < 0"),
}  # fmt: skip


TESTS = ["python_tests/test_mlstm_cpu.py", "python_tests/test_mlstm_limits.py", "-k", "not simt and not cuda"]

if __name__ == "__main__":
    raise SystemExit(plant(__doc__, MUTANTS, TESTS, "_C"))
