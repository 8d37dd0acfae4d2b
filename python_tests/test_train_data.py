"""What training reads: several files, files larger than memory, and the tokens of a tokenizer beside bytes."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

import pytest
import ranks
import torch
from test_train import assert_one_line, assert_same, put

from xlstm_cuda.cli import checkpoint, main, text, tokens
from xlstm_cuda.cli.errors import CommandError
from xlstm_cuda.cli.text import Joined, Windows, from_bytes, load

tokenizers = pytest.importorskip("tokenizers")
CONTENT = "the quick brown fox jumps over the lazy dog — ".encode() * 60 + b"and so on.\n" * 40
TINY = (
    "--steps 6 --batch-size 4 --context-length 8 --embedding-dim 16 --num-blocks 1 --num-heads 2 --slstm-at none"
    " --warmup-steps 2 --eval-every 3 --eval-bytes 200 --sample-length 0 --threads 1"
).split()


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_bytes(CONTENT)


def make_tokenizer(path: str, vocab_size: int = 280) -> str:
    """A byte-level BPE tokenizer learnt from the text."""
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator([CONTENT.decode()], trainer)
    bpe.save(path)
    return path


def train(*options: str) -> int:
    return main(["train", *TINY, "--out", "run", *options])


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("sizes", [(101,), (50, 51), (1, 99, 1), (30, 0, 71)], ids=str)
def test_joined_reads_as_one(sizes):
    whole = torch.arange(101, dtype=torch.uint8)
    joined = Joined(torch.split(whole, sizes))
    assert len(joined) == 101
    for start in (0, 1, 29, 30, 49, 50, 99, 100, 101, -5):
        for end in (0, 1, 30, 31, 50, 100, 101, 200, -1, None):
            span = slice(start, end)
            assert torch.equal(joined[span], whole[span]), span
            assert torch.equal(joined.part(span)[:], whole[span]), span
    windows = Windows(joined, 10, 3, seed=0)
    expected = Windows(whole, 10, 3, seed=0)
    assert all(torch.equal(windows.batch(step), expected.batch(step)) for step in range(8))


def test_rows_of_a_batch_are_rows_of_it():
    windows = Windows(torch.arange(101, dtype=torch.uint8), 10, 6, seed=0)
    assert torch.equal(torch.cat([windows.batch(5, range(0, 2)), windows.batch(5, range(2, 6))]), windows.batch(5))


def test_several_files_are_one_text(capsys):
    for name, part in (("a", CONTENT[:700]), ("b", CONTENT[700:701]), ("c", CONTENT[701:])):
        Path(name).write_bytes(part)
    assert train("--data", "text.txt") == 0
    assert main(["train", *TINY, "--out", "parts", "--data", "a", "b", "c"]) == 0
    assert "text      a and 2 more: " in capsys.readouterr().out
    one, several = checkpoint.load(Path("run/last.pt")), checkpoint.load(Path("parts/last.pt"))
    assert several["text"]["path"] == [os.path.abspath(name) for name in "abc"]
    assert_same({**several, "text": {**several["text"], "name": "text.txt", "path": os.path.abspath("text.txt")}}, one)
    os.remove("text.txt")
    assert main(["train", "--resume", "--out", "parts", "--sample-length", "0"]) == 0
    os.remove("b")
    capsys.readouterr()
    assert main(["train", "--resume", "--out", "parts"]) == 1
    assert_one_line(capsys.readouterr().err, "--data: there is no file", "/b")


@pytest.mark.parametrize(
    ("make", "said"),
    [(None, "there is no file b"), (os.mkdir, "b is a folder"), (lambda name: Path(name).touch(), "b is empty")],
    ids=["missing", "folder", "empty"],
)
def test_one_bad_file_of_several_is_named(capsys, make, said):
    if make is not None:
        make("b")
    assert train("--data", "text.txt", "b", "text.txt") == 1
    assert_one_line(capsys.readouterr().err, "--data: ", said)
    assert not os.path.exists("run")


def test_a_mapped_file_trains_as_one_in_memory(monkeypatch):
    assert train("--data", "text.txt") == 0
    monkeypatch.setattr(text, "MAPPED_BYTES", 1)
    assert main(["train", *TINY, "--out", "mapped", "--data", "text.txt"]) == 0
    assert_same(checkpoint.load(Path("mapped/last.pt")), checkpoint.load(Path("run/last.pt")))


def test_a_file_larger_than_memory_is_mapped(tmp_path):
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    size = 4 * memory
    with open("large", "wb") as file:
        file.truncate(size)  # takes no room on the disk
        file.seek(size - 5)
        file.write(b"\1\2\3\4\5")
    content = load(["large", "text.txt"]).content
    assert len(content) == size + len(CONTENT)
    assert content[size - 2 : size + 3].tolist() == [4, 5, *CONTENT[:3]]
    windows = Windows(content, 1024, 8, seed=0)
    assert windows.count > text.SHUFFLED_WINDOWS
    assert windows.batch(10**6).shape == (8, 1025)


@pytest.mark.parametrize("length", [997, 1000, 1024])
def test_windows_too_many_to_shuffle_are_each_read_once_per_pass(monkeypatch, length):
    monkeypatch.setattr(text, "SHUFFLED_WINDOWS", 10)
    windows = Windows(torch.arange(length * 10 + 1), context_length=10, batch_size=1, seed=3)
    orders = []
    for number in range(2):
        starts = [int(windows.batch(number * windows.count + place)[0, 0]) for place in range(windows.count)]
        assert len(set(starts)) == windows.count and {b - a for a, b in zip(sorted(starts), sorted(starts)[1:])} == {10}
        orders.append([start - min(starts) for start in starts])
    assert orders[0] != orders[1]
    assert torch.equal(Windows(windows.content, 10, 1, seed=3).batch(windows.count + 7), windows.batch(windows.count + 7))


# ---------------------------------------------------------------- tokens


def test_training_on_tokens_learns_resumes_and_writes_text(capsys):
    make_tokenizer("tok.json")
    options = ["--data", "text.txt", "--tokenizer", "tok.json", "--steps", "60", "--learning-rate", "0.02"]
    assert train(*options, "--sample-length", "12") == 0
    shown = capsys.readouterr().out
    saved = checkpoint.load(Path("run/last.pt"))
    assert saved["model"]["lm_head.weight"].shape == (280, 16)
    held_out = [bits for _, bits in saved["history"]["held_out"]]
    assert held_out[-1] < held_out[0] - 1 and f"{held_out[-1]:.3f}" in shown
    assert "280 in the vocabulary" in shown and "tokens, seed 0" in shown
    os.remove("tok.json")  # the checkpoint carries it
    assert main(["train", "--resume", "--out", "run", "--sample-length", "0"]) == 0
    capsys.readouterr()
    assert main(["generate", "--checkpoint", "run", "--prompt", "the quick", "--temperature", "0", "--length", "4"]) == 0
    assert capsys.readouterr().out.startswith("the quick")


def test_bits_are_counted_per_byte():
    """An untrained model knows nothing: log2(vocabulary) bits for a token of several bytes."""
    make_tokenizer("tok.json")
    assert train("--data", "text.txt", "--tokenizer", "tok.json", "--steps", "1", "--learning-rate", "1e-9") == 0
    saved = checkpoint.load(Path("run/last.pt"))
    coding = tokens.load("tok.json")
    for name, part in zip(("training", "held_out"), load("text.txt").split()):
        content = bytes(part[:200].numpy()) if name == "held_out" else bytes(part[:].numpy())
        per_byte = len(coding.encode(content)) / len(content)
        assert per_byte < 0.95
        assert saved["history"][name][0][1] == pytest.approx(math.log2(280) * per_byte, rel=0.1)


@pytest.mark.parametrize("piece", [7, 64, 1 << 16])
def test_token_file_holds_the_text(monkeypatch, tmp_path, piece):
    monkeypatch.setattr(tokens, "PIECE", piece)
    monkeypatch.setattr(tokens, "PIECES", 3)
    coding = tokens.load(make_tokenizer("tok.json"))
    file = tokens.TokenFile(tmp_path, load("text.txt"), coding)
    file.write()
    decoder = coding.decoder()
    read = file.read()
    border = len(CONTENT) * 9 // 10
    assert "".join(decoder.write(int(token)) for token in read) == CONTENT[:border].decode(errors="ignore")
    assert read.dtype == torch.uint16
    if piece == 1 << 16:
        assert read.tolist() == coding.encode(CONTENT[:border])


def test_token_file_is_written_once_and_for_one_text(tmp_path):
    coding = tokens.load(make_tokenizer("tok.json"))
    file = tokens.TokenFile(tmp_path, load("text.txt"), coding)
    file.write()
    before = os.stat(file.path).st_mtime_ns
    tokens.TokenFile(tmp_path, load("text.txt"), coding).write()
    assert os.stat(file.path).st_mtime_ns == before
    other = tokens.load(make_tokenizer("other.json", 270))
    paths = {file.path, *(tokens.TokenFile(tmp_path, *pair).path for pair in
             ((from_bytes("x", CONTENT + b"x"), coding), (load("text.txt"), other)))}  # fmt: skip
    assert len(paths) == 3


def test_damaged_token_file_is_recognised(tmp_path):
    coding = tokens.load(make_tokenizer("tok.json"))
    file = tokens.TokenFile(tmp_path, load("text.txt"), coding)
    with pytest.raises(CommandError, match=r"cannot read .*; every process needs the run folder"):
        file.read()
    file.path.write_bytes(b"\1\0\2\0\xff\xff")
    with pytest.raises(CommandError, match="token 65535 is outside the vocabulary of 280"):
        file.read()
    file.path.write_bytes(b"\1\0\2")
    with pytest.raises(CommandError, match="is damaged"):
        file.read()


def test_token_file_is_never_half_written(tmp_path, monkeypatch):
    coding = tokens.load(make_tokenizer("tok.json"))
    file = tokens.TokenFile(tmp_path, load("text.txt"), coding)
    monkeypatch.setattr(coding, "vocab_size", 260)  # a tokenizer that gives what its vocabulary does not have
    with pytest.raises(CommandError, match=r"tok.json: token \d+ is outside the vocabulary of 260"):
        file.write()
    assert not list(tmp_path.glob("tokens-*"))


def test_two_processes_share_the_tokens():
    make_tokenizer("tok.json")
    options = [*TINY, "--data", "text.txt", "--tokenizer", "tok.json"]
    assert main(["train", *options, "--out", "one"]) == 0
    ends = ranks.run(2, *options, "--out", "two")
    assert all(end.code == 0 for end in ends), ends
    one, two = (checkpoint.load(Path(name, "last.pt")) for name in ("one", "two"))
    for name in ("training", "held_out"):
        torch.testing.assert_close(torch.tensor(two["history"][name]), torch.tensor(one["history"][name]), rtol=1e-5, atol=1e-5)
    (written,) = Path("two").glob("tokens-*")
    assert written.read_bytes() == Path("one", written.name).read_bytes()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "--tokenizer: there is no file tok.json"),
        (b"{}", "is not a tokenizer of the package tokenizers"),
        (b"\xff\xfe", "it is not UTF-8"),
        ("folder", "--tokenizer: tok.json is a folder, expected a tokenizer.json"),
    ],
    ids=["missing", "foreign", "binary", "folder"],
)
def test_bad_tokenizer_is_one_message(capsys, content, said):
    put("tok.json", content)
    assert train("--data", "text.txt", "--tokenizer", "tok.json") == 1
    assert_one_line(capsys.readouterr().err, said)
    assert not os.path.exists("run")


def test_missing_package_is_named_with_the_pip_line(capsys, monkeypatch):
    make_tokenizer("tok.json")
    assert train("--data", "text.txt", "--tokenizer", "tok.json", "--steps", "1") == 0
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    said = "tokenizers is not installed (pip install tokenizers)"
    capsys.readouterr()
    assert main(["train", *TINY, "--out", "other", "--data", "text.txt", "--tokenizer", "tok.json"]) == 1
    assert_one_line(capsys.readouterr().err, "--tokenizer: tok.json: " + said)
    for command in (["generate", "--checkpoint", "run"], ["train", "--resume", "--out", "run"]):
        assert main(command) == 1
        assert_one_line(capsys.readouterr().err, said)


def test_too_few_tokens_are_told(capsys):
    Path("short.txt").write_bytes(b"the quick " * 10)
    make_tokenizer("tok.json")
    assert train("--data", "short.txt", "--tokenizer", "tok.json", "--context-length", "40") == 1
    assert_one_line(capsys.readouterr().err, "--data: the text is ", " tokens to learn", "needs at least 41")


def test_another_tokenizer_is_not_the_runs(capsys):
    make_tokenizer("tok.json")
    make_tokenizer("other.json", 270)
    assert train("--data", "text.txt", "--tokenizer", "tok.json", "--steps", "1") == 0
    capsys.readouterr()
    assert main(["train", "--resume", "--out", "run", "--tokenizer", "other.json"]) == 1
    assert_one_line(capsys.readouterr().err, "--tokenizer: got other.json, expected that of the run in run")
    assert main(["train", "--resume", "--out", "run", "--tokenizer", "tok.json", "--sample-length", "0"]) == 0


@pytest.mark.parametrize("value", [3, "text", ["{}"]], ids=repr)
def test_checkpoint_with_another_thing_for_a_tokenizer(capsys, value):
    assert train("--data", "text.txt", "--steps", "1") == 0
    torch.save({**checkpoint.load(Path("run/last.pt")), "tokenizer": value}, "run/last.pt")
    capsys.readouterr()
    for command in (["generate", "--checkpoint", "run/last.pt"], ["train", "--resume", "--out", "run"]):
        assert main(command) == 1
        assert_one_line(capsys.readouterr().err, "tokenizer", "checkpoint run/last.pt")


def test_a_vocabulary_with_gaps_has_a_row_for_each_number(tmp_path):
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 70}, unk_token="a"))
    words.save("words.json")
    coding = tokens.load("words.json")
    assert coding.vocab_size == 71 and coding.encode(b"b") == [70]
