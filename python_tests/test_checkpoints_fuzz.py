"""checkpoints.load under 500 damaged files: a ValueError or a good model, nothing else, in little memory and time."""

import json
import random
import time

import peak_memory
import pytest
import torch

from xlstm_cuda import checkpoints, xLSTMLarge, xLSTMLargeConfig

CASES = 500
CONFIG = dict(embedding_dim=16, num_heads=2, num_blocks=2, vocab_size=20, ffn_proj_factor=2.667, use_bias=True)
ODD = (
    None, True, False, 0, 1, -1, 2, 3, 7, 2**31, 2**40, 2**63, 2**70, 10**400, 0.0, -0.5, 1e-30, 1e300, float("nan"),
    float("inf"), "", "a", "32", "../x", "/etc/passwd", "\ud800", "\0", "x" * 300, [], [1], {}, {"a": 1}, [[[]]],
)  # fmt: skip


@pytest.fixture(scope="module")
def source():
    return xLSTMLarge(xLSTMLargeConfig(**CONFIG))


def damaged_bytes(draw: random.Random, content: bytes) -> bytes:
    """A few bits flipped, the end or a piece missing, bytes overwritten, or something inserted."""
    changed = bytearray(content)
    kind = draw.randrange(5)
    place = draw.randrange(len(changed))
    if kind == 0:
        for _ in range(draw.choice((1, 1, 2, 8))):
            # Half of the flips go to the first and last kilobyte, where headers and directories are.
            spot = draw.choice((draw.randrange(len(changed)), draw.randrange(1024), -1 - draw.randrange(1024)))
            changed[spot % len(changed)] ^= 1 << draw.randrange(8)
    elif kind == 1:
        del changed[place:]
    elif kind == 2:
        del changed[place : place + draw.choice((1, 8, 100, 5000))]
    elif kind == 3:
        changed[place : place + 8] = draw.randbytes(8)
    else:
        changed[place:place] = draw.randbytes(draw.choice((1, 8, 64)))
    return bytes(changed)


def damaged_json(draw: random.Random, content: object) -> object:
    """One value, key or level of a JSON document replaced."""
    if draw.random() < 0.05 or not isinstance(content, (dict, list)) or not content:
        return draw.choice(ODD)
    changed = content.copy()
    place = draw.choice(list(changed)) if isinstance(changed, dict) else draw.randrange(len(changed))
    kind = draw.randrange(4) if isinstance(changed, dict) else 3
    if kind == 0:
        del changed[place]
    elif kind == 1:
        changed[str(draw.choice(ODD))[:400]] = changed.pop(place)
    else:
        changed[place] = damaged_json(draw, changed[place])
    return changed


def damaged_header(draw: random.Random, content: bytes) -> bytes:
    """A safetensors file whose header is well-formed JSON with something changed."""
    size = int.from_bytes(content[:8], "little")
    header = json.dumps(damaged_json(draw, json.loads(content[8 : 8 + size]))).encode()
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


def write_case(draw: random.Random, folder, source) -> bool:
    """A folder with one damage; whether weights must be bit for bit those of the source if they load."""
    weights = source.state_dict()
    config = json.dumps(CONFIG)
    kind = draw.choice(
        ("zip", "zip", "legacy", "safetensors", "header", "config", "config", "config bytes", "index", "index bytes")
    )
    if kind in ("zip", "legacy"):
        file = folder / "weights.pt"
        torch.save(weights, file, _use_new_zipfile_serialization=kind == "zip")
        file.write_bytes(damaged_bytes(draw, file.read_bytes()))
    else:
        from safetensors.torch import save_file

        keys = sorted(weights)
        save_file({key: weights[key] for key in keys[:9]}, folder / "a.safetensors")
        save_file({key: weights[key] for key in keys[9:]}, folder / "b.safetensors")
        index = {"weight_map": {key: "a.safetensors" if key in keys[:9] else "b.safetensors" for key in keys}}
        file = folder / "b.safetensors"
        if kind == "safetensors":
            file.write_bytes(damaged_bytes(draw, file.read_bytes()))
        elif kind == "header":
            file.write_bytes(damaged_header(draw, file.read_bytes()))
        elif kind == "config":
            config = json.dumps(damaged_json(draw, json.loads(config)))
        elif kind == "index":
            index = damaged_json(draw, index)
        if kind.startswith("index"):
            content = json.dumps(index).encode()
            content = damaged_bytes(draw, content) if kind == "index bytes" else content
            (folder / "model.safetensors.index.json").write_bytes(content)
    content = config.encode("utf-8", "surrogatepass")
    (folder / "config.json").write_bytes(damaged_bytes(draw, content) if kind == "config bytes" else content)
    return kind in ("zip", "index", "index bytes")


def test_a_value_error_or_a_good_model(tmp_path, source):
    pytest.importorskip("safetensors", reason="pip install safetensors")
    draw, started, good = random.Random(7), time.monotonic(), 0
    with peak_memory.measured() as peak:
        for case in range(CASES):
            folder = tmp_path / str(case)
            folder.mkdir()
            same_bits = write_case(draw, folder, source)
            try:
                model = checkpoints.load(folder)
            except (ValueError, FileNotFoundError) as error:
                assert str(folder) in str(error), f"case {case}: {error!r}"
                # A shard that an index names and that is not there is the one other error that is promised.
                assert not isinstance(error, FileNotFoundError) or "says that it holds weights" in str(error), case
                continue
            except BaseException as error:
                raise AssertionError(f"case {case}: {error!r}") from error
            good += 1
            assert [p.shape for p in model.parameters()] == [p.shape for p in source.parameters()], case
            assert model(torch.zeros(1, 3, dtype=torch.long))[0].shape == (3, 20), case
            if same_bits:
                assert all(torch.equal(a, b) for a, b in zip(model.parameters(), source.parameters())), case
    assert 20 < good < CASES - 100
    assert peak.bytes < 200e6
    assert time.monotonic() - started < 60
