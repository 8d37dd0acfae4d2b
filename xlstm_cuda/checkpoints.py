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

EMBEDDING_OF_TRANSFORMERS = "backbone.embeddings.weight"
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")

#: Fields of the transformers config under our names; the rest have the same name.
TRANSFORMERS_FIELDS = {"hidden_size": "embedding_dim", "num_hidden_layers": "num_blocks"}

#: Its defaults that are not those of xLSTMLargeConfig.
TRANSFORMERS_DEFAULTS = {
    "vocab_size": 50304, "hidden_size": 4096, "num_hidden_layers": 32, "num_heads": 8,
    "ffn_proj_factor": 2.667, "mode": "inference", "return_last_states": True,
}  # fmt: skip


def load(path_or_dir: str | PathLike[str], model: Model | None = None) -> Model | xLSTMLarge:
    """Loads the weights of an official model.

    Args:
        path_or_dir: a .safetensors file, a state_dict saved by torch (.pt, .pth, .bin, .ckpt; read with weights_only=True), or a
            directory with one or several of them (shards, with or without their index.json), as xLSTM-7b is published.
        model: takes the weights, in its own dtype. None builds an xLSTMLarge of `read_config` in float32.

    Returns:
        The model. The layouts of the sLSTM's recurrent kernel, the weight modes of xLSTMLarge and the transformers name of the
        embedding are recognised.

    Raises:
        FileNotFoundError: nothing to load at the path, or a shard is not there.
        ValueError: a file that is damaged or no checkpoint; a missing or unexpected key or a wrong shape, with the names of key
            and file. The model is then as it was before.
    """
    path = Path(path_or_dir)
    weights, files = _read_all(path)
    target: Any = xLSTMLarge(read_config(path)) if model is None else model
    if EMBEDDING_OF_TRANSFORMERS in weights and "embedding.weight" not in weights:
        _rename_transformers(target, weights, files)
    _repeat_tied(target, weights)
    _check(target, weights, files, path)
    target.load_state_dict(weights)
    return target


def read_config(path_or_dir: str | PathLike[str]) -> xLSTMLargeConfig:
    """The config beside weights: config.json of transformers or config.yaml of xLSTMLarge, without fields unknown to us.

    Raises:
        ValueError: no config there, a damaged one, or that of another architecture.
    """
    path = Path(path_or_dir)
    folder = path if path.is_dir() else path.parent
    if (file := folder / "config.json").is_file():
        given = _json(file)
    elif (file := folder / "config.yaml").is_file():
        given = _flat_yaml(file)
    else:
        raise ValueError(f"{folder}: got no config.json and no config.yaml, expected one of them, or the argument model")
    if (kind := given.get("model_type")) is not None:
        if kind != "xlstm":
            raise ValueError(f"{file}: got model_type {kind!r}, expected 'xlstm'")
        given = TRANSFORMERS_DEFAULTS | given | {"add_out_norm": True}  # that model has the norm whatever its config says
        given |= {ours: given[theirs] for theirs, ours in TRANSFORMERS_FIELDS.items()}
    known = {field.name for field in fields(xLSTMLargeConfig)}
    if missing := {"embedding_dim", "num_heads", "num_blocks", "vocab_size"} - set(given):
        raise ValueError(
            f"{file}: got no {', '.join(sorted(missing))}, expected the config of an xLSTMLarge or a transformers xLSTM"
        )
    return xLSTMLargeConfig(**{name: value for name, value in given.items() if name in known})


def _rename_transformers(model: nn.Module, weights: dict[str, Tensor], files: dict[str, Path]) -> None:
    """In place: the transformers model's embedding under our name, and the bias that its last norm never has."""
    weights["embedding.weight"] = weights.pop(EMBEDDING_OF_TRANSFORMERS)
    files["embedding.weight"] = files[EMBEDDING_OF_TRANSFORMERS]
    bias = "backbone.out_norm.bias"
    if bias in (expected := model.state_dict()) and bias not in weights:
        weights[bias] = torch.zeros_like(expected[bias], device="cpu")


def _repeat_tied(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """In place: a parameter with two names is kept under one of them in a safetensors file; give it under both."""
    first: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        other = first.setdefault(id(parameter), name)
        if name in weights:
            weights.setdefault(other, weights[name])
        elif other in weights:
            weights[name] = weights[other]


def _read_all(path: Path) -> tuple[dict[str, Tensor], dict[str, Path]]:
    """Every tensor, and the file of each."""
    parts = _parts(path) if path.is_dir() else [path] if path.is_file() else []
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


def _parts(folder: Path) -> list[Path]:
    """The files with weights: those of an index, else every one; safetensors if there are any, published beside other formats."""
    for index in (*folder.glob("*.safetensors.index.json"), *folder.glob("*.bin.index.json")):
        shards = _json(index).get("weight_map")
        if not isinstance(shards, Mapping):
            raise ValueError(f"{index}: got no weight_map, expected the index of a sharded checkpoint")
        parts = [folder / str(name) for name in sorted(set(shards.values()))]
        for part in parts:
            if not part.is_file():
                raise FileNotFoundError(f"{part}: no such file, but {index} says that it holds weights")
        return parts
    parts = sorted(p for suffix in SUFFIXES for p in folder.glob(f"*{suffix}"))
    return [p for p in parts if p.suffix == ".safetensors"] or parts


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not readable JSON, truncated or of another kind ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: got {type(content).__name__}, expected a JSON object")
    return content


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
