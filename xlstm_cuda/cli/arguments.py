"""The command line: options, their help and their checks. Values that do not fit end in a one-line message and exit code 2."""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from collections.abc import Callable
from dataclasses import fields
from typing import Any, NoReturn

from ..backends import NAMES as BACKENDS


class _Parser(argparse.ArgumentParser):
    """argparse with errors of one line, and without its silence about an output that takes nothing."""

    def print_help(self, file: Any = None) -> None:
        print(self.format_help(), end="", file=file or sys.stdout)

    def error(self, message: str) -> NoReturn:
        if sys.stderr is not None and os.environ.get("LOCAL_RANK", "0") == "0":  # of torchrun's processes one says it
            print(f"xlstm_cuda: error: {' '.join(message.split())} (see {self.prog} --help)", file=sys.stderr)
        sys.exit(2)


def parser() -> argparse.ArgumentParser:
    """The parser of ``python -m xlstm_cuda``. The chosen command is in ``command``."""
    root = _Parser(prog="python -m xlstm_cuda", description="xLSTM: train a language model, write text with it.")
    commands = root.add_subparsers(dest="command", required=True, metavar="{info,train,generate}")
    _info(commands.add_parser("info", help="versions, devices, backends with reasons, build options"))
    _train(commands.add_parser("train", help="train a language model on text files"))
    _generate(commands.add_parser("generate", help="write text with a trained model"))
    return root


def _info(command: argparse.ArgumentParser) -> None:
    command.description = "What this installation is and what it can run on this machine."
    command.add_argument("--json", action="store_true", help="print JSON")


def _train(command: argparse.ArgumentParser) -> None:
    from .settings import DTYPES, Settings

    command.description = (
        "Trains an xLSTM language model, of bytes or of a tokenizer's tokens, on the first nine tenths of a text; the last tenth"
        " is held out. Leaves last.pt, best.pt (checkpoints) and loss.png in the run folder. In several processes, of one or more"
        " machines: torchrun --nproc-per-node N -m xlstm_cuda train ..."
    )
    files = command.add_argument_group("files")
    files.add_argument(
        "--data", metavar="FILE", nargs="+",
        help="text to learn, any bytes, also larger than memory; several files are read as one (default: the text of Python's"
        " help topics)",
    )  # fmt: skip
    files.add_argument(
        "--tokenizer", metavar="FILE",
        help="learn the tokens of this tokenizer.json, which pip's package tokenizers reads, instead of bytes",
    )  # fmt: skip
    files.add_argument("--out", metavar="DIR", help="run folder (default: the next of runs/001, runs/002, ...)")
    files.add_argument(
        "--resume", action="store_true",
        help="continue the run in --out (default: the newest in runs/) with its own settings, bitwise as if it had never stopped",
    )  # fmt: skip
    files.add_argument(
        "--checkpoint-every", metavar="N", type=whole(1), default=100,
        help="steps between checkpoints, besides those after each validation (default: %(default)s)",
    )  # fmt: skip
    files.add_argument(
        "--sample-length", metavar="N", type=whole(0), default=400,
        help="bytes or tokens to write with the trained model at the end (default: %(default)s)",
    )  # fmt: skip
    _machine(command)
    spread = command.add_argument_group(
        "memory and processes (they decide what fits and how sums are rounded, not what is learnt)"
    )
    spread.add_argument(
        "--accumulate", metavar="N", type=whole(1, 2**16), default=1,
        help="read the sequences of a step in N passes, which need the memory of one (default: %(default)s)",
    )  # fmt: skip
    spread.add_argument(
        "--recompute", action="store_true", help="keep less for the backward pass, and compute each block's forward pass again"
    )
    spread.add_argument(
        "--shard", action="store_true",
        help="under torchrun: share weights, gradients and moments out over the processes (FSDP2), instead of all in each",
    )  # fmt: skip
    settings = command.add_argument_group("settings (stored in the checkpoints; a resumed run keeps them)")
    for one in fields(Settings):
        shown = ",".join(map(str, one.default)) if isinstance(one.default, tuple) else one.default
        options: dict[str, Any] = {"default": None, "help": f"{one.metadata['help']} (default: {shown})"}
        if one.name == "dtype":
            options["choices"] = DTYPES
        else:
            options["metavar"] = "LIST" if one.name == "slstm_at" else "N"
            options["type"] = _converter(one.name, one.default, one.metadata["bounds"])
        settings.add_argument("--" + one.name.replace("_", "-"), **options)


def _generate(command: argparse.ArgumentParser) -> None:
    command.description = "Writes text with a trained model, one byte after the other, in memory that does not grow."
    command.add_argument(
        "--checkpoint", metavar="PATH", help="checkpoint file, or run folder for its best (default: the newest run in runs/)"
    )
    command.add_argument(
        "--prompt", metavar="TEXT", action="append",
        help="text to continue; - reads it from standard input (default: none). More than one give a line of JSON each",
    )  # fmt: skip
    command.add_argument("--batch-file", metavar="FILE", help="prompts to continue, one a line; gives a line of JSON for each")
    command.add_argument("--length", metavar="N", type=whole(0), default=500, help="bytes to write (default: %(default)s)")
    command.add_argument(
        "--temperature", metavar="T", type=real(minimum=0), default=0.8,
        help="below 1 safer, above 1 wilder, 0 always the likeliest byte (default: %(default)s)",
    )  # fmt: skip
    command.add_argument("--top-k", metavar="K", type=whole(1), help="choose among the K likeliest bytes only")
    command.add_argument(
        "--top-p",
        metavar="P",
        type=real(above=0, maximum=1),
        help="choose among the likeliest bytes that together have probability P",
    )
    command.add_argument(
        "--seed", metavar="N", type=whole(0),
        help="the same seed writes the same text; of several prompts each has one more (default: another each time)",
    )  # fmt: skip
    _machine(command)


def _machine(command: argparse.ArgumentParser) -> None:
    machine = command.add_argument_group("machine")
    machine.add_argument(
        "--device",
        type=_device,
        default="auto",
        help="cpu, cuda, cuda:1, ... or auto: the GPU where the kernels run, else the CPU",
    )
    machine.add_argument("--backend", choices=BACKENDS, help="implementation of the recurrences (default: by device)")
    machine.add_argument(
        "--threads",
        metavar="N",
        type=whole(1, 4096),
        help="CPU threads of a process (default: PyTorch's choice, under torchrun its share of them)",
    )


def whole(minimum: int, maximum: int = 2**62) -> Callable[[str], int]:
    """Converter to an integer within the bounds."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = minimum - 1
        if not minimum <= value <= maximum:
            raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number from {minimum} to {maximum}")
        return value

    return convert


def real(
    minimum: float | None = None, above: float | None = None, below: float | None = None, maximum: float | None = None
) -> Callable[[str], float]:
    """Converter to a finite number within the bounds that are given."""
    bounds = {"at least": minimum, "above": above, "below": below, "at most": maximum}
    expected = "a number " + " and ".join(f"{words} {bound:g}" for words, bound in bounds.items() if bound is not None)

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        fits = (
            math.isfinite(value)
            and (minimum is None or value >= minimum)
            and (above is None or value > above)
            and (below is None or value < below)
            and (maximum is None or value <= maximum)
        )
        if not fits:
            raise argparse.ArgumentTypeError(f"got {text!r}, expected {expected}")
        return value

    return convert


def _converter(name: str, default: Any, bounds: Any) -> Callable[[str], Any]:
    if name == "slstm_at":
        return _block_list
    return whole(**bounds) if isinstance(default, int) else real(**bounds)


def _block_list(text: str) -> tuple[int, ...] | str:
    """Block numbers in rising order, or "all", which has a meaning only beside the number of blocks."""
    if text in ("all", "none"):
        return text if text == "all" else ()
    if not re.fullmatch(r"\d{1,9}(,\d{1,9})*", text):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected block numbers such as 1,3 or none or all")
    return tuple(sorted({int(number) for number in text.split(",")}))


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,4})?", text):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected auto, cpu, cuda or cuda:N")
    return text
