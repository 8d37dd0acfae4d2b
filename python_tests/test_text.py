"""The text of the main job: where it comes from, its split, the order in which it is read, and the n-gram yardstick."""

import math

import pytest
import torch

from xlstm_cuda.cli import ngram
from xlstm_cuda.cli.errors import CommandError
from xlstm_cuda.cli.text import Windows, check_length, from_bytes, load


def test_load_default_is_every_help_topic_in_order():
    from pydoc_data.topics import topics

    text = load(None)
    assert text.paths == ()
    assert bytes(text.content[:].numpy()) == "\n".join(topics[name] for name in sorted(topics)).encode()


def test_load_takes_any_bytes(tmp_path):
    (tmp_path / "text").write_bytes(b"\xff\x00\x80" * 50)
    assert bytes(load(str(tmp_path / "text")).content[:].numpy()) == b"\xff\x00\x80" * 50


@pytest.mark.parametrize(
    ("name", "said"),
    [("missing", "there is no file"), (".", "is a folder"), ("empty", "is empty")],
    ids=["missing", "folder", "empty"],
)
def test_load_names_what_is_wrong_with_the_file(tmp_path, name, said):
    (tmp_path / "empty").touch()
    with pytest.raises(CommandError, match=said):
        load(str(tmp_path / name))


def test_split_is_nine_tenths_and_the_last_tenth():
    text = from_bytes("digits", bytes(range(101)))
    training, held_out = text.split()
    assert training[:].tolist() == list(range(90))
    assert held_out[:].tolist() == list(range(90, 101))


def test_check_length_names_the_shortest_text_that_works():
    with pytest.raises(CommandError, match="has 10 bytes; a context of 16 bytes needs at least 19"):
        check_length(from_bytes("short", bytes(10)), 16)
    with pytest.raises(CommandError):
        check_length(from_bytes("short", bytes(18)), 16)
    check_length(from_bytes("enough", bytes(19)), 16)


def test_windows_read_every_window_once_per_pass():
    windows = Windows(torch.arange(101, dtype=torch.uint8), context_length=10, batch_size=3, seed=0)
    assert windows.count == 9
    for number in range(2):
        starts = torch.cat([windows.batch(step)[:, 0] for step in range(3 * number, 3 * number + 3)]).sort().values
        assert starts.diff().tolist() == [10] * 8
        assert 0 <= int(starts[0]) <= 10
    assert torch.equal(windows.batch(4)[:, 1:] - windows.batch(4)[:, :-1], torch.ones(3, 10, dtype=torch.int64))


def test_windows_are_a_function_of_seed_and_step_alone():
    content = torch.arange(200, dtype=torch.uint8)
    straight = Windows(content, 8, 4, seed=3)
    batches = [straight.batch(step) for step in range(20)]
    for step in (17, 2, 19, 0):
        assert torch.equal(Windows(content, 8, 4, seed=3).batch(step), batches[step])
        assert torch.equal(straight.batch(step), batches[step])
    assert not torch.equal(Windows(content, 8, 4, seed=4).batch(0), batches[0])


@pytest.mark.parametrize("length", [9, 10, 16, 17, 25])
def test_windows_of_the_shortest_texts(length):
    windows = Windows(torch.arange(length, dtype=torch.uint8), context_length=8, batch_size=4, seed=0)
    for step in range(5):
        batch = windows.batch(step)
        assert batch.shape == (4, 9)
        assert int(batch.max()) < length


def test_ngram_matches_the_sum_by_hand():
    # "abab": a and b twice each, N = 4, T = 2. Pairs: ab twice (N(a) = 2, T = 1), ba once (N(b) = 1, T = 1).
    unigram = (2 + 2 / 256) / (4 + 2)
    a_after_b = (1 + 1 * unigram) / (1 + 1)
    b_after_a = (2 + 1 * unigram) / (2 + 1)
    unseen = (2 / 256) / (4 + 2)
    bits = [-math.log2(unigram), -(math.log2(a_after_b) + math.log2(b_after_a)) / 2]
    assert ngram.bits_per_byte(b"abab", b"ab", 2) == pytest.approx(bits, rel=1e-12)
    # c was never seen: after b the pair model gives T(b) p(c) / (N(b) + T(b))
    assert ngram.bits_per_byte(b"abab", b"c", 2) == pytest.approx([-math.log2(unseen), -math.log2(unseen / 2)], rel=1e-12)


def test_ngram_is_a_probability_distribution():
    training = bytes(load(None).content[:3000].numpy())
    total = [0.0] * 4
    for byte in range(256):
        for order, bits in enumerate(ngram.bits_per_byte(training, bytes([byte]), 4)):
            total[order] += 2**-bits
    assert total == pytest.approx([1.0] * 4, rel=1e-9)


def test_ngram_of_a_text_shorter_than_the_order():
    assert ngram.bits_per_byte(b"a", b"a", 3)[1:] == [ngram.bits_per_byte(b"a", b"a", 1)[0]] * 2


def test_ngram_order_is_bounded():
    with pytest.raises(ValueError, match="max_order: got 8, expected 1 to 7"):
        ngram.bits_per_byte(b"ab", b"a", 8)
