"""What mkdocs.yml needs beyond its plugins: pages from outside docs/, links that work on GitHub and on the site, equations.

A page of the repository links to files by their paths. On the site a link to another page leads to that page, an image comes
along, and a link to any other file leads to the repository on the web. A path that does not exist is an error.
"""

from __future__ import annotations

import html
import posixpath
import re
from pathlib import Path
from typing import Any

from math_core import LatexError, LatexToMathML
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = (
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.md")),
    "bench/results/static/kernels.md",
)
LINK = re.compile(r"(```.*?```|`[^`\n]*`)|(\]\()([^)\s#]+)(#[^)\s]*)?\)", re.S)
MATH = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', re.S)
NAMED = re.compile(r"(?<![\w/\">])(?:csrc/\w+/README\.md|docs/[\w-]+\.md)(?![\w\"])")
NUMBER = re.compile(r"\\tag\{(.*?)\}")


def on_files(files: Any, config: Any) -> Any:
    for path in OUTSIDE:
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def place(file: File) -> str:
    """Where the file stands in the repository."""
    return file.src_uri if file.src_uri in OUTSIDE else f"docs/{file.src_uri}"


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    here = place(page.file)

    def on_the_site(found: re.Match) -> str:
        code, bracket, path, anchor = found.groups()
        if code or re.match(r"[a-z]+:", path):
            return found[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(here), path))
        if target.startswith("..") or not (ROOT / target).exists():
            raise PluginError(f"{here}: the link to {path} leads nowhere")
        uri = target.removeprefix("docs/") if target.startswith("docs/") else target
        if files.get_file_from_path(uri) is None and target.endswith((".png", ".svg")):
            files.append(File.generated(config, uri, abs_src_path=str(ROOT / target)))
        if files.get_file_from_path(uri) is None:
            kind = "tree" if (ROOT / target).is_dir() else "blob"
            return f"{bracket}{config.repo_url}/{kind}/main/{target}{anchor or ''})"
        relative = posixpath.relpath(uri, posixpath.dirname(page.file.src_uri) or ".")
        return f"{bracket}{relative}{anchor or ''})"

    page.edit_url = f"{config.repo_url}/blob/main/{here}"
    return LINK.sub(on_the_site, markdown)


def on_page_content(content: str, page: Any, config: Any, files: Any) -> str:
    """LaTeX -> MathML, which every browser draws by itself; pages that docstrings name -> links. Errors where that cannot be."""
    converter = LatexToMathML(fancy_error=False)

    def linked(found: re.Match) -> str:
        """A page that a docstring names."""
        file = files.get_file_from_path(found[0].removeprefix("docs/"))
        if file is None:
            raise PluginError(f"{place(page.file)}: a docstring names {found[0]}, which is no page")
        return f'<a href="{posixpath.relpath(file.dest_uri, posixpath.dirname(page.file.dest_uri))}">{found[0]}</a>'

    def drawn(found: re.Match) -> str:
        tag, latex = found[1], re.sub(r"^\\[(\[]|\\[)\]]$", "", html.unescape(found[2]).strip())
        number = NUMBER.search(latex)
        try:
            drawing = converter.convert_with_local_state(NUMBER.sub("", latex).strip(), displaystyle=tag == "div")
        except LatexError as error:
            raise PluginError(f"{place(page.file)}: {latex}: {error}") from error
        label = f'<span class="number" id="{number[1]}">({number[1]})</span>' if number else ""
        return f'<{tag} class="arithmatex">{drawing}{label}</{tag}>'

    content = MATH.sub(drawn, content)
    return NAMED.sub(linked, content) if page.file.src_uri.startswith("reference/") else content
