"""`python -m xlstm_cuda train`: learns, resumes bit for bit after any kind of end, and never loses its last good checkpoint."""

import builtins
import errno
import os
import re
import resource
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from xlstm_cuda.cli import checkpoint, main, plot, runs
from xlstm_cuda.cli import train as train_command
from xlstm_cuda.cli import training as training_module
from xlstm_cuda.cli.device import Device
from xlstm_cuda.cli.errors import CommandError
from xlstm_cuda.cli.progress import Progress, duration
from xlstm_cuda.cli.settings import Settings
from xlstm_cuda.cli.text import Corpus, load
from xlstm_cuda.cli.training import Training, held_out_bits, learning_rate

ROOT = Path(__file__).parents[1]
TINY = (
    "--steps 12 --batch-size 2 --context-length 16 --embedding-dim 16 --num-blocks 2 --num-heads 2 --slstm-at 1 --dropout 0.1"
    " --warmup-steps 2 --eval-every 4 --eval-bytes 100 --sample-length 0 --threads 1"
).split()
SETTINGS = Settings(context_length=16, embedding_dim=16, num_blocks=2, num_heads=2, slstm_at=(1,))


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    """Runs go to a fresh folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def text(tmp_path) -> str:
    path = tmp_path / "text.txt"
    path.write_bytes(b"the quick brown fox jumps over the lazy dog. " * 40)
    return str(path)


def train(*options: str) -> int:
    return main(["train", *TINY, *options])


def start(*options: str, **more) -> subprocess.Popen:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "xlstm_cuda", "train", *TINY, *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


def assert_same(a, b, where: str = "checkpoint") -> None:
    """Bitwise equality of two checkpoints; the clock may differ."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a.keys() - {"seconds"}:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for index, pair in enumerate(zip(a, b)):
            assert_same(*pair, f"{where}[{index}]")
    else:
        assert a == b, where


def assert_one_line(error: str, *parts: str) -> None:
    """One message on stderr, no traceback."""
    assert len(error.splitlines()) == 1, error
    for part in parts:
        assert part in error


def put(path: str, content: bytes | str | None) -> None:
    """A file with this content, a "folder", or with None nothing."""
    if content == "folder":
        os.mkdir(path)
    elif content is not None:
        Path(path).write_bytes(content)


def wait_for_step(folder: str, step: int, process: subprocess.Popen) -> None:
    """Until the checkpoint in the folder has come this far. Every read on the way must find a whole checkpoint."""
    path = Path(folder, checkpoint.LAST)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if path.exists() and checkpoint.load(path)["step"] >= step:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.kill()
    raise AssertionError(f"step {step} was not reached")


# ---------------------------------------------------------------- the run


def test_train_learns_and_leaves_its_files(text, capsys):
    assert train("--data", text, "--out", "run", "--steps", "60", "--learning-rate", "0.02", "--sample-length", "20") == 0
    shown = capsys.readouterr().out
    saved = checkpoint.load(Path("run/last.pt"))
    held_out = [bits for _, bits in saved["history"]["held_out"]]
    assert [step for step, _ in saved["history"]["held_out"]] == list(range(4, 61, 4))
    assert held_out[-1] < held_out[0] - 1
    best = checkpoint.load(Path("run/best.pt"))
    assert best["step"] == saved["history"]["held_out"][held_out.index(min(held_out))][0]
    assert Path("run/loss.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(os.listdir("run")) == [".lock", "best.pt", "last.pt", "loss.png"]
    for part in ("1,620 bytes to learn, 180 held out", "xLSTM[1:1]", "bits/byte", "tokens/s", "3-gram", "sample", "run/last.pt"):
        assert part in shown
    assert f"{saved['ngrams'][2]:.3f}" in shown
    assert f"{held_out[-1]:.3f}" in shown


def test_train_numbers_its_run_folders(text):
    assert train("--data", text, "--steps", "1") == 0
    assert train("--data", text, "--steps", "1") == 0
    assert sorted(os.listdir("runs")) == ["001", "002"]
    assert runs.latest_folder() == Path("runs/002")


def test_train_twice_gives_the_same_bits(text):
    assert train("--data", text, "--out", "a") == 0
    assert train("--data", text, "--out", "b") == 0
    assert_same(checkpoint.load(Path("a/last.pt")), checkpoint.load(Path("b/last.pt")))
    assert train("--data", text, "--out", "c", "--seed", "1") == 0
    assert checkpoint.load(Path("c/last.pt"))["history"] != checkpoint.load(Path("a/last.pt"))["history"]


def test_train_in_bfloat16(text):
    assert train("--data", text, "--out", "run", "--steps", "2", "--dtype", "bfloat16") == 0
    saved = checkpoint.load(Path("run/last.pt"))
    assert {tensor.dtype for tensor in saved["model"].values()} == {torch.float32}


def test_learning_rate_warms_up_and_falls_to_zero():
    settings = Settings(steps=100, warmup_steps=10, learning_rate=1.0)
    rates = [learning_rate(settings, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == max(rates) == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 1e-3


@pytest.mark.parametrize("length", [5, 40, 300, 333])
def test_validation_is_the_mean_over_every_held_out_byte(length):
    text = load(None)
    training, _ = text.split()
    before, held_out = training[-17:], text.split()[1][:length]
    run = Training(SETTINGS, Corpus.of_bytes(training, held_out), Device(torch.device("cpu")))
    got = held_out_bits(run.model, before, held_out, run.device, run.arithmetic())
    rows = max(1, min(16, length // 17))
    row_length = -(-length // rows)
    whole = torch.cat([before, held_out]).long()
    total = 0.0
    for row in range(rows):  # every row alone, in one pass
        content = whole[row * row_length : row * row_length + 17 + row_length]
        with torch.no_grad():
            p = run.model(content[None, :-1])[0].double().log_softmax(-1)
        total -= float(p.gather(1, content[1:, None])[16:].sum())
    assert got == pytest.approx(total / length / 0.6931471805599453, rel=1e-5)


# ---------------------------------------------------------------- resume


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A run that nothing disturbed, and its text."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    text = folder / "text.txt"
    text.write_bytes(b"the quick brown fox jumps over the lazy dog. " * 40)
    assert main(["train", *TINY, "--steps", "40", "--data", str(text), "--out", str(folder / "run")]) == 0
    return str(text), checkpoint.load(folder / "run/last.pt"), checkpoint.load(folder / "run/best.pt")


@pytest.mark.parametrize("steps", [(1,), (7, 8, 23), (39,)], ids=lambda steps: "kill_at_" + "_".join(map(str, steps)))
def test_kill_and_resume_equals_the_uninterrupted_run_bitwise(uninterrupted, steps):
    text, last, best = uninterrupted
    options = ["--data", text, "--out", "run", "--checkpoint-every", "1", "--steps", "40"]
    for number, step in enumerate(steps):
        process = start(*options, *(["--resume"] if number else []))
        wait_for_step("run", step, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert main(["train", "--resume", "--out", "run", "--threads", "1", "--sample-length", "0"]) == 0
    assert_same(checkpoint.load(Path("run/last.pt")), last)
    assert_same(checkpoint.load(Path("run/best.pt")), best)


@pytest.mark.parametrize("step", [1, 7, 13])
def test_restored_state_goes_on_bitwise(monkeypatch, step, tmp_path):
    monkeypatch.setattr(training_module, "HISTORY_POINTS", 3)  # a point every 5 steps: saved in the middle of a mean
    settings = replace(SETTINGS, steps=16, dropout=0.3)
    training, held_out = load(None).split()
    corpus = Corpus.of_bytes(training, held_out[:50])
    straight = Training(settings, corpus, Device(torch.device("cpu")))
    for _ in range(step):
        straight.train_step()
    saved = tmp_path / "saved.pt"
    checkpoint.write(saved, checkpoint.serialize(straight.state()))
    ends = []
    for run in (straight, Training(settings, corpus, Device(torch.device("cpu")))):
        if run is straight:
            run.device.set_random_state(checkpoint.load(saved)["random"])  # building the other one drew random numbers
        else:
            run.restore(checkpoint.load(saved))
        while not run.finished:
            run.train_step()
        run.validate()
        ends.append(run.state())
    assert len(ends[0]["history"]["training"]) == 3
    assert_same(*ends)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_interrupt_saves_says_how_to_resume_and_resumes_bitwise(uninterrupted, number):
    text, last, best = uninterrupted
    process = start("--data", text, "--out", "run", "--checkpoint-every", "3", "--steps", "40")
    wait_for_step("run", 5, process)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert_one_line(error, "stopped at step ", " of 40; continue with: python -m xlstm_cuda train --resume --out run")
    stopped = int(re.search(r"stopped at step (\d+)", error)[1])
    assert checkpoint.load(Path("run/last.pt"))["step"] == stopped < 40
    assert Path("run/loss.png").exists()
    assert main(["train", "--resume", "--out", "run", "--threads", "1", "--sample-length", "0"]) == 0
    assert_same(checkpoint.load(Path("run/last.pt")), last)
    assert_same(checkpoint.load(Path("run/best.pt")), best)


def test_interrupt_before_the_first_step(text, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(train_command, "load", interrupt)
    assert train("--data", text) == 1
    assert_one_line(capsys.readouterr().err, "interrupted")


def test_resume_of_a_finished_run_changes_nothing(text, capsys):
    assert train("--data", text, "--out", "run") == 0
    before = Path("run/last.pt").read_bytes()
    assert main(["train", "--resume", "--out", "run", "--sample-length", "0"]) == 0
    assert Path("run/last.pt").read_bytes() == before
    assert "resumed at step 12" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "got", "expected"),
    [
        ("--embedding-dim", "32", "16"),
        ("--slstm-at", "all", "1"),
        ("--slstm-at", "none", "1"),
        ("--steps", "13", "12"),
        ("--learning-rate", "0.1", "0.004"),
        ("--dtype", "bfloat16", "float32"),
    ],
)
def test_resume_with_another_setting_names_it(text, capsys, option, got, expected):
    assert train("--data", text, "--out", "run", "--learning-rate", "0.004") == 0
    before = Path("run/last.pt").read_bytes()
    capsys.readouterr()
    assert main(["train", "--resume", "--out", "run", option, got]) == 1
    shown = "0,1" if got == "all" else got
    assert_one_line(capsys.readouterr().err, f"{option}: got {shown}, expected {expected}, the setting of the run in run")
    assert Path("run/last.pt").read_bytes() == before


def test_resume_with_another_text_names_both(text, capsys):
    assert train("--data", text, "--out", "run") == 0
    Path("other.txt").write_bytes(b"another text " * 50)
    capsys.readouterr()
    assert main(["train", "--resume", "--out", "run", "--data", "other.txt"]) == 1
    assert_one_line(
        capsys.readouterr().err, "--data: got other.txt (650 bytes", "expected the text of the run in run", "1800 bytes"
    )


def test_resume_without_a_run(capsys):
    assert main(["train", "--resume"]) == 1
    assert_one_line(capsys.readouterr().err, "no run found in")
    assert main(["train", "--resume", "--out", "nowhere"]) == 1
    assert_one_line(capsys.readouterr().err, "there is no checkpoint nowhere/last.pt")


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "there is no file text"), ("folder", "is a folder"), (b"", "is empty"), (b"too short", "needs at least 19")],
    ids=["missing", "folder", "empty", "short"],
)
def test_bad_data_is_one_message_and_no_folder(capsys, content, said):
    put("text", content)
    assert train("--data", "text", "--out", "run") == 1
    assert_one_line(capsys.readouterr().err, "--data", said)
    assert not os.path.exists("run")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_unreadable_data_is_one_message(text, capsys):
    os.chmod(text, 0)
    assert train("--data", text) == 1
    assert_one_line(capsys.readouterr().err, "--data: cannot read", "Permission denied")


@pytest.mark.parametrize(
    "options",
    [
        ["--steps", "0"],
        ["--steps", "many"],
        ["--batch-size", "-1"],
        ["--batch-size", "4000000000"],
        ["--learning-rate", "0"],
        ["--learning-rate", "nan"],
        ["--dropout", "1"],
        ["--slstm-at", "1;2"],
        ["--device", "tpu"],
        ["--backend", "triton"],
        ["--dtype", "float8"],
        ["--threads", "0"],
        ["--no-such-option"],
    ],
    ids=" ".join,
)
def test_usage_error_names_the_option(capsys, options):
    with pytest.raises(SystemExit) as end:
        main(["train", *options])
    assert end.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert options[0] in error and "error" in error


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--slstm-at", "2"], "--slstm-at: got block 2, expected 0 to 1"),
        (["--embedding-dim", "17"], "--embedding-dim: got 17, expected a multiple of --num-heads 2"),
    ],
)
def test_options_that_do_not_go_together(text, capsys, options, said):
    assert train("--data", text, "--out", "run", *options) == 2
    assert_one_line(capsys.readouterr().err, said)
    assert not os.path.exists("run")


def test_out_of_memory_is_one_message(text, capsys, monkeypatch):
    def allocate(*_):
        torch.empty(2**60)

    monkeypatch.setattr(Training, "train_step", allocate)
    assert train("--data", text, "--out", "run") == 1
    assert_one_line(capsys.readouterr().err, "out of memory", "--batch-size")
    assert checkpoint.load(Path("run/last.pt"))["step"] == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_device_that_is_not_there(text, capsys):
    assert train("--data", text, "--device", "cuda") == 1
    assert_one_line(capsys.readouterr().err, "--device: got cuda, but PyTorch sees no CUDA device")


def test_out_that_is_a_file(text, capsys):
    Path("run").touch()
    assert train("--data", text, "--out", "run") == 1
    assert_one_line(capsys.readouterr().err, "--out: cannot write to run")


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder that not even root can write")
def test_out_that_cannot_be_written(text, capsys):
    assert train("--data", text, "--out", "/proc/self/run") == 1
    assert_one_line(capsys.readouterr().err, "--out: cannot write to /proc/self/run")


def test_out_that_holds_a_run_is_not_overwritten(text, capsys):
    assert train("--data", text, "--out", "run") == 0
    before = Path("run/last.pt").read_bytes()
    capsys.readouterr()
    assert train("--data", text, "--out", "run") == 1
    assert_one_line(capsys.readouterr().err, "run already holds last.pt", "--resume")
    assert Path("run/last.pt").read_bytes() == before


def test_out_that_another_run_is_writing_to(text, capsys):
    with runs.Lock(Path("run")):
        assert train("--data", text, "--out", "run") == 1
    assert_one_line(capsys.readouterr().err, "another training run is writing to run")


# ---------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("fraction", [0, 0.01, 0.5, 0.99], ids=lambda fraction: f"{fraction:.0%}")
def test_truncated_checkpoint_is_recognised(text, capsys, fraction):
    assert train("--data", text, "--out", "run") == 0
    content = Path("run/last.pt").read_bytes()
    Path("run/last.pt").write_bytes(content[: int(fraction * len(content))])
    capsys.readouterr()
    assert main(["train", "--resume", "--out", "run"]) == 1
    assert_one_line(capsys.readouterr().err, "run/last.pt is not a checkpoint, or only the beginning of one")


def test_damaged_checkpoint_is_recognised(text, capsys):
    assert train("--data", text, "--out", "run") == 0
    content = bytearray(Path("run/last.pt").read_bytes())
    with zipfile.ZipFile("run/last.pt") as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    content[largest.header_offset + 200] ^= 1  # inside the tensor: headers are padded to 64 bytes
    Path("run/last.pt").write_bytes(content)
    capsys.readouterr()
    assert main(["train", "--resume", "--out", "run"]) == 1
    assert_one_line(capsys.readouterr().err, "checkpoint run/last.pt is damaged")


class _Code:
    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.parametrize(
    "content", [torch.zeros(3), {"format": "another"}, _Code(), "text"], ids=["tensor", "foreign", "code", "string"]
)
def test_foreign_checkpoint_is_recognised_and_not_executed(capsys, content):
    os.mkdir("run")
    torch.save(content, "run/last.pt")
    assert main(["train", "--resume", "--out", "run"]) == 1
    assert_one_line(capsys.readouterr().err, "run/last.pt is not a checkpoint of `python -m xlstm_cuda train`")
    assert not os.path.exists("executed")


def test_checkpoint_of_another_version_is_recognised(text, capsys):
    assert train("--data", text, "--out", "run") == 0
    saved = checkpoint.load(Path("run/last.pt"))
    torch.save({**saved, "version": 2}, "run/last.pt")
    capsys.readouterr()
    assert main(["train", "--resume", "--out", "run"]) == 1
    assert_one_line(capsys.readouterr().err, "got checkpoint version 2, expected 1")
    torch.save({**saved, "settings": {**saved["settings"], "momentum": 1}}, "run/last.pt")
    assert main(["train", "--resume", "--out", "run"]) == 1
    assert_one_line(capsys.readouterr().err, "setting 'momentum' is unknown here")


def test_weights_of_another_model_are_recognised(text, capsys):
    assert train("--data", text, "--out", "run") == 0
    saved = checkpoint.load(Path("run/last.pt"))
    torch.save({**saved, "settings": {**saved["settings"], "embedding_dim": 32}}, "run/last.pt")
    capsys.readouterr()
    assert main(["train", "--resume", "--out", "run"]) == 1
    assert_one_line(capsys.readouterr().err, "run/last.pt does not fit its settings", "size mismatch")


def test_checkpoint_holds_no_code(text):
    assert train("--data", text, "--out", "run") == 0
    assert torch.load("run/best.pt", weights_only=True)["step"] > 0


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
@pytest.mark.parametrize("after", [0, 3], ids=["at_once", "later"])
def test_full_disk_keeps_the_last_good_checkpoint(text, capsys, monkeypatch, call, after):
    """The disk is full from the given call on, when ``after`` checkpoints were written."""
    written = 0

    def failing(real):
        def stand_in(*arguments, **options):
            nonlocal written
            if ".partial" in str(arguments[0]) or call == "fsync":
                written += 1
                if written > after:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*arguments, **options)

        return stand_in

    if call == "open":
        monkeypatch.setattr(builtins, "open", failing(builtins.open))
    else:
        monkeypatch.setattr(os, call, failing(getattr(os, call)))
    assert train("--data", text, "--out", "run", "--checkpoint-every", "1") == 1
    monkeypatch.undo()
    monkeypatch.chdir(Path(text).parent)
    error = capsys.readouterr().err
    assert_one_line(error, "cannot write run/last.pt" if call != "fsync" else "cannot write run/", "No space left on device")
    assert not list(Path("run").glob("*.partial"))
    if after == 0:
        assert not os.path.exists("run/last.pt") or call == "fsync"
        return
    step = int(re.search(r"the checkpoint of step (\d+) is intact, continue with:", error)[1])
    assert checkpoint.load(Path("run/last.pt"))["step"] >= step
    assert main(["train", "--resume", "--out", "run", "--sample-length", "0"]) == 0
    assert checkpoint.load(Path("run/last.pt"))["step"] == 12


def test_file_size_limit_keeps_the_last_good_checkpoint(text):
    """A real write error: the checkpoint of step 0 fits under the limit, later ones carry the optimizer's moments and do not."""
    assert train("--data", text, "--out", "small", "--steps", "1") == 0
    limit = os.path.getsize("small/last.pt") * 2 // 3
    process = start("--data", text, "--out", "run", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    _, error = process.communicate(timeout=120)
    assert process.returncode == 1
    assert_one_line(error, "cannot write run/best.pt: File too large", "the checkpoint of step 0 is intact, continue with:")
    assert checkpoint.load(Path("run/last.pt"))["step"] == 0
    assert main(["train", "--resume", "--out", "run", "--sample-length", "0"]) == 0


def test_divergence_is_told_and_keeps_the_last_good_checkpoint(text, capsys, monkeypatch):
    real = Training.train_step

    def step(self):
        real(self)
        if self.step == 7:
            with torch.no_grad():
                next(self.model.parameters()).view(-1)[0] = float("nan")

    monkeypatch.setattr(Training, "train_step", step)
    assert train("--data", text, "--out", "run") == 1
    assert_one_line(
        capsys.readouterr().err, "the training diverged", "at step 8", "--learning-rate", "the checkpoint of step 4 is intact"
    )
    assert checkpoint.load(Path("run/last.pt"))["step"] == 4


# ---------------------------------------------------------------- what the user sees


class _Screen:
    def __init__(self, is_terminal: bool) -> None:
        self.shown = ""
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        return self.is_terminal

    def write(self, text: str) -> None:
        self.shown += text

    def flush(self) -> None:
        pass


def test_progress_on_a_terminal_fits_one_line(monkeypatch):
    for columns in (20, 40, 80, 200):
        monkeypatch.setenv("COLUMNS", str(columns))
        screen = _Screen(is_terminal=True)
        progress = Progress(400, 0, 2048, stream=screen)
        progress.update(100, 1.5, force=True)
        progress.line("a line that stays")
        progress.update(200, 1.2, force=True)
        progress.close()
        assert "\n" not in screen.shown.replace("a line that stays\n", "")
        for drawn in screen.shown.replace("\n", "\r").split("\r"):
            assert len(drawn.replace("\x1b[K", "")) < columns
    assert "step 200/400 [===============>" in screen.shown
    assert "loss 1.200  1.731 bits/byte" in screen.shown and "tokens/s" in screen.shown and "left" in screen.shown


def test_progress_without_a_terminal_is_plain_lines_now_and_then():
    screen = _Screen(is_terminal=False)
    progress = Progress(400, 0, 2048, stream=screen)
    for step in range(1, 400):
        progress.update(step, 1.0)
    assert len(screen.shown.splitlines()) == 1
    assert "\r" not in screen.shown and "\x1b" not in screen.shown


def test_duration():
    assert [duration(s) for s in (0, 65, 7200)] == ["0:00", "1:05", "2:00:00"]


def test_plot_says_when_matplotlib_is_missing(text, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert train("--data", text, "--out", "run") == 0
    assert_one_line(capsys.readouterr().err, "matplotlib is not installed, so no loss curve is drawn")
    with pytest.raises(CommandError):
        plot.loss_curve("", {"training": [], "held_out": []}, [], 1)


def test_plot_of_an_empty_history_is_a_picture():
    pytest.importorskip("matplotlib")
    assert plot.loss_curve("nothing yet", {"training": [], "held_out": []}, [], 1).startswith(b"\x89PNG")
