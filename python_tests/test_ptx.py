"""The PTX interpreter itself: kernels of a few lines whose result, or whose fault, is known (csrc/ptx, docs/ptx.md)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import ptx_backend
import pytest

CSRC = Path(__file__).parent.parent / "csrc"


@pytest.fixture(scope="module")
def ptx():
    try:
        return ptx_backend.load()
    except ImportError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def nvcc():
    for candidate in (shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"):
        if candidate and Path(candidate).exists():
            return candidate
    pytest.skip("no nvcc on this machine")


def run(module, body: str, words: int = 32, target: str = "90a", head: str = "", **launch: object) -> np.ndarray:
    """Runs ``body`` with %rd1 the address of ``words`` words (each holds its number), %r1 the thread; returns the words.

    Options of the interpreter (seed, late, starve, reads, races) may be among the arguments of the launch.
    """
    options = {name: launch.pop(name) for name in ("seed", "late", "starve", "reads", "races") if name in launch}
    ptx_backend.configure(module, ptx_backend.CARDS[90], **options)
    memory = np.arange(words, dtype=np.uint32)
    text = f"""
.version 9.0
.target sm_{target}
.address_size 64
{head}
.visible .entry k(.param .u64 k_param_0)
{{
.reg .pred %p<9>;
.reg .b16 %rs<9>;
.reg .b32 %r<99>;
.reg .f32 %f<99>;
.reg .b64 %rd<99>;
ld.param.u64 %rd1, [k_param_0];
mov.u32 %r1, %tid.x;
mul.wide.u32 %rd2, %r1, 4;
add.s64 %rd3, %rd1, %rd2;
{body}
ret;
}}
"""
    module.ptx_run(text=text, kernel="k", arguments=[memory], **launch)
    return memory


def test_threads_part_and_meet_again(ptx):
    got = run(
        ptx,
        """
        mov.u32 %r2, 0;
        and.b32 %r3, %r1, 7;
        LOOP: setp.eq.u32 %p1, %r3, 0;
        @%p1 bra DONE;
        add.u32 %r2, %r2, %r3;
        sub.u32 %r3, %r3, 1;
        bra LOOP;
        DONE: shfl.sync.idx.b32 %r4, %r2, 7, 31, -1;
        add.u32 %r2, %r2, %r4;
        st.global.u32 [%rd3], %r2;
        """,
    )
    n = np.arange(32) % 8
    assert (got == n * (n + 1) // 2 + 28).all()


def test_blocks_warps_and_shared_memory(ptx):
    got = run(
        ptx,
        """
        shl.b32 %r2, %r1, 2;
        mov.u32 %r3, s;
        add.u32 %r4, %r3, %r2;
        st.shared.u32 [%r4], %r1;
        bar.sync 0;
        xor.b32 %r5, %r2, 256;
        add.u32 %r4, %r3, %r5;
        ld.shared.u32 %r6, [%r4];
        mov.u32 %r7, %ctaid.x;
        mad.lo.u32 %r8, %r7, 128, %r1;
        mul.wide.u32 %rd4, %r8, 4;
        add.s64 %rd5, %rd1, %rd4;
        st.global.u32 [%rd5], %r6;
        """,
        words=256,
        head=".shared .align 4 .b8 s[512];",
        grid=2,
        block=128,
        races=True,
    )
    assert (got == np.tile(np.arange(128) ^ 64, 2)).all()


FAULTS = {
    "unknown opcode": ("tanh.approx.f32 %f1, %f2;", {}, "unknown instruction: tanh.approx.f32"),
    "one word outside": ("st.global.u32 [%rd3+4], %r1;", {}, "lane 31: 4 bytes at .* outside every tensor"),
    "misaligned": ("ld.global.u32 %r2, [%rd3+2];", {}, "lane 0: misaligned address"),
    "shared memory outside": (
        "st.shared.u32 [%r1], %r1;",
        {"shared_bytes": 64, "head": ".shared .align 4 .b8 of_another_kernel[4096];"},
        "of 64 bytes of shared memory",
    ),
    "nobody wrote the register": ("st.global.u32 [%rd3], %r9;", {}, "stores a value that nobody wrote"),
    "nobody wrote the guard": ("@%p3 st.global.u32 [%rd3], %r1;", {}, "the guard is a predicate that nobody wrote"),
    "nobody wrote the shared word": (
        "mov.u32 %r3, s; ld.shared.u32 %r2, [%r3]; add.u32 %r2, %r2, 1; st.global.u32 [%rd3], %r2;",
        {"head": ".shared .align 4 .b8 s[512];"},
        "stores a value that nobody wrote",
    ),
    "aligned and apart": (
        "setp.lt.u32 %p1, %r1, 16; @%p1 bra L; bar.sync 0; L: nanosleep.u32 1;",
        {},
        "not all lanes of the warp are here",
    ),
    "shuffle of an absent lane": (
        "setp.lt.u32 %p1, %r1, 16; @%p1 shfl.sync.idx.b32 %r2, %r1, 20, 31, 65535;",
        {},
        "reads lane 20, which is not here",
    ),
    "member mask": ("setp.lt.u32 %p1, %r1, 16; @%p1 bar.warp.sync -1;", {}, "not all lanes of the member mask"),
    "barrier of one warp": (
        "setp.lt.u32 %p1, %r1, 32; @%p1 bra L; bar.sync 1, 64; L: nanosleep.u32 1;",
        {"block": 64, "words": 64},
        "deadlock: .* waits at barrier 1",
    ),
    "spin for ever": (
        "L: ld.acquire.gpu.global.u32 %r2, [%rd1]; setp.eq.u32 %p1, %r2, 0; @%p1 bra L;",
        {},
        "deadlock: .* spins at",
    ),
    "loop for ever": ("L: bra L;", {}, "a loop without end: it waits for nothing"),
    "race": (
        "mov.u32 %r3, s; st.shared.u32 [%r3], %r1;",
        {"head": ".shared .align 4 .b8 s[4];", "block": 64, "words": 64, "races": True},
        "race on shared memory: this write and the write by warp",
    ),
    "race of two blocks": ("st.global.u32 [%rd1], %r1;", {"grid": 2, "races": True}, "race on global memory"),
    "exit with a copy on its way": (
        "mov.u32 %r3, s; setp.eq.u32 %p1, %r1, 0; @%p1 cp.async.ca.shared.global [%r3], [%rd1], 16;",
        {"head": ".shared .align 16 .b8 s[16];"},
        "exits with a cp.async on its way",
    ),
    "trap": ("trap;", {}, "trap"),
    "mbarrier": (
        "mov.u32 %r3, s; mbarrier.try_wait.parity.shared.b64 %p1, [%r3], 0;",
        {"head": ".shared .align 8 .b8 s[8];"},
        "mbarrier not initialised",
    ),
}  #: body, launch, what the message says


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_reported(ptx, name):
    body, launch, message = FAULTS[name]
    with pytest.raises(RuntimeError, match=message):
        run(ptx, body, **launch)


def test_select_reads_one_side_only(ptx):
    body = "setp.lt.u32 %p1, %r1, 99; selp.b32 %r2, %r1, %r9, %p1; st.global.u32 [%rd3], %r2;"
    assert (run(ptx, body) == np.arange(32)).all()


COPY = """
mov.u32 %r3, s; shl.b32 %r4, %r1, 2; add.u32 %r3, %r3, %r4;
cp.async.ca.shared.global [%r3], [%rd3], 4;
cp.async.commit_group;
{wait}
ld.shared.u32 %r2, [%r3];
st.global.u32 [%rd3+128], %r2;
cp.async.wait_all;
"""


def test_copy_lands_late(ptx):
    options = {"head": ".shared .align 4 .b8 s[128];", "words": 64, "reads": False}
    waited = run(ptx, COPY.format(wait="cp.async.wait_group 0;"), **options)
    assert (waited[32:] == np.arange(32)).all()
    assert (run(ptx, COPY.format(wait=""), **options)[32:] == 0xFFFFFFFF).all()
    assert (run(ptx, COPY.format(wait=""), late=False, **options)[32:] == np.arange(32)).all()


SIDE_BY_SIDE = """
shr.u32 %r2, %r1, 5;
and.b32 %r3, %r1, 31;
mov.u32 %r4, s;
add.u32 %r4, %r4, {flag};
setp.eq.u32 %p1, %r3, 0;
@%p1 st.shared.u8 [%r4], %r1;
"""


def test_flags_of_two_warps_side_by_side_are_no_race(ptx):
    options = {"head": ".shared .align 4 .b8 s[4];", "block": 64, "words": 64, "races": True}
    run(ptx, SIDE_BY_SIDE.format(flag="%r2"), **options)
    with pytest.raises(RuntimeError, match="race on shared memory: this write and the write by warp"):
        run(ptx, SIDE_BY_SIDE.format(flag="1"), **options)


RELEASE = """
setp.lt.u32 %p1, %r1, 32;
@!%p1 bra READER;
setp.eq.u32 %p2, %r1, 0;
@%p2 st.global.u32 [%rd1+8], 7;
bar.warp.sync -1;
@%p2 st.{release}.gpu.global.u32 [%rd1], 1;
bra END;
READER: ld.acquire.gpu.global.u32 %r2, [%rd1];
setp.eq.u32 %p3, %r2, 0;
@%p3 bra READER;
ld.global.u32 %r3, [%rd1+8];
st.global.u32 [%rd3], %r3;
END:
"""


def test_release_and_acquire_order_an_access(ptx):
    assert (run(ptx, RELEASE.format(release="release"), words=64, block=64, races=True)[32:] == 7).all()
    with pytest.raises(RuntimeError, match="race on global memory: this read and the write by warp"):
        run(ptx, RELEASE.format(release="relaxed"), words=64, block=64, races=True)


# Warp 0 counts to 100,000 and looks every 100 steps whether warp 1 has had its turn.
def test_starving_keeps_a_warp_from_its_turn(ptx):
    body = """
    setp.ge.u32 %p1, %r1, 32;
    @%p1 bra LATE;
    mov.u32 %r2, 0;
    LOOP: add.u32 %r2, %r2, 1;
    rem.u32 %r4, %r2, 100;
    setp.ne.u32 %p2, %r4, 0;
    @%p2 bra LOOP;
    ld.volatile.global.u32 %r3, [%rd1+256];
    setp.ne.u32 %p2, %r3, 64;
    setp.ge.u32 %p3, %r2, 100000;
    or.pred %p2, %p2, %p3;
    @!%p2 bra LOOP;
    setp.eq.u32 %p4, %r1, 0;
    @%p4 st.global.u32 [%rd1+260], %r2;
    bra END;
    LATE: st.volatile.global.u32 [%rd1+256], 0;
    END:
    """
    waits = {
        starve: [int(run(ptx, body, words=66, block=64, starve=starve, seed=seed)[65]) for seed in range(1, 9)]
        for starve in (False, True)
    }
    assert max(waits[False]) < 1000
    assert max(waits[True]) > 5000


# ---------------------------------------------------------------- what only the compiler's output shows
DISCARDED_LOOP = """
template <bool Discarded>
__device__ void scale(float (&x)[4], float d) {
  float s[4];
  if constexpr (!Discarded) OPEN
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int e = 0; e < 2; ++e) s[2 * i + e] = d + e;
    }
  CLOSE
#pragma unroll
  for (int i = 0; i < 4; ++i) x[i] = 3 * (Discarded ? x[i] : x[i] + s[i]);
}
template <bool Discarded>
__global__ void kernel(float* p) {
  float x[4];
  for (int i = 0; i < 4; ++i) x[i] = p[4 * threadIdx.x + i];
  scale<Discarded>(x, 1.0f);
  for (int i = 0; i < 4; ++i) p[4 * threadIdx.x + i] = x[i];
}
template __global__ void kernel<true>(float*);
"""


def compiled(nvcc: str, source: str, folder: Path, csrc: Path = CSRC, *flags: str) -> tuple[str, str]:
    """PTX of the source for sm_90a, and the name of its only kernel."""
    (folder / "kernel.cu").write_text(source)
    command = [nvcc, "-std=c++17", "-O3", "-ptx", "-arch=compute_90a", f"-I{csrc}", *flags, "kernel.cu", "-o", "kernel.ptx"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = (folder / "kernel.ptx").read_text()
    return text, text.split(".entry ")[1].split("(")[0]


def discarded_loop(ptx, nvcc, folder, brackets) -> np.ndarray:
    source = DISCARDED_LOOP.replace("OPEN", brackets[0]).replace("CLOSE", brackets[1])
    text, name = compiled(nvcc, source, folder)
    memory = np.arange(128, dtype=np.float32)
    ptx_backend.configure(ptx, ptx_backend.CARDS[90])
    ptx.ptx_run(text=text, kernel=name, arguments=[memory])
    return memory


def test_loop_that_nvcc_drops_is_found(ptx, nvcc, tmp_path):
    want = 3 * np.arange(128, dtype=np.float32)
    assert (discarded_loop(ptx, nvcc, tmp_path, "{}") == want).all()
    if (discarded_loop(ptx, nvcc, tmp_path, ("", "")) == want).all():
        pytest.skip("this nvcc keeps the loop after an unbraced, discarded statement")


WRAPPERS = {
    "a wrong order of operands in an asm string": (
        "matrix.cuh",
        'asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"',
        'asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%2,%1,%3}, [%4];"',
    ),
    "a wrong branch for nvcc": (
        "kernel.cuh",
        "return __shfl_sync(kAllLanes, threadIdx.x / 32, 0);",
        "return __shfl_sync(kAllLanes, threadIdx.x / 16, 0);",
    ),
}  #: file of csrc/device, what is there, what is planted
WRAPPERS_KERNEL = """
#include "device/async_copy.cuh"
#include "device/matrix.cuh"
// Twice four matrices of numbers in the same place, copied row by row and read as fragments; then the number of the warp.
__global__ void kernel(const uint4* from, uint32_t* to) {
  __shared__ __align__(16) uint4 rows[64];
  uint4* row = rows + threadIdx.x;
  uint32_t fragments[2][4];
  for (int round = 0; round < 2; ++round) {
    xlstm::device::cp_async<16>(row, from + 32 * round + threadIdx.x % 32, 16);
    xlstm::device::cp_async_commit();
    xlstm::device::cp_async_wait<0>();
    __syncthreads();
    xlstm::device::ldmatrix_x4(fragments[round], row);
    __syncthreads();
  }
  for (int n = 0; n < 8; ++n) to[threadIdx.x * 9 + n] = fragments[n / 4][n % 4];
  to[threadIdx.x * 9 + 8] = xlstm::device::warp_id();
}
"""


def wrappers_agree(ptx, nvcc, folder: Path, csrc: Path) -> bool:
    text, name = compiled(nvcc, WRAPPERS_KERNEL, folder, csrc)
    words, out = np.arange(256, dtype=np.uint32), np.zeros(64 * 9, np.uint32)
    ptx_backend.configure(ptx, ptx_backend.CARDS[90])
    ptx.ptx_run(text=text, kernel=name, arguments=[words, out], block=64)
    matrices = [words[32 * m + np.arange(64) % 32] for m in range(8)]  # lane l holds word l % 4 of row l / 4
    return bool((out.reshape(64, 9) == np.stack([*matrices, np.arange(64) // 32], 1)).all())


@pytest.mark.parametrize("bug", [None, *WRAPPERS])
def test_planted_bug_in_a_wrapper_is_found(ptx, nvcc, tmp_path, bug):
    shutil.copytree(CSRC / "device", tmp_path / "device")
    if bug:
        file, old, new = WRAPPERS[bug]
        path = tmp_path / "device" / file
        source = path.read_text()
        assert source.count(old) == 1
        path.write_text(source.replace(old, new))
    assert wrappers_agree(ptx, nvcc, tmp_path, tmp_path) == (bug is None)


FLAG = """
#include "device/memory_order.cuh"
#include "device/wait.cuh"
__global__ void kernel(unsigned* flag) {
  if (threadIdx.x == 0)
    xlstm::device::wait_until([&] { return xlstm::device::load_acquire(flag) == 1; });
  else if (threadIdx.x == 32)
    xlstm::device::store_release(flag, 1);
}
"""


@pytest.mark.parametrize("clobber", [True, False])
def test_missing_clobber_of_a_flag_is_found(ptx, nvcc, tmp_path, clobber):
    """Without `volatile` and "memory" nvcc may read the flag once, before the loop: the wait never ends."""
    shutil.copytree(CSRC / "device", tmp_path / "device")
    path = tmp_path / "device" / "memory_order.cuh"
    source = path.read_text()
    right, wrong = 'asm volatile("ld.acquire.gpu', 'asm("ld.acquire.gpu'
    operands = '"=r"(value) : "l"(flag) : "memory");'
    assert source.count(right) == source.count(operands) == 1
    if not clobber:
        path.write_text(source.replace(right, wrong).replace(operands, '"=r"(value) : "l"(flag));'))
    text, name = compiled(nvcc, FLAG, tmp_path, tmp_path)
    ended = 0
    for seed in range(1, 9):
        flag = np.zeros(1, np.uint32)
        ptx_backend.configure(ptx, ptx_backend.CARDS[90], seed=seed)
        try:
            ptx.ptx_run(text=text, kernel=name, arguments=[flag], block=64)
        except RuntimeError as error:
            assert not clobber and "a loop without end" in str(error)
        else:
            ended += 1
    assert ended == 8 if clobber else ended < 8


WAIT = """
#include "device/wait.cuh"
// Thread 0 is answered by the last warp if there is one beside its own.
__global__ void kernel(volatile unsigned* flag) {
  if (threadIdx.x == 0)
    xlstm::device::wait_until([&] { return *flag == 1; });
  else if (threadIdx.x == 32)
    *flag = 1;
}
"""


@pytest.mark.parametrize("bounded", [True, False])
def test_wait_that_nobody_ends_names_its_line(ptx, nvcc, tmp_path, bounded):
    text, name = compiled(nvcc, WAIT, tmp_path, CSRC, "-lineinfo", *(["-DXLSTM_BOUNDED_WAITS"] if bounded else []))
    ptx_backend.configure(ptx, ptx_backend.CARDS[90])
    line = 1 + WAIT[: WAIT.index("wait_until([&]")].count("\n")
    message = (
        rf"^kernel\.cu:{line}: wait_until: assertion `another thread ends this wait` failed, lane 0: .*, block \(0,0,0\) warp 0 "
        if bounded
        else "^deadlock: no warp can go on; block 0 warp 0 spins at"
    )
    with pytest.raises(RuntimeError, match=message):
        ptx.ptx_run(text=text, kernel=name, arguments=[np.zeros(1, np.uint32)])
    flag = np.zeros(1, np.uint32)
    for seed in range(1, 5):  # a wait that another warp ends, also where that warp is held back, is not stopped
        flag[0] = 0
        ptx_backend.configure(ptx, ptx_backend.CARDS[90], seed=seed, starve=True)
        ptx.ptx_run(text=text, kernel=name, arguments=[flag], block=64)
        assert flag[0] == 1
