"""A command shares its machine: its threads wait without spinning, and there are no more of them than it may use."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from xlstm_cuda.cli import sharing

ALONE = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "KMP_", "MKL_"))}


def machine(tmp_path, groups: str, **files: str):
    """A root folder with these control groups; `__` stands for a folder, `_dot_` for a dot."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        ("0::/\n", {"cpu_dot_max": "150000 100000\n"}, 1.5),
        (
            "0::/a/b\n",
            {"cpu_dot_max": "max 9", "a__cpu_dot_max": "50000 100000\n", "a__b__cpu_dot_max": "max 100000\n"},
            0.5,
        ),
        ("0::/gone\n", {"cpu_dot_max": "200000 100000\n"}, 2.0),
        ("0::/\n", {"cpu_dot_max": "max 100000\n"}, None),
        ("0::/\n", {}, None),
        ("3:cpu,cpuacct:/c\n", {"cpu__c__cpu_dot_cfs_quota_us": "150000", "cpu__c__cpu_dot_cfs_period_us": "100000"}, 1.5),
        ("3:cpu:/\n", {"cpu__cpu_dot_cfs_quota_us": "-1", "cpu__cpu_dot_cfs_period_us": "100000"}, None),
        ("3:cpuset:/\n0::/\n", {}, None),
    ],
)
def test_the_quota_of_the_control_groups(tmp_path, groups, files, quota):
    assert sharing.cpu_quota(machine(tmp_path, groups, **files)) == quota


def test_no_control_groups(tmp_path):
    assert sharing.cpu_quota(tmp_path) is None


@pytest.mark.parametrize(("quota", "present", "threads"), [(1.5, 8, "2"), (0.4, 8, "1"), (2.0, 2, None), (None, 2, None)])
def test_no_more_threads_than_the_process_may_use(monkeypatch, quota, present, threads):
    for name in (*sharing.WAITING, sharing.THREADS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sharing, "cpu_quota", lambda: quota)
    monkeypatch.setattr(sharing, "_present", lambda: present)
    sharing.share_the_machine()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    assert os.environ.get("OMP_NUM_THREADS") == threads


@pytest.mark.parametrize(
    ("beside", "given", "quota", "threads"),
    [
        ("4", "1", None, "4"),  # torchrun's own 1
        ("4", None, None, "4"),
        ("4", "1", 6.0, "1"),
        ("40", "1", None, "1"),
        ("4", "7", None, "7"),
        ("1", None, None, None),
        ("1", "1", None, "1"),
        ("none", None, None, None),
    ],
)
def test_processes_of_torchrun_share_out_the_threads(monkeypatch, beside, given, quota, threads):
    monkeypatch.delenv(sharing.THREADS, raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", beside)
    if given is not None:
        monkeypatch.setenv(sharing.THREADS, given)
    monkeypatch.setattr(sharing, "cpu_quota", lambda: quota)
    monkeypatch.setattr(sharing, "_present", lambda: 16)
    sharing.share_the_machine()
    assert os.environ.get(sharing.THREADS) == threads


@pytest.mark.parametrize("name", sharing.WAITING)
def test_what_the_user_chose_stays(monkeypatch, name):
    for other in (*sharing.WAITING, sharing.THREADS):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "ACTIVE" if name == "OMP_WAIT_POLICY" else "7")
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.setattr(sharing, "cpu_quota", lambda: 1.0)
    before = dict(os.environ)
    sharing.share_the_machine()
    assert dict(os.environ) == before


def printed(*arguments: str, **more: str) -> str:
    result = subprocess.run([sys.executable, *arguments], env={**ALONE, **more}, capture_output=True, text=True, check=True)
    return result.stdout


def test_the_command_waits_passively_and_a_library_import_changes_nothing():
    look = "import os, xlstm_cuda; print(os.environ.get('OMP_WAIT_POLICY'))"
    assert printed("-c", look).strip() == "None"
    line = next(line for line in printed("-m", "xlstm_cuda", "info").splitlines() if "OMP_WAIT_POLICY" in line)
    assert "PASSIVE" in line
    line = next(x for x in printed("-m", "xlstm_cuda", "info", OMP_WAIT_POLICY="ACTIVE").splitlines() if "OMP_WAIT_POLICY" in x)
    assert "ACTIVE" in line
