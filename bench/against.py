"""Today's default model against that of another commit on this machine: `python -m bench.against 7ceed45 [--runs 12]`.

Builds the other commit in a git worktree (build/against, CPU only), runs both in processes of their own and lets them take turns:
50 decode steps and one forward and backward of a training batch at a time. CPU time, which other programs disturb least.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from .checkout import ROOT, commit

MODEL = """
import sys, time, torch
sys.path.insert(0, sys.argv[1])
import xlstm_cuda as x
torch.set_num_threads(1)
torch.manual_seed(0)
model = x.xLSTMLMModel(x.xLSTMLMModelConfig(
    vocab_size=256, context_length=128, num_blocks=4, embedding_dim=128, slstm_at=[1],
    mlstm_block=x.mLSTMBlockConfig(mlstm=x.mLSTMLayerConfig(num_heads=4, qkv_proj_blocksize=16)),
    slstm_block=x.sLSTMBlockConfig(slstm=x.sLSTMLayerConfig(num_heads=4), feedforward=x.FeedForwardConfig()),
))
token, batch, state = torch.zeros(1, 1, dtype=torch.long), torch.randint(256, (8, 128)), None

def decode():
    global state
    with torch.inference_mode():
        for _ in range(50):
            state = model.step(token, state)[1]

def train():
    model(batch).square().mean().backward()

for call in (decode, train):
    call()
print("ready", flush=True)
for line in sys.stdin:
    start = time.process_time()
    {"decode": decode, "train": train}[line.strip()]()
    print(time.process_time() - start, flush=True)
"""
CALLS = {"decode": 50, "train": 1}  #: repetitions in one turn


def build(other: str) -> Path:
    """A worktree of the commit with its compiled module beside the Python files."""
    tree, objects = ROOT / f"build/against/{other}", ROOT / f"build/against/{other}-objects"
    if not tree.exists():
        run("git", "worktree", "add", "--detach", str(tree), other)
    if not list((tree / "xlstm_cuda").glob("_C*.so")):
        pybind11 = subprocess.run(
            [sys.executable, "-m", "pybind11", "--cmakedir"], capture_output=True, text=True, check=True
        ).stdout
        options = ["-G", "Ninja", "-DXLSTM_CUDA=OFF", "-DCMAKE_BUILD_TYPE=Release", f"-DPython_EXECUTABLE={sys.executable}"]
        run("cmake", "-S", str(tree), "-B", str(objects), f"-Dpybind11_DIR={pybind11.strip()}", *options)
        run("cmake", "--build", str(objects))
        shutil.copy(next(objects.glob("_C*.so")), tree / "xlstm_cuda")
    return tree


def run(*command: str) -> None:
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commit", help="what to compare with")
    parser.add_argument("--runs", type=int, default=12)
    options = parser.parse_args()
    trees = {options.commit: build(options.commit), commit(): ROOT}
    processes = {
        name: subprocess.Popen([sys.executable, "-c", MODEL, str(tree)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name, tree in trees.items()
    }
    times: dict[tuple[str, str], list[float]] = {(name, call): [] for name in processes for call in CALLS}
    for process in processes.values():
        assert process.stdout and process.stdout.readline() == "ready\n", "the model does not run"
    for _ in range(options.runs):
        for (name, call), taken in times.items():
            process = processes[name]
            assert process.stdin and process.stdout
            print(call, file=process.stdin, flush=True)
            taken.append(1e3 * float(process.stdout.readline()) / CALLS[call])
    for process in processes.values():
        process.communicate()
    for call in CALLS:
        before, after = (times[name, call] for name in processes)
        ratio = statistics.median(a / b for a, b in zip(before, after))
        spread = [
            f"{name} {statistics.median(t):.2f} ms ({min(t):.2f} to {max(t):.2f})" for name, t in zip(processes, (before, after))
        ]
        print(f"{call}: {', '.join(spread)}, {options.runs} runs by turns: {ratio:.2f} times as fast")
    run("git", "worktree", "remove", "--force", str(trees[options.commit]))


if __name__ == "__main__":
    main()
