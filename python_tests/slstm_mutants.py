"""Seeded bugs in the sLSTM kernels; the suite must turn red for each: `python python_tests/slstm_mutants.py [--only TEXT]`."""

from __future__ import annotations

from planted_bugs import Bug, plant

KERNELS, OPS, FORWARD, BACKWARD, PRODUCT, STEP, CELL = (
    "xlstm_cuda/ops/slstm_kernels.py",
    "xlstm_cuda/ops/slstm.py",
    "csrc/slstm/resident/forward.cu",
    "csrc/slstm/resident/backward.cu",
    "csrc/slstm/resident/product.cuh",
    "csrc/slstm/step.cu",
    "csrc/slstm/cell.cuh",
)
RETURN = "    return SLSTMGradients(dx, dR, db, *(unpadded(s, call.real_DH) for s in first))\n"


def scaled(name: str) -> Bug:
    return KERNELS, RETURN, f"    {name} = {name} * 0.98\n{RETURN}"


MUTANTS: dict[str, Bug] = {
    **{f"{name} x 0.98": scaled(name) for name in ("dx", "dR", "db")},
    **{f"{name} x 0.98": scaled(f"first[{i}]") for i, name in enumerate(("dh0", "dc0", "dn0", "dm0"))},
    "normaliser gradient dropped": (CELL, "dn -= dy * k.hn;", ""),
    "dm0 without n0 dn0": (BACKWARD, "c0 * dc[e][u] + n0 * dn[e][u]", "c0 * dc[e][u]"),
    "given c0 not seen by the first step": (BACKWARD, "      if (i + 1 != length[e]) continue;\n", "      continue;\n"),
    "dh ignored": (BACKWARD, "more && p.dh.data ? 4 : 0", "0"),
    "dh_last ignored": (BACKWARD, "p.dh_last && real ?", "false ?"),
    "gates of R mixed up in backward": (PRODUCT, "head, gate + 1, out, unit)", "head, gate, out, unit)"),
    "barrier of forward removed": (FORWARD, "__syncthreads();                      // h of step t", "// h of step t"),
    "barrier before the first step removed": (FORWARD, "__syncthreads();  // slot 0 of x is free", ""),
    "barrier of backward removed": (BACKWARD, "__syncthreads();  // dg of iteration i is there", "// dg is there"),
    "wait of forward removed": (FORWARD, "device::cp_async_wait<STAGES - 2>();  // x of step t + 2", ""),
    "wait of backward removed": (BACKWARD, "device::cp_async_wait<STAGES - 1>();\n        put_given(i + 1)", "put_given(i + 1)"),
    "x into the wrong stage": (FORWARD, "&smem.x[t % T::STAGES][gate", "&smem.x[(t + 1) % T::STAGES][gate"),
    "x of the wrong step": (FORWARD, "take_x(t + 1);", "take_x(t);"),
    "slots of the wrong stage": (
        BACKWARD,
        "void request(int i) {\n    auto& slots = smem.slots[i % STAGES];",
        "void request(int i) {\n    auto& slots = smem.slots[(i + 1) % STAGES];",
    ),
    "dg not double buffered": (BACKWARD, "&smem.dg[i % 2][0][0]", "&smem.dg[0][0][0]"),
    "rows past their end stored": (FORWARD, "if (t <= 0 || t > length[e]) continue;", "if (t <= 0) continue;"),
    "db of half the rows": (BACKWARD, "offset < 4; offset *= 2) sum +=", "offset < 2; offset *= 2) sum +="),
    "dx of rows past their end stored": (BACKWARD, "if (i >= length[e]) return;", ""),
    "final state of the longest row for all": (
        FORWARD,
        "if (t + 1 == length[e]) store_final",
        "if (t + 1 == place.steps) store_final",
    ),
    "reset for both rows of a thread": (
        FORWARD,
        "if (is_fresh(fresh, i % 2)) state[",
        "if (fresh) state[",
    ),
    "h enters through a reset": (FORWARD, "is_fresh(fresh, e) ? 0 : h_word[e]", "h_word[e]"),
    "reset not marked for backward": (FORWARD, "|= 0x80000000u", "|= 0u"),
    "flags of resets one step late": (FORWARD, "smem.fresh[(t + 2) % 4][tid]", "smem.fresh[(t + 3) % 4][tid]"),
    "fresh state per row instead of per element": (
        FORWARD,
        "cell_state(p.c0[at + u], p.n0[at + u], p.m0[at + u])",
        "cell_state(p.c0[at + u], p.n0[at - place.unit], p.m0[at + u])",
    ),
    "states in bfloat16": (
        FORWARD,
        "h_word[e] = Word::pack(h[e]);\n    fresh",
        "h_word[e] = Word::pack(h[e]), state[0][e].n = device::to_float(device::from_float<__nv_bfloat16>(state[0][e].n));\n"
        "    fresh",
    ),
    "last h rounded": (
        FORWARD,
        "p.h_last[at + u] = h[u]",
        "p.h_last[at + u] = device::to_float(device::from_float<Element>(h[u]))",
    ),
    "unit padding in the bias": (
        FORWARD,
        "p.b[(gate * place.NH + place.head) * place.DH + place.unit + u]",
        "p.b[(gate * place.NH + place.head) * T::DH + place.unit + u]",
    ),
    "dR without the given h": (KERNELS, "if h0 is None else h0.to(h.dtype)", "if True else h0.to(h.dtype)"),
    "dR through resets": (KERNELS, "return before if self.reset is None else", "return before if True else"),
    "checkpoint of the wrong chunk": (OPS, "borders[4 * index : 4 * index + 4]", "borders[0:4]"),
    "step: barrier removed": (STEP, "__syncthreads();  // everyone has left h of the rows before", ""),
    "step: last columns of R ignored": (STEP, "if (column >= DH) continue;", "if (column >= DH - 8) continue;"),
}
TESTS = [
    "python_tests/test_slstm_kernels.py",
    "python_tests/test_slstm_step_kernel.py",
    "-k",
    "simt and not data_race and not reads_R_once or any_schedule",
]


if __name__ == "__main__":
    raise SystemExit(plant(__doc__, MUTANTS, TESTS))
