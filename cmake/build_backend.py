"""scikit-build-core, preceded by one sentence: what is going to be built, and about how long that takes.

pip shows nothing of what a build prints (without -v). So the sentence goes to pip's own error stream, when pip asks for the
build's requirements, before it downloads or compiles anything; a build that cannot work is refused right there. With
--no-build-isolation pip does not ask for requirements, and the sentence comes when the build starts.
"""

from __future__ import annotations

import os
import platform
import stat
import sys
from pathlib import Path
from typing import Any

from build_plan import Refused, make_plan
from scikit_build_core import build
from scikit_build_core.build import *  # noqa: F403  the other hooks, as they are

ConfigSettings = dict[str, Any] | None
SWITCHES = ("XLSTM_CUDA", "XLSTM_SIMT", "XLSTM_SIMT_ASAN", "XLSTM_PTX")


def get_requires_for_build_wheel(config_settings: ConfigSettings = None) -> list[str]:
    """The hook of PEP 517."""
    announce(config_settings)
    return build.get_requires_for_build_wheel(config_settings)


def get_requires_for_build_editable(config_settings: ConfigSettings = None) -> list[str]:
    """The hook of PEP 660."""
    announce(config_settings)
    return build.get_requires_for_build_editable(config_settings)


def build_wheel(folder: str, config_settings: ConfigSettings = None, metadata: str | None = None) -> str:
    """The hook of PEP 517."""
    if not in_isolation():
        announce(config_settings)
    return build.build_wheel(folder, config_settings, metadata)


def build_editable(folder: str, config_settings: ConfigSettings = None, metadata: str | None = None) -> str:
    """The hook of PEP 660."""
    if not in_isolation():
        announce(config_settings)
    return build.build_editable(folder, config_settings, metadata)


def in_isolation() -> bool:
    """Whether pip put the build's requirements into a folder of their own, beside the environment."""
    return not Path(build.__file__).is_relative_to(sys.prefix)


def announce(config_settings: ConfigSettings) -> None:
    """Says the plan, or ends the build with the sentence that says why there is none."""
    defined = {switch: (config_settings or {}).get(f"cmake.define.{switch}") for switch in SWITCHES}
    defined["CUDAARCHS"] = (config_settings or {}).get("cmake.define.CMAKE_CUDA_ARCHITECTURES")
    try:
        plan = make_plan({**os.environ, "SYSTEM": platform.system()} | {name: value for name, value in defined.items() if value})
    except Refused as refusal:
        raise SystemExit(f"xlstm_cuda: {refusal}") from None
    tell_the_user(f"xlstm_cuda: {plan.sentence}")


def tell_the_user(sentence: str) -> None:
    """Writes to the error stream of the parent, which is pip; to our own where that cannot be reached."""
    path = f"/proc/{os.getppid()}/fd/2"
    try:
        # A log file that the parent does not append to would be overwritten: its position is the parent's own.
        if stat.S_ISREG(os.stat(path).st_mode):
            raise OSError("a file")
        with open(path, "w", encoding="utf-8") as stream:
            stream.write(f"\n  {sentence}\n")
    except OSError:
        print(sentence, file=sys.stderr, flush=True)
