"""`python -m xlstm_cuda generate`: the text of the parallel model, from a state that does not grow, in whole characters."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import peak_memory
import pytest
import torch

from xlstm_cuda import generation
from xlstm_cuda.cli import checkpoint, generate, main
from xlstm_cuda.cli.device import Device
from xlstm_cuda.cli.generate import load_model, stream
from xlstm_cuda.generation import Sampler

ROOT = Path(__file__).parents[1]
CPU = Device(torch.device("cpu"))


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
def test_stream_matches_the_parallel_forward(model, monkeypatch, prompt):
    prompt = prompt or generate.START
    picked = []
    real = Sampler.pick
    monkeypatch.setattr(Sampler, "pick", lambda self, logits, draws: picked.append(logits[0]) or real(self, logits, draws))
    written = [byte for _, byte in stream(model, [prompt], 70, CPU, seed=0)]
    content = prompt + bytes(written)
    with torch.no_grad():
        parallel = model(torch.tensor([list(content)]))[0]
    torch.testing.assert_close(torch.stack(picked), parallel[len(prompt) - 1 : -1], atol=2e-4, rtol=1e-4)


def test_stream_state_does_not_grow(model, monkeypatch):
    sizes = []
    real = model.step

    def step(token, state, **options):
        logits, new = real(token, state, **options)
        sizes.append(state_bytes(new))
        return logits, new

    monkeypatch.setattr(model, "step", step)
    list(stream(model, [b"the"], 200, CPU, seed=0))
    assert len(sizes) == 199
    assert len(set(sizes)) == 1 and sizes[0] > 0


@pytest.mark.parametrize("length", [1, 7, 8, 9, 50, 64], ids="prompt_{}".format)
def test_a_prompt_in_pieces_reads_as_in_one_pass(model, monkeypatch, length):
    prompt = (b"the quick brown fox jumps over the lazy dog. " * 2)[:length]
    whole = list(stream(model, [prompt], 40, CPU, seed=0))
    monkeypatch.setitem(generation.PIECE, "cpu", 8)
    assert list(stream(model, [prompt], 40, CPU, seed=0)) == whole


def test_a_long_prompt_needs_no_more_memory_than_a_short_one(model):
    with peak_memory.measured() as peak:
        next(stream(model, [b"the quick brown fox " * 5_000], 1, CPU, seed=0))
    assert peak.bytes < 50e6


def test_stream_is_lazy(model):
    text = stream(model, [generate.START], 10**12, CPU)
    assert len([next(text) for _ in range(5)]) == 5


def test_generate_is_the_same_for_the_same_seed(run_folder, capsys):
    # nearly uniform draws: the model knows one sentence by heart, and at temperature 1 two of some hundred texts were the same
    options = ["--checkpoint", str(run_folder), "--length", "60", "--temperature", "100"]
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
    monkeypatch.setattr(generate, "stream", lambda *_, **__: ((0, byte) for byte in content))
    monkeypatch.setattr(generate, "_print", lambda text: shown.append(text))
    generate.write(model, b"", len(content), CPU)
    assert [text for text in shown if text] == ["a", "é", "€", "😀", "\ufffd", "z", "\ufffd", "\n"]


def test_write_joins_a_character_split_between_prompt_and_text(model, monkeypatch):
    shown = []
    monkeypatch.setattr(generate, "stream", lambda *_, **__: iter([(0, 0xA9)]))
    monkeypatch.setattr(generate, "_print", lambda text: shown.append(text))
    generate.write(model, b"caf\xc3", 1, CPU)
    assert "".join(shown) == "café\n"


# ---------------------------------------------------------------- several prompts


def lines_of(capsys, *options: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in generated(capsys, *options).splitlines()]


def test_several_prompts_are_a_line_of_json_each(run_folder, capsys):
    options = ["--checkpoint", str(run_folder), "--length", "30"]
    prompts = ["the quick br", "", "fox — é", "a\nb"]
    given = [part for prompt in prompts for part in ("--prompt", prompt)]
    got = lines_of(capsys, *options, "--seed", "5", *given)
    assert [line["prompt"] for line in got] == prompts
    for place, (prompt, line) in enumerate(zip(prompts, got)):
        alone = generated(capsys, *options, "--seed", str(5 + place), "--prompt", prompt)
        assert alone == line["text"] + "\n" and line["text"].startswith(prompt)


def test_a_batch_file_has_a_prompt_on_every_line(run_folder, capsys, tmp_path, monkeypatch):
    file = tmp_path / "prompts.txt"
    file.write_bytes("the\n\nlazy\r\nfox é\xff".encode("latin-1"))
    options = ["--checkpoint", str(run_folder), "--length", "9", "--temperature", "0", "--batch-file", str(file)]
    got = lines_of(capsys, *options)
    assert [line["prompt"] for line in got] == ["the", "", "lazy", "fox \ufffd\ufffd"]
    monkeypatch.setattr(generate, "ROWS", 3)
    assert lines_of(capsys, *options) == got
    both = lines_of(capsys, *options, "--prompt", "quick")
    assert [line["prompt"] for line in both] == ["quick", "the", "", "lazy", "fox \ufffd\ufffd"] and both[1:] == got


def test_seeds_do_not_depend_on_how_many_prompts_are_side_by_side(run_folder, capsys, tmp_path, monkeypatch):
    (tmp_path / "prompts.txt").write_text("the\n" * 5)
    options = ["--checkpoint", str(run_folder), "--length", "40", "--seed", "3", "--temperature", "2"]
    options += ["--batch-file", str(tmp_path / "prompts.txt")]
    got = lines_of(capsys, *options)
    assert len({line["text"] for line in got}) > 1
    monkeypatch.setattr(generate, "ROWS", 2)
    assert lines_of(capsys, *options) == got


def test_one_line_of_a_batch_file_is_json_too(run_folder, capsys, tmp_path):
    (tmp_path / "prompts.txt").write_text("the\n")
    options = ["--checkpoint", str(run_folder), "--length", "0", "--batch-file", str(tmp_path / "prompts.txt")]
    assert generated(capsys, *options) == '{"prompt": "the", "text": "the"}\n'


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("missing", "--batch-file: there is no file missing"),
        ("folder", "--batch-file: folder is a folder, expected a text file with one prompt a line"),
        ("empty", "--batch-file: empty is empty, expected one prompt a line"),
        ("folder/empty/x", "--batch-file: cannot read folder/empty/x: Not a directory"),
    ],
)
def test_batch_files_without_prompts_are_one_message(run_folder, capsys, tmp_path, monkeypatch, path, said):
    monkeypatch.chdir(tmp_path)
    os.mkdir("folder")
    Path("empty").touch()
    Path("folder/empty").touch()
    assert main(["generate", "--checkpoint", str(run_folder), "--batch-file", path]) == 1
    assert capsys.readouterr() == ("", f"xlstm_cuda: error: {said}\n")


def test_standard_input_is_one_of_several_prompts(run_folder, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"the quick br")))
    options = ["--checkpoint", str(run_folder), "--temperature", "0", "--length", "7", "--prompt", "-", "--prompt"]
    assert lines_of(capsys, *options, "fox")[0]["text"] == "the quick brown fox"
    assert main(["generate", *options, "-"]) == 2
    assert "--prompt: got - more than once" in capsys.readouterr().err


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
