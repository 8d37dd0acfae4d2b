"""The examples in the docstrings run, and what prints in a notebook says what it is."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys

import torch

import xlstm_cuda
from xlstm_cuda import functional, generation, integrations, packing, simt, states

#: Runs the examples of every module of the package, in a process that has not imported any peer.
EXAMPLES = """
import doctest, importlib, pkgutil, sys
import torch, xlstm_cuda

failed = attempted = 0
for module in pkgutil.walk_packages(xlstm_cuda.__path__, "xlstm_cuda."):
    last = module.name.rpartition(".")[2]
    if last.startswith("_") or ".cli" in module.name:
        continue
    torch.manual_seed(0)
    result = doctest.testmod(importlib.import_module(module.name), extraglobs={"torch": torch})
    failed, attempted = failed + result.failed, attempted + result.attempted
print(failed, attempted)
sys.exit(failed)
"""

WITH_EXAMPLES = [
    functional.mlstm, functional.mlstm_step, functional.slstm, functional.slstm_step, xlstm_cuda.sLSTM, xlstm_cuda.mLSTM,
    xlstm_cuda.xLSTMBlockStack, xlstm_cuda.xLSTMLMModel, xlstm_cuda.xLSTMLarge, xlstm_cuda.backends, xlstm_cuda.checkpoints.load,
    xlstm_cuda.MLSTMState, xlstm_cuda.SLSTMState, states.select, states.expand, states.to, states.detach, packing.pack,
    packing.unpack, packing.from_attention_mask, generation.generate, states.join, integrations.Handle, simt.options,
]  # fmt: skip


def test_examples_run():
    done = subprocess.run([sys.executable, "-c", EXAMPLES], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[-1]) > 50


def test_what_people_call_has_an_example():
    assert [thing.__name__ for thing in WITH_EXAMPLES if ">>> " not in inspect.getdoc(thing)] == []


def public_docstrings() -> list[tuple[str, str]]:
    """Of everything that the reference pages show."""
    found = [("functional", functional.__doc__)]
    for name in (*xlstm_cuda.__all__, *(f"functional.{name}" for name in ("mlstm", "mlstm_step", "slstm", "slstm_step"))):
        thing = xlstm_cuda
        for part in name.split("."):
            thing = getattr(thing, part)
        found.append((name, inspect.getdoc(thing) or ""))
        if inspect.isclass(thing):
            methods = [
                (key, value) for key, value in vars(thing).items() if inspect.isfunction(value) and not key.startswith("_")
            ]
            found += [(f"{name}.{key}", inspect.getdoc(value) or "") for key, value in methods]
    return found


def test_docstrings_read_well_as_markdown():
    """An angle bracket outside backticks vanishes from the page; two colons are shown, and * begins italics."""
    for name, text in public_docstrings():
        prose = re.sub(r"``.*?``|`[^`]*`|^ *>>>.*?(?=\n *\n|\Z)", "", text, flags=re.S | re.M)
        assert not re.findall(r"<[A-Za-z/][^>]*>|::|\w\*\w", prose), name


def test_a_state_shows_shapes_instead_of_numbers():
    state = xlstm_cuda.MLSTMState(
        torch.zeros(2, 4, 8, 16), torch.zeros(2, 4, 8, dtype=torch.float64), torch.zeros(2, 4).to("meta")
    )
    assert repr(state) == "MLSTMState(C=float32 (2, 4, 8, 16), n=float64 (2, 4, 8), m=float32 (2, 4) on meta)"
    assert repr(xlstm_cuda.SLSTMState(1, None, "n", ())) == "SLSTMState(h=1, c=None, n='n', m=())"
    found = packing.from_attention_mask(torch.ones(2, 3, dtype=torch.bool))
    assert repr(found) == "Unpadded(reset=bool (2, 3), cu_seqlens=int32 (3,), positions=int64 (6,))"


def test_every_module_with_options_shows_them():
    config = xlstm_cuda.xLSTMLMModelConfig(
        xlstm_cuda.mLSTMBlockConfig(), xlstm_cuda.sLSTMBlockConfig(), num_blocks=2, embedding_dim=64, vocab_size=10, slstm_at=[1]
    )
    large = xlstm_cuda.xLSTMLargeConfig(embedding_dim=64, num_heads=2, num_blocks=1, vocab_size=10)
    layers = (xlstm_cuda.sLSTM(8, 16), xlstm_cuda.mLSTM(8, 16, igate="sigmoid"))
    for model in (xlstm_cuda.xLSTMLMModel(config), xlstm_cuda.xLSTMLarge(large), *layers):
        for name, module in model.named_modules():
            assert not repr(module).endswith("()") or type(module) is torch.nn.Identity, f"{name}: {module!r}"
    assert repr(layers[1]) == "mLSTM(8, 16, igate='sigmoid')"
