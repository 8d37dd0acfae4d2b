"""CI runs the parity tests: an oracle that is missing there is a failure, not a skip."""

from __future__ import annotations

import os
import re
from importlib import metadata
from pathlib import Path

import pytest

PYPROJECT = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
PEERS = re.findall(r'"([\w-]+)(?:([=>]=)([\d.]+))?"', PYPROJECT.split("peers = [")[1].split("]")[0])


@pytest.mark.skipif(not os.environ.get("CI"), reason="asked in CI (environment variable CI) only")
@pytest.mark.parametrize("name,relation,version", PEERS, ids=[peer[0] for peer in PEERS])
def test_ci_has_every_oracle(name, relation, version):
    installed = metadata.version(name)
    assert relation != "==" or installed == version


def test_the_list_of_oracles_is_read():
    assert {"xlstm", "transformers", "safetensors", "dacite"} <= {name for name, _, _ in PEERS}
