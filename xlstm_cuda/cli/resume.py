"""What there must be to resume, and what a resumed run must agree with: its settings, its text, its tokenizer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import checkpoint, report, runs, tokens
from .distributed import World
from .errors import CommandError, UsageError
from .settings import Settings
from .text import Text
from .tokens import Coding
from .training import check_checkpoint


def goes_on(out: str | None, world: World) -> bool:
    """Whether torchrun restarts a run that has a checkpoint already."""
    if not world.restarted:
        return False
    if out is None:
        raise UsageError("--out: expected with torchrun's --max-restarts, so that a restarted run finds its checkpoint")
    return world.tell(lambda: (Path(out) / checkpoint.LAST).exists())


def saved_run(out: str | None, world: World) -> tuple[Path, dict[str, Any]]:
    """Folder and checkpoint of the run to resume; weights and moments in the first process alone."""
    whole: dict[str, Any] = {}

    def read() -> tuple[Path, dict[str, Any]]:
        folder = Path(out) if out else runs.latest_folder()
        whole.update(checkpoint.load(folder / checkpoint.LAST))
        where = f"checkpoint {folder / checkpoint.LAST}"
        settings, _ = check_checkpoint(whole, where)
        check_course(whole, settings, where)
        return folder, {name: value for name, value in whole.items() if name not in ("model", "optimizer")}

    folder, course = world.tell(read)
    return folder, whole or course


def check_course(saved: Mapping[str, Any], settings: Settings, where: str) -> None:
    """CommandError unless a checkpoint's account of the run so far has the form that `Run` writes."""
    numbers = (int, float)
    text, history, ngrams = saved.get("text"), saved.get("history"), saved.get("ngrams")
    forms = {
        "step": type(saved.get("step")) is int and 0 <= saved["step"] <= settings.steps,
        "seconds": isinstance(saved.get("seconds"), numbers) and math.isfinite(saved["seconds"]),
        "ngrams": isinstance(ngrams, list) and all(isinstance(bits, numbers) for bits in ngrams),
        "text": isinstance(text, Mapping)
        and _are_paths(text.get("path", ...))
        and all(isinstance(text.get(name), kind) for name, kind in (("name", str), ("sha256", str), ("bytes", int))),
        "history": isinstance(history, Mapping)
        and all(_are_points(history.get(name)) for name in ("training", "held_out")),
        "optimizer": isinstance(saved.get("optimizer"), Mapping),
        "random_of_others": isinstance(saved.get("random_of_others", []), list),
        "layout": _is_layout(saved.get("layout", report.ALONE)),
    }  # fmt: skip
    for name, fits in forms.items():
        if not fits:
            raise CommandError(f"{where} is not one of a run: its {name!r} has another form")


def _is_layout(shares: object) -> bool:
    """Whether this is what `Training.shares` gives."""
    return isinstance(shares, list) and [type(part) for part in shares] == [int, str, int]


def _are_paths(paths: object) -> bool:
    """Whether this is what `load` takes."""
    several = isinstance(paths, list) and paths and all(isinstance(path, str) for path in paths)
    return paths is None or isinstance(paths, str) or bool(several)


def _are_points(points: object) -> bool:
    """Whether this is a list of [step, bits per byte]."""
    return isinstance(points, list) and all(
        isinstance(point, list) and len(point) == 2 and all(isinstance(value, (int, float)) for value in point)
        for point in points
    )


def check_agreement(folder: Path, settings: Settings, given: Mapping[str, Any]) -> None:
    """CommandError when a resumed run is given a setting that is not its own."""
    for name, value in resolve_all_blocks(given, settings.num_blocks).items():
        if value != (expected := getattr(settings, name)):
            option = "--" + name.replace("_", "-")
            raise CommandError(
                f"{option}: got {shown(value)}, expected {shown(expected)}, the setting of the run in {folder}"
                " (a resumed run keeps its settings; leave the option out, or start another run without --resume)"
            )


def check_same_text(folder: Path, saved: Mapping[str, Any], text: Text) -> None:
    """CommandError when a resumed run is given another text."""
    if text.sha256 != saved["sha256"]:
        raise CommandError(
            f"--data: got {text.name} ({len(text)} bytes, sha256 {text.sha256[:12]}...), expected the text of the run in"
            f" {folder} ({saved['name']}, {saved['bytes']} bytes, sha256 {saved['sha256'][:12]}...)"
        )


def check_same_tokenizer(folder: Path, coding: Coding, given: str | None) -> None:
    """CommandError when a resumed run is given another tokenizer."""
    if given is not None and tokens.load(given).json != coding.json:
        own = "bytes, without a tokenizer" if coding.json is None else "the tokenizer in its checkpoint, which need not be given"
        raise CommandError(f"--tokenizer: got {given}, expected that of the run in {folder}: {own}")


def resolve_all_blocks(given: Mapping[str, Any], num_blocks: int) -> dict[str, Any]:
    """The given settings with ``slstm_at="all"`` spelt out."""
    every = {"slstm_at": tuple(range(num_blocks))} if given.get("slstm_at") == "all" else {}
    return {**given, **every}


def shown(value: Any) -> str:
    return (",".join(map(str, value)) or "none") if isinstance(value, tuple) else str(value)
