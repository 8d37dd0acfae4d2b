"""Switching an integration on and off: whole or not at all, once, from any thread, back to the same objects.

The peer here is a stand-in made of a class, a module and a registry; the integrations of real peers have files of their own.
"""

from __future__ import annotations

import importlib.metadata
import sys
import threading
from types import ModuleType

import pytest
import torch

from xlstm_cuda import integrations
from xlstm_cuda.integrations import IntegrationError, UnsupportedVersion, patch
from xlstm_cuda.integrations.patch import Swap

NAMES = ("flashrnn", "mlstm_kernels", "tirex", "transformers", "xlstm")


@pytest.fixture(autouse=True)
def nothing_is_on():
    assert integrations.enabled() == ()
    yield
    assert integrations.enabled() == ()
    assert patch._made == {}


@pytest.fixture
def peer():
    """A package with a static method, a function and a registry."""

    class Cell:
        @staticmethod
        def run(x, state):
            return "theirs"

    module = ModuleType("peer")
    module.Cell = Cell
    module.function = lambda x: "theirs"
    module.registry = {"own": 1}
    return module


def swaps_of(peer, count=3):
    def find(backend):
        return [
            Swap(peer.Cell, "run", lambda original: staticmethod(lambda x, state: "ours")),
            Swap(peer, "function", lambda original: lambda x: "ours", ("x",)),
            Swap(peer.registry, "added", lambda original: "ours"),
        ][:count]

    return find


def everything(peer):
    return vars(peer.Cell)["run"], peer.function, dict(peer.registry)


def test_disable_restores_the_same_objects(peer):
    before = everything(peer)
    handle = patch.enable("peer", None, swaps_of(peer))
    assert (peer.Cell.run(1, 2), peer.function(1), peer.registry) == ("ours", "ours", {"own": 1, "added": "ours"})
    assert integrations.enabled() == ("peer",)
    handle.disable()
    after = everything(peer)
    assert after[0] is before[0] and after[1] is before[1] and after[2] == before[2]
    handle.disable()
    assert everything(peer) == after


def test_enabling_twice_is_one(peer):
    before = everything(peer)
    first = patch.enable("peer", None, swaps_of(peer))
    assert patch.enable("peer", None, swaps_of(peer)) is first
    assert integrations.enabled() == ("peer",)
    first.disable()
    assert everything(peer) == before


def test_inherited_attribute_is_deleted_again():
    class Base:
        def run(self):
            return "theirs"

    class Cell(Base):
        pass

    with patch.enable("peer", None, lambda backend: [Swap(Cell, "run", lambda original: lambda self: "ours")]):
        assert Cell().run() == "ours"
    assert "run" not in vars(Cell) and Cell().run() == "theirs"


def test_with_restores_after_an_exception(peer):
    before = everything(peer)
    with pytest.raises(KeyError), patch.enable("peer", None, swaps_of(peer)):
        raise KeyError
    assert everything(peer) == before


def test_inner_with_leaves_the_outer_one_on(peer):
    with patch.enable("peer", None, swaps_of(peer)) as outer:
        with patch.enable("peer", None, swaps_of(peer)):
            pass
        assert peer.function(1) == "ours"
        with outer:
            pass
        assert peer.function(1) == "ours"
    assert peer.function(1) == "theirs"


def test_with_leaves_on_what_was_on_before(peer):
    handle = patch.enable("peer", None, swaps_of(peer))
    with patch.enable("peer", None, swaps_of(peer)):
        pass
    assert peer.function(1) == "ours"
    handle.disable()
    with handle:
        assert peer.function(1) == "ours"
    assert peer.function(1) == "theirs"


@pytest.mark.parametrize("fault", ["replace", "find", "signature"])
def test_a_fault_on_the_way_leaves_nothing_patched(peer, fault):
    before = everything(peer)

    def find(backend):
        if fault == "find":
            raise ImportError("no peer")

        def broken(original):
            raise RuntimeError("cannot")

        bad = Swap(peer, "function", broken if fault == "replace" else lambda original: original, ("x", "gone"))
        return [*swaps_of(peer, 1)(backend), Swap(peer, "function", broken) if fault == "replace" else bad]

    with pytest.raises({"replace": RuntimeError, "find": ImportError, "signature": UnsupportedVersion}[fault]):
        patch.enable("peer", None, find)
    assert everything(peer) == before


def test_a_missing_attribute_is_an_unsupported_version(peer):
    with pytest.raises(UnsupportedVersion, match=r"peer.Cell|Cell.walk: got no such attribute, expected a function of q"):
        patch.enable("peer", None, lambda backend: [Swap(peer.Cell, "walk", lambda original: original, ("q",))])


def test_two_integrations_share_a_swap_and_the_last_undoes_it(peer):
    first = patch.enable("one", None, swaps_of(peer))
    second = patch.enable("two", None, swaps_of(peer))
    first.disable()
    assert peer.function(1) == "ours"
    second.disable()
    assert peer.function(1) == "theirs"


def test_another_backend_while_on_is_refused(peer):
    with patch.enable("one", "cpu", swaps_of(peer)):
        with pytest.raises(IntegrationError, match=r"one: got backend 'reference', expected 'cpu'"):
            patch.enable("one", "reference", swaps_of(peer))
        with pytest.raises(IntegrationError, match=r"two: got backend None, expected 'cpu', with which one is on"):
            patch.enable("two", None, swaps_of(peer))
        assert integrations.enabled() == ("one",)


def test_a_change_by_others_is_undone_with_a_warning(peer):
    before = everything(peer)
    handle = patch.enable("peer", None, swaps_of(peer))
    peer.function = lambda x: "others"
    with pytest.warns(RuntimeWarning, match="function was changed by others"):
        handle.disable()
    assert everything(peer) == before


@pytest.mark.parametrize("name", NAMES)
def test_backend_is_checked_before_anything_is_imported(name):
    with pytest.raises(ValueError, match="backend: got 'gpu', expected one of"):
        getattr(integrations, name).enable("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="backend 'cuda' is not usable here"):
            getattr(integrations, name).enable("cuda")


@pytest.mark.parametrize("name", NAMES)
def test_missing_package_is_an_import_error_that_names_it(name, monkeypatch):
    for module in [*sys.modules]:
        if module.split(".")[0] in ("xlstm", "mlstm_kernels", "flashrnn", "transformers", "tirex", "tirex2"):
            monkeypatch.delitem(sys.modules, module)
    for module in ("xlstm", "mlstm_kernels", "flashrnn", "transformers", "tirex", "tirex2"):
        monkeypatch.setitem(sys.modules, module, None)
    expected = {"tirex": "neither tirex-ts nor tirex-2"}.get(name, f"the package {name} cannot be imported")
    with pytest.raises(ImportError, match=expected):
        getattr(integrations, name).enable()


@pytest.mark.parametrize("version,accepted", [("1.9.3", False), ("2.0.6", True), ("2.7rc1", True), ("3.0", False)])
def test_version_is_checked(version, accepted, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    find = lambda: patch.peer("peer", "json", "json-peer", (2, 0), (3, 0))  # noqa: E731
    if accepted:
        assert find() is sys.modules["json"]
    else:
        with pytest.raises(
            UnsupportedVersion, match=rf"integrations.peer: got json-peer {version}, expected at least 2.0 and below 3.0"
        ):
            find()


@pytest.mark.parametrize("name", ["flashrnn", "mlstm_kernels", "transformers", "xlstm"])
def test_unsupported_version_of_a_real_peer_changes_nothing(name, monkeypatch):
    pytest.importorskip(name, reason="pip install 'xlstm_cuda[peers]'")
    monkeypatch.setattr(importlib.metadata, "version", lambda distribution: "0.9.1")
    with pytest.raises(UnsupportedVersion, match=r"got \w+ 0.9.1, expected at least"):
        getattr(integrations, name).enable()


def test_threads_see_all_or_nothing_and_end_with_the_originals(peer):
    before, found, start = everything(peer), [], threading.Barrier(8)

    def work():
        start.wait()
        for _ in range(100):
            with patch.enable("peer", None, swaps_of(peer)):
                found.append((peer.Cell.run(1, 2), peer.function(1), "added" in peer.registry))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [("ours", "ours", True)] * 800
    assert everything(peer) == before


def test_compiled_code_does_not_patch_and_says_so(peer):
    before = everything(peer)

    def f(x):
        with patch.enable("peer", None, swaps_of(peer)):
            return x + 1

    with pytest.raises(Exception, match=r"Observed exception|IntegrationError"):
        torch.compile(f, backend="eager", fullgraph=True)(torch.ones(2))
    assert everything(peer) == before


def test_code_that_compiles_in_pieces_patches_wholly(peer):
    before = everything(peer)

    def f(x):
        with patch.enable("peer", None, swaps_of(peer)):
            assert (peer.Cell.run(1, 2), peer.function(1), "added" in peer.registry) == ("ours", "ours", True)
            return x + 1

    assert torch.compile(f, backend="eager")(torch.ones(2)).tolist() == [2.0, 2.0]
    assert everything(peer) == before


def test_compiled_programs_follow_the_switch():
    """torch.compile does not watch the class of a submodule for another `forward`."""

    class Cell(torch.nn.Module):
        def forward(self, x):
            return x + 1

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = Cell()

        def forward(self, x):
            return 2 * self.cell(x)

    def replace(original):
        return lambda self, x: x + 10

    program, x = torch.compile(Model(), backend="eager"), torch.zeros(1)
    assert program(x).item() == 2
    with patch.enable("peer", None, lambda backend: [Swap(Cell, "forward", replace, ("x",))]):
        assert program(x).item() == 20
    assert program(x).item() == 2
