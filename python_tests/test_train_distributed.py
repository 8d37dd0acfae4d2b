"""`torchrun -m xlstm_cuda train`: several processes learn what one learns, continue each other's runs, and end in one message."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ranks
import torch
from test_train import assert_one_line, assert_same
from torch import distributed

from xlstm_cuda.cli import checkpoint, main
from xlstm_cuda.cli import distributed as distributed_module
from xlstm_cuda.cli import training as training_module
from xlstm_cuda.cli.device import Device
from xlstm_cuda.cli.distributed import World
from xlstm_cuda.cli.errors import UsageError
from xlstm_cuda.cli.settings import Settings
from xlstm_cuda.cli.text import Corpus, load
from xlstm_cuda.cli.training import Layout, Training

ROOT = Path(__file__).parents[1]
TINY = (
    "--steps 12 --batch-size 12 --context-length 8 --embedding-dim 16 --num-blocks 2 --num-heads 2 --slstm-at 1"
    " --warmup-steps 2 --eval-every 4 --eval-bytes 150 --sample-length 0 --threads 1 --data text.txt --out run"
).split()
LAST = Path("run", checkpoint.LAST)
pytestmark = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="this torch has no gloo"
)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    """Runs go to a fresh folder with a text."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_bytes(b"the quick brown fox jumps over the lazy dog. " * 40)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict:
    """The last checkpoint of one process."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "text.txt").write_bytes(b"the quick brown fox jumps over the lazy dog. " * 40)
    assert main(["train", *TINY, "--data", str(folder / "text.txt"), "--out", str(folder / "run")]) == 0
    return checkpoint.load(folder / LAST)


def said_once(ends: list[ranks.End], code: int = 1) -> str:
    """The one line that one of the processes wrote to stderr; none of them ended well."""
    assert all(end.code == code for end in ends), ends
    lines = [line for end in ends for line in end.err.splitlines() if "OMP_NUM_THREADS" not in line]
    assert len(lines) == 1, ends
    return lines[0]


def assert_learnt_the_same(got: dict, expected: dict) -> None:
    """Equal to rounding: losses, held-out figures, moments; and weights, where the gradient was more than rounding."""
    for name in ("training", "held_out"):
        torch.testing.assert_close(
            torch.tensor(got["history"][name]), torch.tensor(expected["history"][name]), rtol=1e-5, atol=1e-5
        )
    assert got["optimizer"]["param_groups"] == expected["optimizer"]["param_groups"]
    names = list(got["model"])
    assert names == list(expected["model"])
    ours, theirs = got["optimizer"]["state"], expected["optimizer"]["state"]
    assert ours.keys() == theirs.keys() and len(ours) == len(names)
    for number, moments in theirs.items():
        torch.testing.assert_close(ours[number], moments, rtol=1e-4, atol=2e-6)
    total = torch.stack([value.abs().sum() for value in expected["model"].values()]).sum()
    apart = torch.stack([(got["model"][name] - expected["model"][name]).abs().sum() for name in names]).sum()
    assert apart < 1e-4 * total, apart / total  # AdamW moves a weight of no gradient too, whichever way its rounding points


# ---------------------------------------------------------------- what is learnt


@pytest.mark.parametrize(
    ("count", "options"),
    [(2, []), (2, ["--shard"]), (3, ["--accumulate", "2"]), (2, ["--shard", "--accumulate", "3", "--recompute"])],
    ids=["replicas", "shards", "3_replicas_accumulate", "shards_accumulate_recompute"],
)
def test_several_processes_learn_what_one_learns(alone, count, options):
    ends = ranks.run(count, *TINY, *options)
    assert [end.code for end in ends] == [0] * count, ends
    saved = checkpoint.load(LAST)
    assert_learnt_the_same(saved, alone)
    assert saved["layout"][:2] == [count, "shards" if "--shard" in options else "replicas"]
    assert "bits/byte held out" in ends[0].out and f"processes {count}" in ends[0].out
    assert all(end.out == "" for end in ends[1:])
    assert sorted(os.listdir("run")) == [".lock", "best.pt", "last.pt", "loss.png"]


@pytest.mark.parametrize("options", [[], ["--shard"]], ids=["replicas", "shards"])
def test_a_process_without_a_row_of_the_held_out_text_takes_part(options):
    common = [*TINY, "--eval-bytes", "10", "--steps", "2"]
    assert main(["train", *common, "--out", "one"]) == 0
    assert all(end.code == 0 for end in ranks.run(2, *common, *options))
    one, two = (checkpoint.load(Path(name, "last.pt"))["history"]["held_out"] for name in ("one", "run"))
    assert two[0][1] == pytest.approx(one[0][1], rel=1e-6)


def test_shards_in_bfloat16_follow_autocast():
    assert main(["train", *TINY, "--dtype", "bfloat16"]) == 0
    expected = checkpoint.load(LAST)
    assert all(end.code == 0 for end in ranks.run(2, *TINY, "--dtype", "bfloat16", "--shard", "--out", "shards"))
    got = checkpoint.load(Path("shards/last.pt"))
    assert {value.dtype for value in got["model"].values()} == {torch.float32}
    apart = [abs(a[1] - b[1]) for a, b in zip(got["history"]["held_out"], expected["history"]["held_out"])]
    assert 0 < max(apart) < 0.05, apart  # of 6 to 8 bits per byte; float32 is as far from either


@pytest.mark.parametrize("options", [["--recompute"], ["--accumulate", "3"]], ids=" ".join)
def test_one_process_learns_the_same_in_less_memory(alone, options):
    assert main(["train", *TINY, *options]) == 0
    saved = checkpoint.load(LAST)
    assert_learnt_the_same(saved, alone)
    if "--recompute" in options:
        assert_same(saved, {**alone, "text": saved["text"]})


def saved_bytes(layout: Layout) -> int:
    """Of the tensors that a step's backward passes keep at once, weights left out."""
    corpus = Corpus.of_bytes(*(part[:] for part in load("text.txt").split()))
    settings = Settings(context_length=32, embedding_dim=16, num_blocks=3, num_heads=2, slstm_at=(1,), batch_size=4)
    run = Training(settings, corpus, Device(torch.device("cpu")), layout=layout)
    weights = {weight.data_ptr() for weight in run.model.parameters()}
    kept = []

    def keep(tensor):
        kept.append(0 if tensor.data_ptr() in weights else tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run.train_step()
    return sum(kept) // layout.accumulate


def test_recompute_and_accumulate_keep_less():
    everything = saved_bytes(Layout())
    # A block keeps its input alone; what is left is the embedding, the last norm and the logits. The native mLSTM layer
    # computes cheap activations again by itself, so that the blocks' share is smaller than with modules.
    assert 0 < saved_bytes(Layout(recompute=True)) < 0.4 * everything
    assert saved_bytes(Layout(accumulate=4)) < 0.3 * everything


def test_recompute_keeps_dropout():
    options = ["--dropout", "0.2", "--steps", "3"]
    assert main(["train", *TINY, *options]) == 0
    assert main(["train", *TINY, *options, "--recompute", "--out", "again"]) == 0
    assert_same(checkpoint.load(LAST), checkpoint.load(Path("again/last.pt")))


def test_passes_share_out_the_batch():
    class Process(World):
        size = 3

    rows = []
    for rank in range(3):
        Process.rank = rank
        rows.append(Layout(accumulate=2).passes(12, Process()))
    assert [list(one) for own in rows for one in own] == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11]]
    with pytest.raises(UsageError, match=r"--batch-size: got 8, expected a multiple of 6 \(3 processes times --accumulate 2\)"):
        Layout(accumulate=2).passes(8, Process())


# ---------------------------------------------------------------- one run, continued in another way


def test_a_run_goes_from_one_process_to_several_and_back(alone, monkeypatch, capfd):
    """One process, two with replicas, two with shards, one: each continues what the one before had saved."""
    real = Training.train_step

    def step(self):
        if self.step == 5:
            raise KeyboardInterrupt
        real(self)

    monkeypatch.setattr(Training, "train_step", step)
    assert main(["train", *TINY, "--checkpoint-every", "3"]) == 1
    monkeypatch.setattr(Training, "train_step", real)
    assert checkpoint.load(LAST)["step"] == 4
    resume = ["--resume", "--out", "run", "--sample-length", "0", "--checkpoint-every", "1"]
    for options, until in (([], 6), (["--shard"], 9)):
        run = ranks.Ranks(2, *resume, *options)
        run.wait_for_step("run", until)
        run.kill()
        note = run.ends()[0].err
        assert "it goes on equal to rounding, not bit for bit" in note
    saved = checkpoint.load(LAST)
    assert 9 <= saved["step"] < 12 and saved["layout"][1] == "shards"
    assert main(["train", *resume]) == 0
    assert "was laid out as 2 x shards, 1 passes a step, now 1 x one process" in capfd.readouterr().err
    assert_learnt_the_same(checkpoint.load(LAST), alone)


@pytest.mark.parametrize(("count", "options"), [(3, []), (2, ["--shard"])], ids=["3_replicas", "2_shards"])
def test_kill_and_resume_in_as_many_processes_is_bitwise(count, options):
    common = [*TINY, "--dropout", "0.1", "--checkpoint-every", "1", *options]
    assert all(end.code == 0 for end in ranks.run(count, *common, "--out", "straight"))
    run = ranks.Ranks(count, *common)
    run.wait_for_step("run", 5)
    run.kill()
    run.ends()
    assert checkpoint.load(LAST)["step"] < 12
    ends = ranks.run(count, "--resume", "--out", "run", "--sample-length", "0", *options)
    assert all(end.code == 0 and "note" not in end.err for end in ends), ends
    assert_same(checkpoint.load(LAST), checkpoint.load(Path("straight/last.pt")))
    assert_same(checkpoint.load(Path("run/best.pt")), checkpoint.load(Path("straight/best.pt")))


def test_processes_draw_dropout_of_their_own():
    assert all(end.code == 0 for end in ranks.run(2, *TINY, "--dropout", "0.5", "--steps", "2"))
    saved = checkpoint.load(LAST)
    (second,) = saved["random_of_others"]
    assert not torch.equal(saved["random"]["cpu"], second["cpu"])


def test_a_checkpoint_from_before_there_were_processes_is_continued(capfd):
    assert main(["train", *TINY]) == 0
    saved = checkpoint.load(LAST)
    for name in ("layout", "random_of_others", "tokenizer"):
        del saved[name]
    torch.save(saved, LAST)
    assert main(["train", "--resume", "--out", "run", "--sample-length", "0"]) == 0
    assert "note" not in capfd.readouterr().err


@pytest.mark.parametrize("value", [None, "text", ["3"], {"a": [1]}, float("nan")], ids=repr)
@pytest.mark.parametrize("key", ["layout", "random_of_others"])
def test_resume_from_other_content(capsys, key, value):
    assert main(["train", *TINY, "--steps", "1"]) == 0
    torch.save({**checkpoint.load(LAST), key: value}, LAST)
    capsys.readouterr()
    code = main(["train", "--resume", "--out", "run", "--sample-length", "0"])
    if (key, value) == ("random_of_others", ["3"]):  # one process does not look at those of others
        assert code == 0
    else:
        assert code == 1
        assert_one_line(capsys.readouterr().err, "checkpoint run/last.pt is not one of a run", key)


def test_random_state_of_another_process_that_is_none():
    assert main(["train", *TINY]) == 0
    torch.save({**checkpoint.load(LAST), "step": 4, "layout": [2, "replicas", 1], "random_of_others": ["3"]}, LAST)
    said = said_once(ranks.run(2, "--resume", "--out", "run"))
    assert "checkpoint run/last.pt does not fit its settings" in said


# ---------------------------------------------------------------- ends


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_ends_the_run_with_one_message(victim):
    run = ranks.Ranks(3, *TINY, "--steps", "2000", "--checkpoint-every", "2")
    run.wait_for_step("run", 2)
    run.kill(victim)
    ends = run.ends()
    assert ends.pop(victim).code == -signal.SIGKILL
    said = said_once(ends)
    assert "another process of this run has ended, after step" in said
    step = int(re.search(r"the checkpoint of step (\d+) is intact", said)[1])
    assert "continue with: torchrun --nproc-per-node 3 -m xlstm_cuda train --resume --out run" in said
    assert checkpoint.load(LAST)["step"] >= step


def test_a_restarted_run_goes_on():
    """As torchrun --max-restarts starts it again, with the same options."""
    again = {"TORCHELASTIC_RESTART_COUNT": "1"}
    run = ranks.Ranks(2, *TINY, "--checkpoint-every", "1")
    run.wait_for_step("run", 5)
    run.kill(1)
    run.ends()
    ends = ranks.run(2, *TINY, variables=again)
    assert all(end.code == 0 for end in ends) and "folder    run, resumed at step " in ends[0].out, ends
    assert all(end.code == 0 for end in ranks.run(2, *TINY, "--out", "fresh", variables=again))
    said = said_once(ranks.run(2, *TINY[:-2], variables=again), 2)
    assert "--out: expected with torchrun's --max-restarts" in said


def _diverge(rank: int) -> None:
    real = Training.train_step

    def step(self):
        real(self)
        if self.step == 6 and rank == 1:
            with torch.no_grad():
                next(self.model.parameters()).to_local().view(-1)[0] = float("nan")

    Training.train_step = step


def test_divergence_in_one_process_is_told_once():
    ends = ranks.run(2, *TINY, "--shard", before=_diverge)
    assert "the training diverged" in said_once(ends)
    assert checkpoint.load(LAST)["step"] == 4


def _full_disk(rank: int) -> None:
    if rank == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))  # the checkpoint of step 0 has no moments yet, and fits


def test_a_full_disk_of_the_first_process_is_told_once():
    said = said_once(ranks.run(2, *TINY, before=_full_disk))
    assert "cannot write run/best.pt: File too large; the checkpoint of step 0 is intact, continue with: torchrun" in said
    assert checkpoint.load(LAST)["step"] == 0


def _out_of_memory(rank: int) -> None:
    def step(self):
        torch.empty(2**60) if rank == 1 else training_module.torch.distributed.barrier()

    Training.train_step = step


def test_out_of_memory_in_one_process_is_told_once():
    assert "out of memory" in said_once(ranks.run(2, *TINY, before=_out_of_memory))


@pytest.mark.parametrize(
    ("changed", "said", "code"),
    [
        (["--batch-size", "5"], "--batch-size: got 5, expected a multiple of 2 (2 processes)", 2),
        (["--data", "missing.txt"], "--data: there is no file missing.txt", 1),
        (["--out", "text.txt/run"], "--out: cannot write to text.txt/run", 1),
        (["--resume", "--out", "nowhere"], "there is no checkpoint nowhere/last.pt", 1),
        (["--steps", "0"], "argument --steps: got '0'", 2),
        (["--embedding-dim", "17"], "--embedding-dim: got 17", 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_of_all_is_told_once(changed, said, code):
    assert said in said_once(ranks.run(2, *TINY, *changed), code)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (["--learning-rate", "0.1"], "differ in --learning-rate: process 0 has 0.004, process 1 has 0.1"),
        (["--data", "another.txt"], "differ in the length of --data: process 0 has 1800, process 1 has 900"),
        (["--recompute"], "differ in --recompute: process 0 has False, process 1 has True"),
        (["--data", "missing.txt"], "--data: there is no file missing.txt"),
    ],
    ids=" ".join,
)
def test_processes_that_differ_are_told_once(other, said):
    Path("another.txt").write_bytes(b"the quick brown fox " * 45)
    assert said in said_once(ranks.run(2, TINY, [*TINY, *other]))
    assert not LAST.exists()


def _another_version(rank: int) -> None:
    if rank == 1:
        distributed_module.code_digest = lambda: "another"


def test_processes_with_other_code_are_told_once():
    said = said_once(ranks.run(2, *TINY, before=_another_version))
    assert (
        "the processes of this run differ in the code of xlstm_cuda: process 0 has " in said and "process 1 has another" in said
    )


def test_shard_outside_torchrun(capsys):
    assert main(["train", *TINY, "--shard"]) == 2
    assert_one_line(capsys.readouterr().err, "--shard: expected under torchrun: torchrun --nproc-per-node 2 -m xlstm_cuda train")


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK: got 'x', expected a number, as torchrun sets it"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "the 2 processes did not find each other"),
    ],
)
def test_variables_that_torchrun_would_not_set(monkeypatch, capsys, variables, said):
    for name in ("MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["train", *TINY]) == 1
    assert_one_line(capsys.readouterr().err, said)


def test_torch_without_gloo(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distributed, "is_gloo_available", lambda: False)
    assert main(["train", *TINY]) == 1
    assert_one_line(capsys.readouterr().err, "this PyTorch cannot train in several processes: it was built without gloo")


# ---------------------------------------------------------------- as a user starts it


def test_ctrl_c_under_torchrun_leaves_a_checkpoint_and_how_to_continue():
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "xlstm_cuda", "train", *TINY, "--steps", "3000"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    process = subprocess.Popen(
        [sys.executable, *command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 300
    while not Path("run/best.pt").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 1
    assert out.count("processes 2, replicas") == 1
    (said,) = (line for line in error.splitlines() if line.startswith("xlstm_cuda: "))  # torchrun adds lines of its own
    step, command = re.fullmatch(r"xlstm_cuda: error: stopped at step (\d+) of 3000; continue with: (.*)", said).groups()
    assert command == "torchrun --nproc-per-node 2 -m xlstm_cuda train --resume --out run"
    assert checkpoint.load(LAST)["step"] == int(step) > 0
