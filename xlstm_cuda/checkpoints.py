"""Weights of the official models: state_dict files and safetensors of `xlstm`, xLSTMLarge and the transformers xLSTM model."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from dataclasses import fields
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .models import xLSTMLarge, xLSTMLargeConfig

Model = TypeVar("Model", bound=nn.Module)

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")

#: Fields of the transformers config under our names; the rest have the same name.
TRANSFORMERS_FIELDS = {"hidden_size": "embedding_dim", "num_hidden_layers": "num_blocks"}


def load(path_or_dir: str | PathLike[str], model: Model | None = None) -> Model | xLSTMLarge:
    """Loads the weights of an official model.

    Args:
        path_or_dir: a .safetensors file, a state_dict saved by torch (.pt, .pth, .bin, .ckpt; read with weights_only=True), or a
            directory with one or several of them (shards), as xLSTM-7b is published.
        model: takes the weights. None builds an xLSTMLarge from the directory's config.json (transformers) or config.yaml.

    Returns:
        The model. The layouts of the sLSTM's recurrent kernel, the weight modes of xLSTMLarge and the transformers name of the
        embedding are recognised.

    Raises:
        FileNotFoundError: nothing to load at the path.
        ValueError: a file that is damaged or no checkpoint; a missing or unexpected key or a wrong shape, with the names of key
            and file. The model is then as it was before.
    """
    path = Path(path_or_dir)
    weights, files = _read_all(path)
    weights = {_our_name(key): value for key, value in weights.items()}
    files = {_our_name(key): file for key, file in files.items()}
    target: Any = xLSTMLarge(_config(path)) if model is None else model
    _check(target, weights, files, path)
    target.load_state_dict(weights)
    return target


def _our_name(key: str) -> str:
    return "embedding.weight" if key == "backbone.embeddings.weight" else key


def _read_all(path: Path) -> tuple[dict[str, Tensor], dict[str, Path]]:
    """Every tensor, and the file of each."""
    if path.is_dir():
        parts = sorted(p for suffix in SUFFIXES for p in path.glob(f"*{suffix}"))
        if any(p.suffix == ".safetensors" for p in parts):  # published beside the same weights in another format
            parts = [p for p in parts if p.suffix == ".safetensors"]
    else:
        parts = [path] if path.is_file() else []
    if not parts:
        raise FileNotFoundError(f"{path}: no checkpoint here, expected a file or a directory with {', '.join(SUFFIXES)}")
    weights: dict[str, Tensor] = {}
    files: dict[str, Path] = {}
    for part in parts:
        for key, value in _read(part).items():
            if key in weights:
                raise ValueError(f"{part}: key {key} is also in {files[key]}")
            weights[key], files[key] = value, part
    return weights, files


def _read(file: Path) -> dict[str, Tensor]:
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(file)
        else:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except ImportError as error:
        raise ImportError(f"{file}: reading safetensors needs `pip install safetensors`") from error
    except OSError:
        raise
    except Exception as error:  # each format has its own exceptions for a truncated or foreign file
        raise ValueError(f"{file}: not a readable checkpoint, truncated or of another kind ({error})") from error
    for wrapper in ("state_dict", "model"):  # of training checkpoints
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{file}: got {type(content).__name__}, expected a state_dict of tensors")
    return dict(content)


def _config(path: Path) -> xLSTMLargeConfig:
    """The config beside the weights; unknown fields (of transformers, say) are left out."""
    folder = path if path.is_dir() else path.parent
    if (file := folder / "config.json").is_file():
        given = json.loads(file.read_text(encoding="utf-8"))
    elif (file := folder / "config.yaml").is_file():
        given = _flat_yaml(file)
    else:
        raise ValueError(f"{folder}: got no config.json and no config.yaml, expected one of them, or the argument model")
    given = {TRANSFORMERS_FIELDS.get(name, name): value for name, value in given.items()}
    known = {field.name for field in fields(xLSTMLargeConfig)}
    if missing := {"embedding_dim", "num_heads", "num_blocks", "vocab_size"} - set(given):
        raise ValueError(
            f"{file}: got no {', '.join(sorted(missing))}, expected the config of an xLSTMLarge or a transformers xLSTM"
        )
    return xLSTMLargeConfig(**{name: value for name, value in given.items() if name in known})


def _flat_yaml(file: Path) -> dict[str, Any]:
    """`name: value` lines; the official config.yaml has no others, so that PyYAML is not needed."""
    words: dict[str, Any] = {"true": True, "false": False, "null": None, "~": None}
    result: dict[str, Any] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        if match := re.fullmatch(r"(\w+):\s*['\"]?([^'\"#]*?)['\"]?\s*(#.*)?", line):
            name, value = match[1], match[2]
            number = re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", value)
            result[name] = words[value.lower()] if value.lower() in words else (_number(value) if number else value)
    return result


def _number(text: str) -> int | float:
    return int(text) if re.fullmatch(r"[-+]?\d+", text) else float(text)


def _check(model: nn.Module, weights: dict[str, Tensor], files: dict[str, Path], path: Path) -> None:
    """ValueError unless the weights fit, found on a copy of the model without memory, so that the model itself stays as it is."""
    skeleton = _skeleton(model)
    without_memory = {key: value.to("meta") for key, value in weights.items()}
    try:
        missing, unexpected = skeleton.load_state_dict(without_memory, strict=False, assign=False)
    except RuntimeError as error:  # lists every wrong shape
        wrong = [key for key in weights if re.search(rf"size mismatch for {re.escape(key)}:", str(error))]
        raise ValueError(f"{files.get(wrong[0], path) if wrong else path}: {error}") from error
    if missing:
        raise ValueError(f"{path}: got no {_some(missing)}, expected by {type(model).__name__}")
    if unexpected:
        raise ValueError(f"{files.get(unexpected[0], path)}: got {_some(unexpected)}, unknown to {type(model).__name__}")


def _skeleton(model: nn.Module) -> nn.Module:
    """The same architecture on the meta device."""
    memo: dict[int, Any] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        meta = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(meta, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else meta
    return copy.deepcopy(model, memo)


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more keys" if len(keys) > 3 else "")
