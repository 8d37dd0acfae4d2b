"""The documents are true where a program can tell: links lead somewhere, every page is reached, examples and commands run."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tolerances
import torch

import xlstm_cuda

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "csrc").rglob("*.md")),
]
if not (ROOT / "docs").is_dir():
    pytest.skip("docs/ is only in a checkout", allow_module_level=True)
README = (ROOT / "README.md").read_text(encoding="utf-8")
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
#: Pages whose examples another file of tests runs, each by itself.
TESTED_ELSEWHERE = {"docs/users.md": "test_integrations_users.py", "docs/from-xlstm.md": "test_official_readme.py"}
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.S)


def prose(page: Path) -> str:
    """A page without its code."""
    return re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.S)


def links(page: Path) -> list[tuple[str, str]]:
    """Path and anchor of every link into the repository."""
    found = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [(target.split("#")[0], target.partition("#")[2]) for target in found if not re.match(r"[a-z]+:", target)]


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page):
    for path, anchor in links(page):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{path} is not there"
        assert not anchor or anchor in anchors(target), f"{path}#{anchor} is not there"


def test_index_leads_to_every_page():
    index = ROOT / "docs" / "index.md"
    linked = {(index.parent / path).resolve() for path, _ in links(index)}
    assert {page.resolve() for page in PAGES} - linked - {index} == set()
    assert "docs/index.md" in {path for path, _ in links(ROOT / "README.md")}


def test_readme_comes_in_the_order_of_a_newcomer():
    expected = ["Install", "Use", "What works where", "Try it", "Test it", "How right, how fast", "Licence"]
    assert re.findall(r"^## (.*)$", README, re.M) == expected


@pytest.mark.parametrize("code", EXAMPLES, ids=range(len(EXAMPLES)))
def test_readme_examples_run(code):
    exec(compile(code, "README.md", "exec"), {})


def python_of(page: Path) -> list[str]:
    """The Python blocks of a page, also those that are indented in a list; not those below `<!-- not run: reason -->`."""
    blocks = re.findall(r"^(<!-- not run: .+ -->\n)?( *)```python\n(.*?)^ *```", page.read_text(encoding="utf-8"), re.S | re.M)
    return [re.sub(rf"^{indent}", "", code, flags=re.M) for reason, indent, code in blocks if not reason]


PAGES_THAT_RUN = [name for name, page in zip(NAMES, PAGES) if python_of(page) and name not in ("README.md", *TESTED_ELSEWHERE)]


@pytest.mark.parametrize("name", PAGES_THAT_RUN)
def test_examples_of_a_page_run_one_after_the_other(name):
    """In a process of their own, so that a page cannot lean on what another one imported."""
    code = "\n".join(python_of(ROOT / name))
    if 'backend="simt"' in code and not xlstm_cuda.backends()["simt"]:
        pytest.skip(xlstm_cuda.backends()["simt"].reason)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", TESTED_ELSEWHERE)
def test_examples_that_others_run_are_run_there(name):
    tests = (ROOT / "python_tests" / TESTED_ELSEWHERE[name]).read_text(encoding="utf-8")
    assert Path(name).name in tests and "```python" in tests


def test_first_example_of_the_readme_is_ten_lines():
    assert len(EXAMPLES[0].splitlines()) <= 10


@pytest.mark.parametrize("marker,command", [("main job", "make demo"), ("tests", "make test")])
def test_the_two_commands_of_the_readme_are_one_line(marker, command):
    block = re.search(rf"<!-- {marker} -->\n```bash\n(.*?)```", README, re.S)
    assert block and block[1].strip() == command


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_in_a_page_exist(page):
    text = page.read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.search(r"^\.PHONY: (.*)$", makefile, re.M)[1].split())
    assert set(re.findall(r"`make ([a-z-]+)", text)) <= targets
    for module in set(re.findall(r"python3? -m (bench[\w.]*)", text)):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
    for script in set(re.findall(r"python3? ((?:python_tests|examples|bench|\.ci)/[\w/]+\.py)", text)):
        assert (ROOT / script).exists(), script


def test_every_message_in_the_table_of_errors_is_said_somewhere():
    text = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    table = text.split("## What an error means")[1].split("\n## ")[0]
    said = re.findall(r"^\| `([^`]+)` \|", table, re.M)
    assert len(said) >= 10
    files = [*(ROOT / "cmake").glob("*"), *(ROOT / "xlstm_cuda").rglob("*.py"), *(ROOT / "csrc/python").glob("*")]
    sources = re.sub(r'"\s*\n\s*f?"', "", "\n".join(file.read_text(encoding="utf-8") for file in files if file.is_file()))
    of_others = {"cudaErrorInsufficientDriver", "unsupported GNU version"}  # the CUDA runtime, nvcc
    for message in said:
        for part in re.split(r" \.\.\. ?|: \.\.\. | \d+\.\d+\b", message):
            pattern = re.escape(part.strip(" .;"))
            assert part in of_others or re.search(pattern, sources), f"{message}: nothing says {part!r}"


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not on PATH")
def test_makefile_help_lists_every_target():
    shown = subprocess.run(["make", "help"], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    for target in ("demo", "test", "test-deep", "docs", "wheel", "lint", "gpu-check"):
        assert re.search(rf"\b{target}\b", shown), shown


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_no_angle_bracket_is_taken_for_html(page):
    """Written without code marks, the inner product of C0 and dC0 vanishes from the page, as an unknown tag does."""
    text = re.sub(r"\$[^$\n]+\$|^    .*$", "", prose(page), flags=re.M)  # neither equations nor indented code
    tags = set(re.findall(r"<(?!!--|/?(?:div|https?:))[A-Za-z/][^>\n]*>", text))
    assert not tags, f"in backticks, please: {tags}"


def test_every_page_has_a_place_on_the_site():
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r": ([\w/.-]+\.md)$", site, re.M))
    pages = {name.removeprefix("docs/") for name in NAMES if name != "README.md"}
    assert pages <= named, f"not in the nav of mkdocs.yml: {pages - named}"


def test_the_tolerances_of_the_numerics_page_are_those_of_the_tests():
    table = re.findall(r"^\| (mLSTM|sLSTM): (\w+) \|(.*)\|$", (ROOT / "docs/numerics.md").read_text(encoding="utf-8"), re.M)
    assert len(table) == 5
    for cell, what, cells in table:
        allowed = getattr(tolerances, f"{cell.upper()}_{ {'h': 'H', 'gradients': 'GRAD', 'df': 'DF'}[what] }")
        dtypes = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
        assert [float(number) for number in cells.split("|")] == [allowed[dtype] for dtype in dtypes], (cell, what)
