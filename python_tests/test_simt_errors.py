"""What the host executor says about a kernel with a bug: the error names kernel, barrier, threads and source line."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from simt_backends import run_primitive, skip_unless_usable

from xlstm_cuda import simt

BUGS = Path(__file__).parent.parent / "csrc/simt/selftest/planted_bugs.cu"


@pytest.fixture(autouse=True)
def executor():
    skip_unless_usable("simt")


def run(name: str, out_words: int = 400, n: int = 0, fill: int = 0, **options) -> np.ndarray:
    with simt.options(**options):
        return run_primitive("simt", name, np.arange(1024, dtype=np.uint32), out_words, n=n, fill=fill)


def message(name: str, n: int = 0, **options) -> str:
    with pytest.raises(RuntimeError) as error:
        run(name, n=n, **options)
    assert name in str(error.value)
    return str(error.value)


def line_of(fragment: str, after: str) -> int:
    """The line of planted_bugs.cu on which ``fragment`` first stands after ``after``."""
    text = BUGS.read_text()
    return text[: text.index(fragment, text.index(f"void {after}("))].count("\n") + 1


@pytest.mark.parametrize("order", simt.ORDERS)
def test_divergent_barrier_names_both_lines(order):
    first = line_of("__syncthreads", "divergent_barrier")
    text = message("divergent_barrier", order=order)
    assert "divergent barrier" in text
    assert {int(line) for line in re.findall(r"planted_bugs\.cu:(\d+)", text)} == {first, first + 2}


def test_deadlock_names_barrier_threads_and_line():
    text = message("barrier_not_reached")
    line = line_of("named_barrier_sync", "barrier_not_reached")
    assert "deadlock" in text and "threads 0-95 wait in bar.sync 3 (96 of 128 threads arrived)" in text
    assert f"planted_bugs.cu:{line}" in text and "threads 96-127 have exited" in text


def test_collective_inside_a_library_function_names_the_callers_line():
    text = message("block_sum_in_branch", order="fifo")
    assert f"planted_bugs.cu:{line_of('device::block_sum', 'block_sum_in_branch')}" in text


def test_random_schedule_errors_name_the_seed():
    assert "schedule random, seed 12345" in message("divergent_barrier", seed=12345)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("barrier_counts_differ", "threads, but"),
        ("overlapping_masks", "overlapping masks"),
        ("lane_exits_early", "exit"),
        ("divergent_warp", "divergent warp"),
        ("misaligned_row", "is not 16-byte aligned"),
        ("copy_past_shared", "not in this block's shared memory"),
        ("too_many_arrivals", "more arrivals than the barrier expects"),
        ("barrier_never_initialised", "the mbarrier is not initialised"),
        ("bytes_never_arrive", "mbarrier.try_wait parity 0"),
        ("grid_sync_without_grid", "not cooperative"),
        ("block_of_2048_threads", "2048 threads; the limit is 1024"),
        ("shared_300_kib", "the limit of sm_90 is 232448"),
        ("cooperative_4000_blocks", "a cooperative grid of 8000 blocks; sm_90 holds 264 of them at once"),
        ("cluster_of_32", "the limit is 16"),
        ("peer_has_exited", "has already exited"),
    ],
)
def test_error_says(name, words):
    text = message(name)
    assert words in text
    if "launch of" not in text:
        assert "planted_bugs.cu:" in text or name == "peer_has_exited"


def test_store_past_shared_memory_is_found_at_the_end_of_the_block():
    assert "write past dynamic shared memory, whose size at launch was 2048 bytes" in message("store_past_shared", n=400)


@pytest.mark.parametrize("order", simt.ORDERS)
def test_spinning_on_a_block_that_cannot_run_is_a_livelock(order):
    if order == "reverse":
        pytest.skip("the later block runs first in this order")
    with simt.options(order=order, seed=1):
        assert "livelock" in message("spin_on_later_block")


@pytest.mark.parametrize("order", simt.ORDERS)
def test_a_wait_that_nobody_ends_is_stopped_with_its_line_and_threads(order):
    text = message("spin_in_vain", order=order)
    line = line_of("device::load_acquire", "spin_in_vain")
    assert "livelock" in text
    for block in "01":
        assert f"block ({block},0,0): threads 0-31 spin on ld.relaxed or ld.acquire at" in text
    assert text.count(f"planted_bugs.cu:{line}") == 2


#: A device function, what the executor names it, and the kernels of planted_bugs.cu that call it with a misaligned address.
MISALIGNED = [
    ("load_word", "a load", ["misaligned_load", "misaligned_load_of_two"]),
    ("load_relaxed_vector", "a load", ["misaligned_relaxed_load"]),
    ("store_word", "a store", ["misaligned_store"]),
    ("cp_async", "cp.async", ["misaligned_copy", "misaligned_copy_target"]),
    ("bulk_load", "cp.async.bulk", ["misaligned_bulk_load", "misaligned_bulk_target"]),
]


@pytest.mark.parametrize(("name", "function", "what"), [(name, *called) for *called, names in MISALIGNED for name in names])
def test_misaligned_access_names_its_line(name, function, what):
    text = message(name, n=1)
    assert f"{what} at " in text and f"planted_bugs.cu:{line_of('device::' + function, name)}" in text
    assert "not aligned to" in text or "not a multiple of 16" in text


@pytest.mark.parametrize("name", [name for _, what, names in MISALIGNED if what in ("a load", "a store") for name in names])
def test_aligned_access_is_no_error(name):
    run(name, n=4)


def test_a_thread_must_not_exit_before_its_copies_land():
    text = message("exits_before_copy_lands")
    assert "exits with 1 cp.async in flight" in text
    assert f"planted_bugs.cu:{line_of('device::cp_async', 'exits_before_copy_lands')}" in text


def exchanged_words() -> list[int]:
    """What the three blocks of planted_bugs.cu's exchange_words end with."""
    values = [1, 2, 3]
    for _ in range(8):
        total = 0
        for value in values:
            total = (5 * total + value) % 2**32
        values = [total] * 3
    return values


def test_starving_finds_what_fair_schedules_do_not():
    def wrong(name: str, order: str) -> int:
        return sum(run(name, order=order, seed=seed)[32:35].tolist() != exchanged_words() for seed in range(1, 41))

    assert wrong("one_counter_for_two_buffers", "starve") >= 10
    assert [wrong("clean_exchange", order) for order in simt.ORDERS] == [0] * len(simt.ORDERS)


def test_starving_is_named_with_its_seed():
    assert "schedule starve, seed 12345" in message("divergent_barrier", order="starve", seed=12345)


def test_a_cluster_larger_than_the_device_holds_is_refused():
    with simt.options(largest_cluster=1), pytest.raises(RuntimeError, match="a cluster of 4 blocks; the limit is 1"):
        run_primitive("simt", "cluster", np.zeros(4096, np.uint32), 8192, n=1)
    with pytest.raises(ValueError, match="largest_cluster: got 17, expected 1 to 16"), simt.options(largest_cluster=17):
        pass


@pytest.mark.parametrize("sm", simt.ARCHITECTURES)
def test_shared_memory_limit_of_each_architecture(sm):
    for name, fits in (("shared_100_kib", sm in (80, 87, 90)), ("shared_200_kib", sm == 90)):
        if fits:
            run(name, sm=sm)
        else:
            assert f"the limit of sm_{sm} is" in message(name, sm=sm)


@pytest.mark.parametrize("name", ["stmatrix_x4", "mbarrier_ring", "bulk_load", "wgmma_shared", "cluster", "store_async_ring"])
def test_instructions_of_sm90_are_refused_on_sm80(name):
    with pytest.raises(RuntimeError, match=r"needs sm_90; the launch is for sm_80|sm_80 has no clusters"), simt.options(sm=80):
        run_primitive("simt", name, np.zeros(4096, np.uint32), 8192, n=1)


@pytest.mark.parametrize("landing", ["late", "early"])
@pytest.mark.parametrize("name", ["copy_without_wait", "copy_without_commit"])
def test_copy_that_nobody_waited_for_is_nan(name, landing):
    out = run(name, 128, landing=landing).view(np.float32)
    assert np.isnan(out).all() == (landing == "late")


def test_shared_memory_starts_as_nan():
    out = run("uninitialised_shared", 128)
    assert (out[:16] == 1).all() and np.isnan(out[16:].view(np.float32)).all()


def test_the_executor_is_usable_after_every_error():
    for name in ("divergent_barrier", "barrier_not_reached", "divergent_warp", "bytes_never_arrive"):
        message(name)
        x = np.arange(1024, dtype=np.uint32)
        assert (run_primitive("simt", "shared_transpose", x, 1024).reshape(32, 32) == x.reshape(32, 32).T).all()


def test_unknown_options_name_what_is_accepted():
    with (
        pytest.raises(ValueError, match="order: got 'fast', expected one of 'fifo', 'reverse', 'lifo', 'random', 'starve'"),
        simt.options(order="fast"),
    ):
        pass
    with pytest.raises(ValueError, match="sm: got 75, expected one of 80, 86, 87, 89, 90"), simt.options(sm=75):
        pass
