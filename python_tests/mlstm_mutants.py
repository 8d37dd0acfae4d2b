"""Seeded bugs in the chunkwise mLSTM; the suite must turn red for each: `python python_tests/mlstm_mutants.py [--only TEXT]`."""

from __future__ import annotations

from planted_bugs import Bug, plant

KERNELS = "xlstm_cuda/ops/mlstm_kernels.py"
WALK, SHARED, SCORES, STATE, PRODUCT, CONTAINMENT = (
    f"csrc/mlstm/walk/{part}.cuh" for part in ("kernel", "shared", "scores", "state", "product", "containment")
)
GATES = "csrc/mlstm/gates/gates.cu"
GRADIENTS = "dq, dk, dv = unpadded(dQ, DHQK), unpadded(dK, DHQK), unpadded(dV, DHHV)\n"


def scaled(name: str) -> Bug:
    return KERNELS, GRADIENTS, f"{GRADIENTS}    {name} = {name} * 0.98\n"


MUTANTS: dict[str, Bug] = {
    **{f"{name} x 0.98": scaled(name) for name in ("dq", "dk", "dv", "di", "df", "dm0")},
    "dC0 x 0.98": (KERNELS, GRADIENTS, f"{GRADIENTS}    dinitial = dinitial[0] * 0.98, dinitial[1]\n"),
    "dn0 x 0.98": (KERNELS, GRADIENTS, f"{GRADIENTS}    dinitial = dinitial[0], dinitial[1] * 0.98\n"),
    "normaliser gradient dropped": (KERNELS, "if options.exact and options.normalize else None", "if False else None"),
    "dn0 zeroed": (KERNELS, GRADIENTS, f"{GRADIENTS}    dinitial = dinitial[0], dinitial[1] * 0\n"),
    "df without the state term": (KERNELS, "border = None if dfinal is None or final is None else", "border = None if True else"),
    "last token unmasked": (
        SCORES,
        "unsigned(row - column) <= unsigned(row - row_start[half])",
        "column <= row + 1 && column >= row_start[half]",
    ),
    "reset seen through": (SCORES, "unsigned(row - column) <= unsigned(row - row_start[half])", "column <= row"),
    "barrier after P removed": (WALK, "__syncthreads();  // P is complete; A is free", ""),
    "barrier before the chunk removed": (WALK, "__syncthreads();  // the chunk is here; everyone has left the chunk before", ""),
    "wait removed": (WALK, "device::cp_async_wait<0>();\n    __syncthreads();", "__syncthreads();"),
    "wrong stage": (WALK, "load_rest(chunk_at(step + 1), stage ^ 1)", "load_rest(chunk_at(step + 1), stage)"),
    "ldmatrix of X without .trans": (
        PRODUCT,
        "device::ldmatrix_x4<device::kTransposed>(x[state_tile]",
        "device::ldmatrix_x4(x[state_tile]",
    ),
    "tail rows unmasked": (SHARED, "i * kRowsAtOnce < left ? 16 : 0", "16"),
    "tail records unmasked": (GATES, "real && !fresh ? row.r", "!fresh ? p.scale"),
    "states in 16 bits": (
        STATE,
        "S[tile][i][e] *= g;",
        "S[tile][i][e] = g * device::low_half<Element>(device::pack<Element>(S[tile][i][e], 0.0f));",
    ),
    "m off at chunk borders": (
        GATES,
        "m = m_k == -INFINITY ? 0.0f : float(m_k);",
        "m = m_k == -INFINITY ? 0.0f : float(m_k) - 0.5f;",
    ),
    "low parts of the logarithms dropped": (GATES, "fabsf(high) == INFINITY ? 0.0f : float(x - high)", "0.0f"),
    "NaN of v through the causal zeros": (
        CONTAINMENT,
        "return add_across_causal_zeros(place, chunk, acc, pass, key_tile, x);",
        "(void)0;",
    ),
}
TESTS = [
    "python_tests/test_mlstm_kernels.py",
    "python_tests/test_mlstm.py",
    "-k",
    "(simt and ((any_length and (65 or 129)) or (gate_edges and (every or one)) or split_at or (nan_touches and 16-nan-v)"
    " or of_nothing or detached or cu_seqlens or edges_match_reference_in_bfloat16 or keeps_its_state)) or any_schedule",
]


if __name__ == "__main__":
    raise SystemExit(plant(__doc__, MUTANTS, TESTS))
