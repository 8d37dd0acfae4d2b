"""Builds the documentation site: `python3 .ci/docs.py [options of mkdocs build]`, or `make docs`.

Installs the pinned tools of pyproject's extra "docs" into the active environment, else into .venv, and builds strictly into
build/site: a warning is an error. The package itself and torch are not needed: the reference is read from the sources.
"""

from __future__ import annotations

import os
import subprocess
import sys

from install import ROOT, active_environment, make_environment

try:
    import tomllib
except ImportError:  # Python 3.10
    from pip._vendor import tomli as tomllib


def main() -> int:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    python = str((active_environment() or make_environment()) / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", *project["optional-dependencies"]["docs"]], check=True)
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    status = subprocess.run([python, "-m", "mkdocs", "build", "--strict", *sys.argv[1:]], cwd=ROOT, env=quiet).returncode
    if not status:
        print(f"open {ROOT / 'build/site/index.html'}, or serve it: python3 -m http.server -d build/site")
    return status


if __name__ == "__main__":
    sys.exit(main())
