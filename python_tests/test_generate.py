"""`python -m xlstm_cuda generate`: the text of the parallel model, from a state that does not grow, in whole characters."""

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import peak_memory
import pytest
import torch

from xlstm_cuda.cli import checkpoint, generate, main
from xlstm_cuda.cli.device import Device
from xlstm_cuda.cli.generate import Sampler, load_model, stream

ROOT = Path(__file__).parents[1]
CPU = Device(torch.device("cpu"))


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """A model this small only waits for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    """A small trained model."""
    folder = tmp_path_factory.mktemp("generate")
    (folder / "text.txt").write_bytes("the quick brown fox jumps over the lazy dog — ".encode() * 40)
    options = (
        "--steps 30 --batch-size 4 --context-length 32 --embedding-dim 32 --num-blocks 2 --num-heads 2 --slstm-at 1"
        " --learning-rate 0.02 --warmup-steps 2 --sample-length 0"
    ).split()
    assert main(["train", *options, "--data", str(folder / "text.txt"), "--out", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def model(run_folder):
    return load_model(run_folder / "best.pt", CPU)


def state_bytes(state) -> int:
    """Memory of every tensor in a nested state."""
    if isinstance(state, torch.Tensor):
        return state.untyped_storage().nbytes()
    parts = state.values() if isinstance(state, dict) else state or ()
    return sum(map(state_bytes, parts))


def generated(capsys, *options: str) -> str:
    assert main(["generate", *options]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("prompt", [b"", b"t", b"the quick brown fox jumps"], ids=["empty", "one_byte", "longer_than_the_kernel"])
def test_stream_matches_the_parallel_forward(model, prompt):
    picked = []

    class Spy(Sampler):
        def pick(self, logits):
            picked.append(logits)
            return super().pick(logits)

    written = list(stream(model, prompt, 70, Spy(seed=0), CPU))
    content = (prompt or b"\n") + bytes(written)
    with torch.no_grad():
        parallel = model(torch.tensor([list(content)]))[0]
    torch.testing.assert_close(torch.stack(picked), parallel[len(prompt or b"\n") - 1 : -1], atol=2e-4, rtol=1e-4)


def test_stream_state_does_not_grow(model, monkeypatch):
    sizes = []
    real = model.step

    def step(token, state, **options):
        logits, new = real(token, state, **options)
        sizes.append(state_bytes(new))
        return logits, new

    monkeypatch.setattr(model, "step", step)
    list(stream(model, b"the", 200, Sampler(seed=0), CPU))
    assert len(sizes) == 199
    assert len(set(sizes)) == 1 and sizes[0] > 0


@pytest.mark.parametrize("length", [1, 7, 8, 9, 50, 64], ids="prompt_{}".format)
def test_a_prompt_in_pieces_reads_as_in_one_pass(model, monkeypatch, length):
    monkeypatch.setattr(generate, "PIECE", 8)
    prompt = (b"the quick brown fox jumps over the lazy dog. " * 2)[:length]
    logits, state = generate.read_prompt(model, prompt, CPU)
    with torch.no_grad():
        whole, end = model(torch.tensor([list(prompt)]), return_last_state=True)
        next_token = torch.tensor([[65]])
        after, after_whole = model.step(next_token, state)[0], model.step(next_token, end)[0]
    torch.testing.assert_close(logits, whole[0, -1], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(after, after_whole, atol=2e-5, rtol=1e-5)


def test_a_long_prompt_needs_no_more_memory_than_a_short_one(model):
    with peak_memory.measured() as peak:
        next(stream(model, b"the quick brown fox " * 5_000, 1, Sampler(seed=0), CPU))
    assert peak.bytes < 50e6


def test_stream_is_lazy(model):
    text = stream(model, b"", 10**12, Sampler(seed=0), CPU)
    assert len([next(text) for _ in range(5)]) == 5


def test_generate_is_the_same_for_the_same_seed(run_folder, capsys):
    options = ["--checkpoint", str(run_folder), "--length", "60"]
    first = generated(capsys, *options, "--seed", "1")
    assert generated(capsys, *options, "--seed", "1") == first
    assert generated(capsys, *options, "--seed", "2") != first
    assert generated(capsys, *options) != generated(capsys, *options)


def test_generate_writes_what_it_learnt(run_folder, capsys):
    text = generated(capsys, "--checkpoint", str(run_folder), "--prompt", "the quick br", "--temperature", "0", "--length", "7")
    assert text == "the quick brown fox\n"


def test_generate_finds_file_folder_and_newest_run(run_folder, capsys, tmp_path, monkeypatch):
    options = ["--seed", "0", "--length", "20"]
    from_folder = generated(capsys, *options, "--checkpoint", str(run_folder))
    assert generated(capsys, *options, "--checkpoint", str(run_folder / "best.pt")) == from_folder
    monkeypatch.chdir(tmp_path)
    os.mkdir("runs")
    os.symlink(run_folder, "runs/007")
    assert generated(capsys, *options) == from_folder


def test_generate_length_zero_is_the_prompt(run_folder, capsys):
    assert generated(capsys, "--checkpoint", str(run_folder), "--prompt", "abc", "--length", "0") == "abc\n"


def test_generate_reads_the_prompt_from_standard_input(run_folder, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"the quick br")))
    text = generated(capsys, "--checkpoint", str(run_folder), "--prompt", "-", "--temperature", "0", "--length", "7")
    assert text == "the quick brown fox\n"


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_generate_on_each_backend(run_folder, capsys, backend):
    options = ["--checkpoint", str(run_folder), "--temperature", "0", "--prompt", "the", "--length", "30"]
    assert generated(capsys, *options, "--backend", backend) == generated(capsys, *options)


def test_write_never_shows_half_a_character(model, capsys, monkeypatch):
    content = "aé€😀".encode() + b"\xff" + b"z" + "€".encode()[:2]
    shown = []
    monkeypatch.setattr(generate, "stream", lambda *_: iter(content))
    monkeypatch.setattr(generate, "_print", lambda text: shown.append(text))
    generate.write(model, b"", len(content), Sampler(), CPU)
    assert [text for text in shown if text] == ["a", "é", "€", "😀", "\ufffd", "z", "\ufffd", "\n"]


def test_write_joins_a_character_split_between_prompt_and_text(model, monkeypatch):
    shown = []
    monkeypatch.setattr(generate, "stream", lambda *_: iter(b"\xa9"))
    monkeypatch.setattr(generate, "_print", lambda text: shown.append(text))
    generate.write(model, b"caf\xc3", 1, Sampler(), CPU)
    assert "".join(shown) == "café\n"


def test_sampler_temperature_zero_takes_the_likeliest():
    assert Sampler(temperature=0).pick(torch.tensor([0.0, 3.0, 1.0])) == 1


def test_sampler_follows_the_distribution():
    logits = torch.tensor([0.1, 0.2, 0.7]).log()
    sampler = Sampler(temperature=1.0, seed=0)
    counts = torch.bincount(torch.tensor([sampler.pick(logits) for _ in range(4000)]), minlength=3)
    torch.testing.assert_close(counts / 4000, torch.tensor([0.1, 0.2, 0.7]), atol=0.03, rtol=0)


@pytest.mark.parametrize(
    ("limits", "kept"), [({"top_k": 2}, {1, 3}), ({"top_p": 0.55}, {1, 3}), ({"top_p": 0.5}, {1}), ({"top_p": 1.0}, {0, 1, 2, 3})]
)
def test_sampler_keeps_to_its_limits(limits, kept):
    logits = torch.tensor([0.1, 0.5, 0.15, 0.25]).log()
    sampler = Sampler(temperature=1.0, seed=0, **limits)
    assert {sampler.pick(logits) for _ in range(200)} == kept


def test_missing_checkpoint_is_one_message(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["generate", "--checkpoint", "nowhere.pt"]) == 1
    assert capsys.readouterr().err == "xlstm_cuda: error: there is no checkpoint nowhere.pt\n"
    assert main(["generate"]) == 1
    assert "no run found in" in capsys.readouterr().err


def test_foreign_checkpoint_is_one_message(capsys, tmp_path):
    torch.save({"model": {}}, tmp_path / "other.pt")
    assert main(["generate", "--checkpoint", str(tmp_path / "other.pt")]) == 1
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and "other.pt is not a checkpoint of `python -m xlstm_cuda train`" in error


def test_weights_of_another_model_are_one_message(run_folder, capsys, tmp_path):
    saved = checkpoint.load(run_folder / "best.pt")
    torch.save({**saved, "settings": {**saved["settings"], "num_blocks": 3}}, tmp_path / "other.pt")
    assert main(["generate", "--checkpoint", str(tmp_path / "other.pt")]) == 1
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and "does not fit its settings" in error and "is missing" in error


@pytest.mark.parametrize(
    "options", [["--temperature", "-1"], ["--top-k", "0"], ["--top-p", "1.5"], ["--top-p", "0"], ["--length", "x"]], ids=" ".join
)
def test_usage_error_names_the_option(capsys, options):
    with pytest.raises(SystemExit) as end:
        main(["generate", *options])
    assert end.value.code == 2
    assert options[0] in capsys.readouterr().err


def _process(run_folder: Path, *options: str, **more) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "xlstm_cuda",
        "generate",
        "--checkpoint",
        str(run_folder),
        "--prompt",
        "é",
        "--threads",
        "1",
        *options,
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)


def test_generate_to_a_reader_that_leaves(run_folder):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = _process(run_folder, "--length", "1000000", env=environment)
    assert process.stdout.read(40)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 1


def test_generate_to_an_ascii_terminal(run_folder):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    out, error = _process(run_folder, "--length", "50", "--seed", "0", env=environment).communicate(timeout=60)
    assert error == b""
    assert out.startswith(b"?")


def test_generate_interrupted_is_one_message(run_folder):
    # A shell starts background jobs with SIGINT ignored, these tests among them; Python then leaves it ignored.
    process = _process(
        run_folder, "--length", "1000000", env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout.read(40)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (1, b"xlstm_cuda: interrupted\n")
