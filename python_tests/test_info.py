"""`python -m xlstm_cuda info` answers also where something is broken."""

import json
import re

import pytest
import torch

import xlstm_cuda
from xlstm_cuda import native
from xlstm_cuda.cli import info, main


def test_info_shows_every_backend_with_its_reason(capsys):
    assert main(["info"]) == 0
    shown = capsys.readouterr().out
    for backend in xlstm_cuda.backends().values():
        assert backend.name in shown and backend.reason in shown
    for part in (
        xlstm_cuda.__version__,
        torch.__version__,
        native._C.compiler,
        "CUDA architectures",
        "simt executor",
        native.cpu_isa(),
    ):
        assert part in shown


def test_info_json_has_the_sections(capsys):
    assert main(["info", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report) == ["versions", "devices", "backends", "build", "sLSTM kernels", "threads"]
    assert list(report["backends"]) == ["cuda", "cpu", "simt", "reference"]
    assert report["backends"]["cpu"]["usable"] is True
    assert report["build"]["CUDA kernels"] is bool(native._C.cuda_architectures)


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_info_survives_a_broken_torch_cuda(capsys, monkeypatch, as_json):
    def broken():
        raise RuntimeError("CUDA driver initialization failed")

    monkeypatch.setattr(torch.cuda, "is_available", broken)
    monkeypatch.setattr(native._C, "cuda_architectures", "90a-real")
    assert main(["info", *(["--json"] if as_json else [])]) == 0
    shown = capsys.readouterr().out
    assert "RuntimeError: CUDA driver initialization failed" in shown
    assert torch.__version__ in shown and "CPU instruction set" in shown


def test_info_survives_a_missing_package(monkeypatch):
    def missing(name):
        raise info.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(info.importlib.metadata, "version", missing)
    assert info.collect()["versions"]["matplotlib"] == "not installed"


def test_info_names_cuda_versions_as_people_do(monkeypatch):
    monkeypatch.setattr(native._C, "cuda_architectures", "80-real;90a-real")
    monkeypatch.setattr(native._C, "cuda_version", 12080)
    assert info.collect()["build"]["CUDA version"] == "12.8"
    monkeypatch.setattr(native._C, "cuda_architectures", "")
    monkeypatch.setattr(native._C, "cuda_version", 0)
    report = info.collect()
    assert report["build"]["CUDA version"] is None
    assert re.search(r"CUDA version +none", info.as_text(report))
