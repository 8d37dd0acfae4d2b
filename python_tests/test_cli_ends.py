"""Every way in which `python -m xlstm_cuda` ends early: one line on stderr, no traceback, an exit code that is not 0."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from xlstm_cuda.cli import checkpoint, main
from xlstm_cuda.cli import train as train_command

ROOT = Path(__file__).parents[1]
TINY = (
    "--steps 2 --batch-size 1 --context-length 8 --embedding-dim 8 --num-blocks 2 --num-heads 2 --slstm-at 1 --eval-every 2"
    " --eval-bytes 20 --sample-length 0 --threads 1 --qkv-proj-blocksize 4"
).split()


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with text.txt and a small finished run."""
    folder = tmp_path_factory.mktemp("ends")
    (folder / "text.txt").write_bytes(b"the quick brown fox jumps over the lazy dog. " * 4)
    assert main(["train", *TINY, "--data", str(folder / "text.txt"), "--out", str(folder / "run")]) == 0
    return folder


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def one_line(error: str) -> bool:
    return len(error.splitlines()) == 1 and error.startswith("xlstm_cuda: ") and "Traceback" not in error


def ends(capsys, *arguments: str) -> tuple[int, str]:
    """Exit code and stderr of a command that must end in one line."""
    capsys.readouterr()
    try:
        code = main(arguments)
    except SystemExit as end:
        code = end.code
    error = capsys.readouterr().err
    assert code in (1, 2) and one_line(error), error
    return code, error


# ---------------------------------------------------------------- streams and signals, in a process of its own


def in_shell(command: str, **more) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHON": sys.executable}
    return subprocess.run(["sh", "-c", command], env=environment, stderr=subprocess.PIPE, text=True, timeout=120, **more)


@pytest.mark.parametrize(
    ("redirection", "said"),
    [
        ("info >&-", "standard output is closed"),
        ("info > /dev/full", "No space left on device"),
        ("generate --help > /dev/full", "No space left on device"),
        ("generate --checkpoint $RUN --prompt ab --length 5 > /dev/full", "No space left on device"),
        ("generate --checkpoint $RUN --prompt - <&-", "--prompt: standard input is closed"),
        ("generate --checkpoint $RUN --prompt - 0> /dev/null", "--prompt: cannot read standard input: Bad file descriptor"),
    ],
)
def test_streams_that_do_not_work(trained, redirection, said):
    ended = in_shell(f"RUN={trained / 'run'}; $PYTHON -m xlstm_cuda {redirection}")
    assert ended.returncode == 1 and one_line(ended.stderr) and said in ended.stderr, ended.stderr


def test_closed_stderr_is_no_traceback_on_stdout(trained):
    ended = in_shell("$PYTHON -m xlstm_cuda generate --checkpoint nowhere.pt 2>&-", stdout=subprocess.PIPE)
    assert (ended.returncode, ended.stdout) == (1, "")


@pytest.mark.parametrize(
    "command", [["-m", "xlstm_cuda"], ["-c", "import sys; sys.argv[0] = 'bin/xlstm-cuda'; import xlstm_cuda"]]
)
def test_interrupt_during_the_imports(tmp_path, command):
    (tmp_path / "torch").mkdir()
    slow = "import time\nprint('importing', flush=True)\ntry:\n    time.sleep(60)\nexcept BaseException:\n    raise ImportError\n"
    (tmp_path / "torch" / "__init__.py").write_text(slow)  # as packages do that catch whatever their own imports raise
    process = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1] == "xlstm_cuda: interrupted\n"
    assert process.returncode == 1


def test_importing_the_package_elsewhere_leaves_ctrl_c_alone():
    code = "import signal, xlstm_cuda; assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    assert in_shell(f'$PYTHON -c "{code}"', preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)).returncode == 0


# ---------------------------------------------------------------- checkpoints of the right format and another content


def spoilt(trained, name: str, **changes) -> Path:
    saved = checkpoint.load(trained / "run" / name)
    os.makedirs("run", exist_ok=True)
    torch.save({**saved, **changes}, Path("run", name))
    return Path("run", name)


def settings_of(trained, **changes) -> dict:
    return {**checkpoint.load(trained / "run" / "best.pt")["settings"], **changes}


@pytest.mark.parametrize(
    "changes",
    [
        {"num_blocks": 10**9}, {"num_blocks": "2"}, {"num_blocks": True}, {"num_blocks": 2.0}, {"embedding_dim": 2**16},
        {"dtype": "int8"}, {"num_heads": 3}, {"slstm_at": 1}, {"slstm_at": [7]}, {"slstm_at": [None]}, {"dropout": float("nan")},
        {"learning_rate": "high"}, {"qkv_proj_blocksize": 3}, {"seed": [1]},
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_no_run_could_have(trained, capsys, changes):
    path = spoilt(trained, "best.pt", settings=settings_of(trained, **changes))
    started = time.monotonic()
    code, error = ends(capsys, "generate", "--checkpoint", str(path))
    assert code == 1 and str(path) in error
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("value", [None, 3, "text", [], {}, {"a": 1}, {3: 4}], ids=repr)
@pytest.mark.parametrize("key", ["settings", "model"])
def test_right_format_and_other_content(trained, capsys, key, value):
    path = spoilt(trained, "best.pt", **{key: value})
    code, error = ends(capsys, "generate", "--checkpoint", str(path))
    assert code == 1 and str(path) in error


@pytest.mark.parametrize(
    "make", [torch.Tensor.half, torch.Tensor.bool, torch.Tensor.to_sparse, lambda x: x.to("meta"), lambda x: x * torch.nan]
)
def test_weights_that_are_no_weights(trained, capsys, make):
    weights = checkpoint.load(trained / "run" / "best.pt")["model"]
    path = spoilt(trained, "best.pt", model={**weights, "lm_head.weight": make(weights["lm_head.weight"])})
    code, error = ends(capsys, "generate", "--checkpoint", str(path))
    assert code == 1 and str(path) in error and "lm_head.weight" in error


def test_weights_that_overflow(trained, capsys):
    weights = checkpoint.load(trained / "run" / "best.pt")["model"]
    path = spoilt(trained, "best.pt", model={name: value * 1e30 for name, value in weights.items()})
    code, error = ends(capsys, "generate", "--checkpoint", str(path))
    assert code == 1 and "got logits without a finite largest one for row 0 at new token 0" in error


@pytest.mark.parametrize("value", [None, "text", ["3"], {"a": [1]}, float("nan")], ids=repr)
@pytest.mark.parametrize("key", ["step", "seconds", "ngrams", "text", "history", "optimizer", "pending_loss", "random"])
def test_resume_from_right_format_and_other_content(trained, capsys, key, value):
    path = spoilt(trained, "last.pt", **{key: value})
    code, error = ends(capsys, "train", "--resume", "--out", "run")
    assert code == 1 and str(path) in error


# ---------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--qkv-proj-blocksize", "3"], "--qkv-proj-blocksize: got 3, expected a divisor of the inner dimension, 64"),
        (["--embedding-dim", "68", "--num-heads", "17"], "--num-heads: got 17, expected a divisor"),
        (["--embedding-dim", "65536", "--num-blocks", "1024"], "out of memory: this model takes"),
    ],
)
def test_options_that_make_no_model(trained, capsys, options, said):
    _, error = ends(capsys, "train", *TINY, "--data", str(trained / "text.txt"), "--out", "run", *options)
    assert said in error and not os.path.exists("run")


FITTING = ("1", "2", "2", "4", "8")
ODD = (*"0 -1 3 1.5 1e3 nan inf -inf 1e400 x 0x10 ١ 5000000000".split(), "9" * 18, "9" * 30, "", " ")
VALUES = {
    "--data": ("$TEXT", "$TEXT", "$TEXT", "missing", "", "/", "/dev/null", "x" * 300, "a/b/c", "\udcff"),
    "--out": ("out", "new/deep", "$RUN", "$TEXT", "/dev/null", "/proc/nothing", "x" * 300, "\udcff"),
    "--checkpoint": ("$RUN", "$RUN", "$RUN/last.pt", "$TEXT", "missing", "", "/", "/dev/null", "x" * 300, "\udcff"),
    "--batch-file": ("$TEXT", "$TEXT", "missing", "", "/", "/dev/null", "x" * 300, "a/b/c", "\udcff"),
    "--slstm-at": ("all", "none", "0", "1", "0,1", "1,0", "5", "-1", "1;2", ",", "999999999", "9999999999"),
    "--dtype": ("float32", "bfloat16", "float16", "8"), "--device": ("cpu", "auto", "cuda", "cuda:7", "cuda:-1", "meta", "gpu"),
    "--backend": ("cpu", "reference", "cuda", "simt", "triton"), "--prompt": ("", "a", "é", "-x", "\udcff", "a" * 50),
    "--threads": ("1", "0", "-1", "5000", "x"), "--tokenizer": ("missing", "$TEXT", "", "/", "\udcff"),
    "--length": ("0", "1", "2", "8", "-1", "1.5", "x", ""),
}  # fmt: skip
TRAIN = (
    "--data --out --slstm-at --dtype --device --backend --threads --seed --steps --batch-size --context-length --embedding-dim"
    " --num-blocks --num-heads --qkv-proj-blocksize --dropout --learning-rate --warmup-steps --weight-decay --gradient-clip"
    " --eval-every --eval-bytes --checkpoint-every --sample-length --accumulate --tokenizer"
).split()
GENERATE = "--checkpoint --prompt --batch-file --length --temperature --top-k --top-p --seed --device --backend --threads".split()


def drawn_options(draw: random.Random, command: str, trained: Path) -> list[str]:
    """Mostly accepted options of one command, with a few that are out of range, of another type, doubled or cut short."""
    names = TRAIN if command == "train" else GENERATE
    options = [*TINY, "--data", "$TEXT"] if command == "train" else ["--checkpoint", "$RUN", "--length", "2"]
    for name in draw.sample(names, draw.randrange(1, 5)):
        options += [name, draw.choice(VALUES.get(name, ODD if draw.random() < 0.15 else FITTING))]
    if draw.random() < 0.2:
        options += draw.choice((["--resume"], ["--no-such"], ["stray"], ["--steps"], ["--help"], ["--temp", "1"], ["--"]))
    return [option.replace("$TEXT", str(trained / "text.txt")).replace("$RUN", str(trained / "run")) for option in options]


def test_drawn_options_end_well(trained, capsys, monkeypatch):
    monkeypatch.setattr(train_command.Run, "train", lambda *_: None)  # the options are all that is looked at
    draw, started, codes = random.Random(3), time.monotonic(), {0: 0, 1: 0, 2: 0}
    for case in range(250):
        command = draw.choice(("train", "generate"))
        options = drawn_options(draw, command, trained)
        try:
            code = main([command, *options])
        except SystemExit as end:
            code = end.code
        except BaseException as error:
            raise AssertionError(f"case {case}: {command} {options}: {error!r}") from error
        error = capsys.readouterr().err
        assert code == 0 or one_line(error), f"case {case}: {command} {options}: {error}"
        codes[code] += 1
    assert min(codes.values()) > 15, codes
    assert time.monotonic() - started < 60
