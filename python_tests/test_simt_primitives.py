"""Every function of csrc/device against a scalar loop. The same tests run under the host executor and on a GPU."""

from __future__ import annotations

import numpy as np
import pytest
from simt_backends import BACKENDS, has_sm90, run_primitive, skip_unless_usable, to_bfloat16, to_float16

from xlstm_cuda import simt

LANES = np.arange(32)


@pytest.fixture(params=BACKENDS)
def backend(request):
    skip_unless_usable(request.param)
    return request.param


@pytest.fixture
def sm90(backend):
    if not has_sm90(backend):
        pytest.skip("this GPU is older than sm_90")
    return backend


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def words(rng, *shape):
    return rng.integers(0, 2**32, shape, dtype=np.uint32)


# ---- lanes, warps, blocks


def test_lane_and_warp_id(backend):
    threads = np.arange(96)
    assert (run_primitive(backend, "lanes", np.zeros(1, np.uint32), 96) == (threads % 32 | threads // 32 << 8)).all()


def test_shuffles(backend, rng):
    x = words(rng, 32)
    out = run_primitive(backend, "shuffles", x, 128).reshape(4, 32)
    for lane in range(32):
        assert out[0, lane] == x[lane ^ 5]
        assert out[1, lane] == x[lane - 3 if lane % 8 >= 3 else lane]
        assert out[2, lane] == x[lane + 3 if lane % 16 <= 12 else lane]
        assert out[3, lane] == x[lane // 4 * 4 + 1]


@pytest.mark.parametrize("zeros", [[], [3], [20], list(range(32))], ids=["none", "low", "high", "all"])
def test_votes(backend, zeros):
    x = np.ones(32, np.uint32)
    x[zeros] = 0
    out = run_primitive(backend, "votes", x, 64)
    assert (out[:32] == sum(1 << lane for lane in range(32) if x[lane])).all()
    assert (out[32:48] == x[:16].any()).all() and (out[48:] == x[16:].all()).all()


@pytest.mark.parametrize("ones", [0, 1, 100, 128])
def test_block_votes(backend, ones):
    x = (np.arange(128) < ones).astype(np.uint32)
    assert (run_primitive(backend, "block_votes", x, 128) == (ones | (ones == 128) << 16 | (ones > 0) << 17)).all()


def test_warp_reductions_and_prefixes(backend, rng):
    x = rng.integers(-50, 50, 128).astype(np.float32)  # small integers: every order of summation is exact
    total, largest, prefix, prefix_max = run_primitive(backend, "warp_reductions", x, 512).view(np.float32).reshape(4, 4, 32)
    for warp, row in enumerate(x.reshape(4, 32)):
        assert (total[warp] == row.sum()).all() and (largest[warp] == row.max()).all()
        assert (prefix[warp] == np.cumsum(row)).all() and (prefix_max[warp] == np.maximum.accumulate(row)).all()


def test_block_reductions_and_prefix(backend, rng):
    x = rng.integers(-50, 50, 256).astype(np.float32)
    total, largest, prefix = run_primitive(backend, "block_reductions", x, 768).view(np.float32).reshape(3, 256)
    assert (total == x.sum()).all() and (largest == x.max()).all() and (prefix == np.cumsum(x)).all()


def test_shared_memory_transpose(backend, rng):
    x = words(rng, 32, 32)
    assert (run_primitive(backend, "shared_transpose", x, 1024).reshape(32, 32) == x.T).all()


def test_named_barriers_hand_a_slot_over(backend, rng):
    x = rng.integers(0, 1000, (9, 32), dtype=np.uint32)
    assert (run_primitive(backend, "named_barriers", x, 32, n=9, fill=0) == 3 * x.sum(0)).all()


def test_grid_barrier(backend, rng):
    x = rng.integers(0, 1000, 16, dtype=np.uint32)
    out = run_primitive(backend, "grid_barrier", x, 32)
    assert (out[:16] == x).all() and (out[16:] == x.sum()).all()


def test_flags_release_and_acquire(backend, rng):
    x = rng.integers(0, 1000, 8, dtype=np.uint32)
    out = run_primitive(backend, "flags", x, 25, fill=0)
    assert (out[:8] == np.cumsum(x)).all() and (out[17:] == x.sum() + x).all()


def test_atomics(backend, rng):
    x = rng.integers(1, 1000, 128, dtype=np.uint32)
    start = np.array([0, 0, 2**31, 0], np.uint32)
    out = run_primitive(backend, "atomics", x, 4, fill=0)
    assert out[0] == x.sum() and out[1] == x.max() and out[2] == min(start[0], x.min()) and out[3:].view(np.float32)[0] == 128.0


# ---- copies and vectors


@pytest.mark.parametrize("size", [4, 8, 16])
@pytest.mark.parametrize("part", ["none", "half", "all"])
def test_cp_async(backend, rng, size, part):
    source_bytes = {"none": 0, "half": size // 2, "all": size}[part]
    x = words(rng, 2, 64, size // 4)
    out = run_primitive(backend, f"cp_async_{size}", x, x.size, n=source_bytes).reshape(x.shape)
    second = x[1].view(np.uint8).reshape(64, size).copy()
    second[:, source_bytes:] = 0
    assert (out[0] == np.roll(x[0], -1, axis=0)).all()
    assert (out[1] == np.roll(second, -1, axis=0).view(np.uint32)).all()


@pytest.mark.parametrize("count", [0, 1, 5, 7, 8])
@pytest.mark.parametrize("shift", [0, 1, 4])
def test_vectors_with_tail_and_misaligned(backend, rng, count, shift):
    x = rng.integers(0, 0x7C00, 32 * 8 + 8, dtype=np.uint16)
    out = run_primitive(backend, "vectors", x.view(np.uint32), x.size // 2, n=16 * shift + count).view(np.uint16)
    expected = np.full_like(x, 0xFFFF)
    for t in range(32):
        first = 8 * t + shift
        expected[first : first + count] = x[first : first + count]
    assert (out == expected).all()


# ---- matrices


@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "trans"])
@pytest.mark.parametrize("matrices", [1, 2, 4])
def test_ldmatrix(backend, rng, matrices, transposed):
    x = rng.integers(0, 2**16, (matrices, 8, 8), dtype=np.uint16)
    name = f"ldmatrix_x{matrices}" + ("_trans" if transposed else "")
    out = run_primitive(backend, name, x.view(np.uint32), 32 * matrices).view(np.uint16).reshape(32, matrices, 2)
    for lane in range(32):
        for m in range(matrices):
            tile = x[m].T if transposed else x[m]
            assert (out[lane, m] == tile[lane // 4, 2 * (lane % 4) : 2 * (lane % 4) + 2]).all()


@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "trans"])
@pytest.mark.parametrize("matrices", [1, 2, 4])
def test_stmatrix(sm90, rng, matrices, transposed):
    x = rng.integers(0, 2**16, (32, matrices, 2), dtype=np.uint16)
    name = f"stmatrix_x{matrices}" + ("_trans" if transposed else "")
    out = run_primitive(sm90, name, x.view(np.uint32), 32 * matrices).view(np.uint16).reshape(matrices, 8, 8)
    for lane in range(32):
        for m in range(matrices):
            tile = out[m].T if transposed else out[m]
            assert (tile[lane // 4, 2 * (lane % 4) : 2 * (lane % 4) + 2] == x[lane, m]).all()


# The tables of the PTX ISA, as closed forms over (lane, element): row and column of the element.
# 9.7.14.5.8, m16n8k16 .f16/.bf16; 9.7.14.5.7, m16n8k8 .tf32
def ptx_a_16x16(lane, i):
    group, t = lane >> 2, lane % 4
    return (group if i < 2 or 4 <= i < 6 else group + 8), t * 2 + (i & 1) + (0 if i < 4 else 8)


def ptx_b_16x8(lane, i):
    group, t = lane >> 2, lane % 4
    return t * 2 + (i & 1) + (0 if i < 2 else 8), group


def ptx_c_16x8(lane, i):
    group, t = lane >> 2, lane % 4
    return (group if i < 2 else group + 8), t * 2 + (i & 1)


def ptx_a_tf32(lane, i):
    group, t = lane >> 2, lane % 4
    return (group if i in (0, 2) else group + 8), (t if i < 2 else t + 4)


def ptx_b_tf32(lane, i):
    group, t = lane >> 2, lane % 4
    return (t if i == 0 else t + 4), group


def cute(shape_stride_thread, shape_stride_value):
    """A (thread, value) layout of CUTLASS' mma_traits_sm80.hpp, an independent source: -> m + 16 k, or n + 8 k for b."""

    def index(modes, x):
        result = 0
        for shape, stride in modes:
            result += x % shape * stride
            x //= shape
        return result

    return lambda lane, i: index(shape_stride_thread, lane) + index(shape_stride_value, i)


CUTE = {
    "a": cute([(4, 32), (8, 1)], [(2, 16), (2, 8), (2, 128)]),
    "b": cute([(4, 16), (8, 1)], [(2, 8), (2, 64)]),
    "c": cute([(4, 32), (8, 1)], [(2, 16), (2, 8)]),
    "a_tf32": cute([(4, 16), (8, 1)], [(2, 8), (2, 64)]),
    "b_tf32": cute([(4, 8), (8, 1)], [(2, 32)]),
}


def test_fragment_coordinates_are_the_ptx_tables(backend):
    out = run_primitive(backend, "fragment_coordinates", np.zeros(1, np.uint32), 32 * 26).reshape(32, 26)
    tables = [("a", ptx_a_16x16, 8, 16), ("b", ptx_b_16x8, 4, None), ("c", ptx_c_16x8, 4, 16), ("a_tf32", ptx_a_tf32, 4, 16)]
    tables.append(("b_tf32", ptx_b_tf32, 2, None))
    for lane in range(32):
        at = 0
        for name, table, count, rows in tables:
            for i in range(count):
                row, column = table(lane, i)
                assert (out[lane, at] >> 8, out[lane, at] & 255) == (row, column), (name, lane, i)
                linear = row + rows * column if rows else column + 8 * row  # m + 16 k; n + 8 k
                assert CUTE[name](lane, i) == linear, (name, lane, i)
                at += 1


def float16_words(kind, x):
    return {"bf16": to_bfloat16, "f16": to_float16}[kind](x)


@pytest.mark.parametrize("kind", ["bf16", "f16", "tf32"])
def test_mma_registers_follow_the_ptx_tables(backend, rng, kind):
    K = 8 if kind == "tf32" else 16
    a, b, c = (rng.integers(-8, 9, shape).astype(np.float32) for shape in ((16, K), (K, 8), (16, 8)))  # exact in every type
    registers = np.zeros((32, 10), np.uint32)
    for lane in range(32):
        if kind == "tf32":
            registers[lane, :4] = np.array([a[ptx_a_tf32(lane, i)] for i in range(4)], np.float32).view(np.uint32)
            registers[lane, 4:6] = np.array([b[ptx_b_tf32(lane, i)] for i in range(2)], np.float32).view(np.uint32)
        else:
            halves = float16_words(kind, np.array([a[ptx_a_16x16(lane, i)] for i in range(8)]))
            registers[lane, :4] = halves.view(np.uint32)
            registers[lane, 4:6] = float16_words(kind, np.array([b[ptx_b_16x8(lane, i)] for i in range(4)])).view(np.uint32)
        registers[lane, 6:] = np.array([c[ptx_c_16x8(lane, i)] for i in range(4)], np.float32).view(np.uint32)
    out = run_primitive(backend, f"mma_registers_{kind}", registers, 128).view(np.float32).reshape(32, 4)
    d = c + a @ b
    for lane in range(32):
        for i in range(4):
            assert out[lane, i] == d[ptx_c_16x8(lane, i)]


@pytest.mark.parametrize("kind", ["bf16", "f16"])
def test_mma_of_visited_fragments(backend, rng, kind):
    a, b, c = (rng.integers(-8, 9, shape).astype(np.float32) for shape in ((16, 16), (16, 8), (16, 8)))
    out = run_primitive(backend, f"mma_{kind}", np.concatenate([x.ravel() for x in (a, b, c)]), 128).view(np.float32)
    assert (out.reshape(16, 8) == c + a @ b).all()


@pytest.mark.parametrize("stored", ["k by n", "n by k"])
def test_product_through_ldmatrix_alone(backend, rng, stored):
    a, b = (rng.integers(-8, 9, (16, 16)).astype(np.float32) for _ in range(2))
    tiles = np.concatenate([to_bfloat16(x).ravel() for x in (a, b if stored == "k by n" else b.T)])
    out = run_primitive(backend, "ldmatrix_product", tiles.view(np.uint32), 256, n=int(stored == "n by k")).view(np.float32)
    assert (out.reshape(16, 16) == a @ b).all()


def test_mma_models_differ_where_hopper_truncates():
    skip_unless_usable("simt")
    tiny = np.full((16, 16), 2.0**-13, np.float32)  # products of 2^-26 beside an addend of 1
    inputs = np.concatenate([tiny.ravel(), tiny[:, :8].ravel(), np.ones(128, np.float32)])
    with simt.options(mma="float64"):
        assert (run_primitive("simt", "mma_bf16", inputs, 128).view(np.float32) == np.float32(1 + 2.0**-22)).all()
    with simt.options(mma="hopper"):
        assert (run_primitive("simt", "mma_bf16", inputs, 128).view(np.float32) == 1).all()


# ---- arithmetic


def test_approximate_functions(backend, rng):
    x = np.concatenate([rng.uniform(-80, 80, 120), [1.0, -1.0, 0.5, 2.0, 64.0, -0.0, 100.0, 3.0]]).astype(np.float32)
    out = run_primitive(backend, "approximations", x, 512).view(np.float32).reshape(4, 128)
    wide = x.astype(np.float64)
    with np.errstate(divide="ignore"):
        assert np.allclose(out[0], np.exp2(wide), rtol=2**-21, atol=1e-37)
        assert np.allclose(out[1], np.log2(np.abs(wide)), rtol=2**-21, atol=2**-21)
        assert np.allclose(out[2], 1 / wide, rtol=2**-22)
    tf32 = (x.view(np.uint32) + 0x1000) & 0xFFFFE000
    assert (out[3].view(np.uint32) & 0xFFFFE000 == tf32).all()


def test_conversions_round_to_nearest_even(backend, rng):
    x = np.concatenate(
        [rng.standard_normal(120), [1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-11, 1 + 3 * 2.0**-11, 0, -0.0, 7e4, 1e-8]]
    )
    x = x.astype(np.float32)
    out = run_primitive(backend, "conversions", x, 512).reshape(4, 128)
    for row, convert in ((0, to_bfloat16), (1, to_float16)):
        with np.errstate(over="ignore"):
            low, high = convert(x), convert(-x)
        assert (out[row].view(np.uint16).reshape(128, 2) == np.stack([low, high], 1)).all()
    assert (out[2] == to_bfloat16(x).astype(np.uint32) << 16).all()
    with np.errstate(over="ignore"):
        assert (out[3].view(np.float32) == x.astype(np.float16).astype(np.float32)).all()


def test_two_float_sums_keep_what_float32_drops(backend, rng):
    n = 50
    x = rng.standard_normal((32, n)).astype(np.float32)
    x[:, 0] = -1e4 * (1 + np.arange(32))
    out = run_primitive(backend, "two_float_sum", x, 128, n=n).view(np.float32).reshape(32, 4).astype(np.float64)
    exact = x.astype(np.float64).sum(1)
    assert np.abs(out[:, 0] + out[:, 1] - exact).max() < 1e-9 * np.abs(exact).max()
    assert np.abs(out[:, 2] + out[:, 3] - x[:, 1:].astype(np.float64).sum(1)).max() < 1e-8


# ---- sm_90


def test_cluster_rank_size_and_distributed_shared_memory(sm90, rng):
    x = words(rng, 8, 32)
    out = run_primitive(sm90, "cluster", x, 8 * 34).reshape(8, 34)
    for block in range(8):
        neighbour = block // 4 * 4 + (block % 4 + 1) % 4
        assert out[block, 0] == block % 4 and out[block, 1] == 4 and (out[block, 2:] == x[neighbour]).all()


@pytest.mark.parametrize("rounds", [1, 2, 7])
def test_mbarrier_ring(sm90, rng, rounds):
    x = rng.integers(0, 1000, (rounds, 32), dtype=np.uint32)
    assert (run_primitive(sm90, "mbarrier_ring", x, 32, n=rounds) == x[:, ::-1].sum(0)).all()


@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_store_async_around_the_cluster(sm90, rng, rounds):
    x = rng.integers(0, 1000, (4, rounds, 20), dtype=np.uint32)
    out = run_primitive(sm90, "store_async_ring", x, 80, n=rounds).reshape(4, 20)
    assert (out == np.roll(x.sum(1), 1, axis=0)).all()


@pytest.mark.parametrize("count", [4, 64, 1024])
def test_bulk_load(sm90, rng, count):
    x = words(rng, count)
    assert (run_primitive(sm90, "bulk_load", x, count, n=count) == x[::-1]).all()


@pytest.mark.parametrize("form", ["shared", "registers"])
def test_wgmma(sm90, rng, form):
    if sm90 == "cuda":
        import torch

        if torch.cuda.get_device_capability()[0] != 9:
            pytest.skip("wgmma exists on sm_90a alone")
    columns = 64 if form == "shared" else 32
    a, b = rng.integers(-4, 5, (64, 16)).astype(np.float32), rng.integers(-4, 5, (16, columns)).astype(np.float32)
    source = np.concatenate([to_bfloat16(a).ravel(), to_bfloat16(b.T).ravel()])
    out = run_primitive(sm90, f"wgmma_{form}", source.view(np.uint32), 64 * columns).view(np.float32)
    assert (out.reshape(64, columns) == a @ b).all()
