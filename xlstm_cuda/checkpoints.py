"""Weights of the official models: state_dict files and safetensors of `xlstm`, xLSTMLarge and the transformers xLSTM model."""

from __future__ import annotations

import copy
import json
import math
import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import fields
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from . import checks
from .models import xLSTMLarge, xLSTMLargeConfig

Model = TypeVar("Model", bound=nn.Module)

EMBEDDING_OF_TRANSFORMERS = "backbone.embeddings.weight"
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
LARGEST_TEXT = 16 << 20  #: bytes of a config or an index; that of xLSTM-7b has 40 KB

#: Fields of the transformers config under our names; the rest have the same name.
TRANSFORMERS_FIELDS = {"hidden_size": "embedding_dim", "num_hidden_layers": "num_blocks"}

#: Its defaults that are not those of xLSTMLargeConfig.
TRANSFORMERS_DEFAULTS = {
    "vocab_size": 50304, "hidden_size": 4096, "num_hidden_layers": 32, "num_heads": 8,
    "ffn_proj_factor": 2.667, "mode": "inference", "return_last_states": True,
}  # fmt: skip


def load(path_or_dir: str | PathLike[str], model: Model | None = None) -> Model | xLSTMLarge:
    """Loads the weights of an official model.

    Names, shapes and dtypes are compared before anything is allocated, and tensors are mapped from the file, so that at most the
    model itself takes memory. No code from a file is run.

    Args:
        path_or_dir: a .safetensors file, a state_dict saved by torch (.pt, .pth, .bin, .ckpt; read with weights_only=True), or a
            directory with one or several of them (shards, with or without their index.json), as xLSTM-7b is published. In a
            directory nothing outside of it is read; the links of the Hugging Face cache into its own blobs are.
        model: takes the weights, in its own dtype. None builds an xLSTMLarge of `read_config` in float32 on the CPU.

    Returns:
        The model. The layouts of the sLSTM's recurrent kernel, the weight modes of xLSTMLarge and the transformers name of the
        embedding are recognised.

    Raises:
        FileNotFoundError: nothing to load at the path, or a shard is not there. Other OSErrors: a file that may not be read.
        ValueError: a file that is damaged or no checkpoint, or leads out of its directory; a missing or unexpected key, a wrong
            shape or a dtype that is no floating point, with the names of key and file. The model is then as it was before.

    Examples:
        >>> import tempfile
        >>> config = xLSTMLargeConfig(embedding_dim=64, num_heads=2, num_blocks=1, vocab_size=100)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save(xLSTMLarge(config).state_dict(), f"{folder}/weights.pt")
        ...     model = load(folder, xLSTMLarge(config))
    """
    path = Path(path_or_dir)
    weights, files = _read_all(path)
    target: Any = _without_memory(path, weights) if model is None else model
    if EMBEDDING_OF_TRANSFORMERS in weights and "embedding.weight" not in weights:
        _rename_transformers(target, weights, files)
    _repeat_tied(target, weights)
    _check(target, weights, files, path)
    if model is None:
        target.to_empty(device="cpu")
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
        given = _json(_inside(folder, file))
    elif (file := folder / "config.yaml").is_file():
        given = _flat_yaml(_inside(folder, file))
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
    config = xLSTMLargeConfig(**{name: value for name, value in given.items() if name in known})
    try:
        _check_types(config)
        config.check()
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    return config


def _check_types(config: xLSTMLargeConfig) -> None:
    """ValueError unless every field has a value of its type, as the text of a file need not."""
    for name, expected in get_type_hints(xLSTMLargeConfig).items():
        value = getattr(config, name)
        if not _has_type(value, expected):
            kind = (
                repr(list(get_args(expected)))
                if get_origin(expected) is Literal
                else getattr(expected, "__name__", str(expected))
            )
            raise ValueError(f"{name}: got {value!r:.80}, expected {kind}")


def _has_type(value: object, expected: Any) -> bool:
    if get_origin(expected) is Literal:
        return value in get_args(expected)
    if value is None or isinstance(value, bool):
        return type(value) is expected or type(value) in get_args(expected)
    if isinstance(value, int) and abs(value) >= 2**63:
        return False
    if isinstance(value, (int, float)) and float in (expected, *get_args(expected)):
        return math.isfinite(value)
    return isinstance(value, expected)


def _without_memory(path: Path, weights: Mapping[str, Tensor]) -> xLSTMLarge:
    """The xLSTMLarge that the config beside the weights describes, on the meta device.

    The number of blocks is compared with the weights first: it is the one field whose modules cost time and memory as they are.
    """
    config = read_config(path)
    blocks = {match[1] for key in weights if (match := re.match(r"backbone\.blocks\.(\d+)\.", key))}
    if config.num_blocks != len(blocks):
        raise ValueError(
            f"{path}: got the weights of {len(blocks)} blocks, expected {config.num_blocks}, the config's num_blocks"
        )
    try:
        with torch.device("meta"):
            return xLSTMLarge(config)
    except (RuntimeError, OverflowError, TypeError) as error:  # sizes that no tensor can have
        raise ValueError(f"{path}: the config beside it describes no model that could be built ({error})") from error


def _rename_transformers(model: nn.Module, weights: dict[str, Tensor], files: dict[str, Path]) -> None:
    """In place: the transformers model's embedding under our name, and the bias that its last norm never has."""
    weights["embedding.weight"] = weights.pop(EMBEDDING_OF_TRANSFORMERS)
    files["embedding.weight"] = files[EMBEDDING_OF_TRANSFORMERS]
    bias = "backbone.out_norm.bias"
    if bias in (expected := model.state_dict()) and bias not in weights:
        weights[bias] = torch.zeros((), dtype=expected[bias].dtype).expand(expected[bias].shape)


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
    indices = sorted(folder.glob("*.safetensors.index.json")) or sorted(folder.glob("*.bin.index.json"))
    if len(indices) > 1:
        raise ValueError(f"{indices[1]}: got a second index beside {indices[0].name}, expected one")
    for index in indices:
        shards = _json(_inside(folder, index)).get("weight_map")
        if not isinstance(shards, Mapping) or not shards or not all(isinstance(name, str) for name in shards.values()):
            raise ValueError(f"{index}: got no weight_map from names to files, expected the index of a sharded checkpoint")
        return [_shard(folder, name, index) for name in sorted(set(shards.values()))]
    parts = sorted(p for suffix in SUFFIXES for p in folder.glob(f"*{suffix}") if p.is_file())
    return [_inside(folder, p) for p in parts if p.suffix == ".safetensors"] or [_inside(folder, p) for p in parts]


def _shard(folder: Path, name: str, index: Path) -> Path:
    """The file that an index names."""
    if "\0" in name or Path(name).suffix not in SUFFIXES:
        raise ValueError(f"{index}: got the file name {name!r:.80}, expected one that ends in {', '.join(SUFFIXES)}")
    part = _inside(folder, folder / name)
    if not os.path.isfile(part):  # False also for a name that no file can have
        raise FileNotFoundError(f"{part}: no such file, but {index} says that it holds weights")
    return part


def _inside(folder: Path, file: Path) -> Path:
    """The file, unless its name or a link leads out of the folder. The Hugging Face cache links snapshots/X/name to blobs/Y."""
    try:
        home, place = folder.resolve(), file.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle, characters that no name can have
        raise ValueError(f"{file}: leads nowhere ({error})") from error
    blobs = home.parents[1] / "blobs" if home.parent.name == "snapshots" else None
    if not place.is_relative_to(home) and place.parent != blobs:
        raise ValueError(f"{file}: leads to {place}, outside of {folder}, expected a file inside (or give the file itself)")
    return file


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(_text(file))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not readable JSON, truncated or of another kind ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: got {type(content).__name__}, expected a JSON object")
    return content


def _text(file: Path) -> str:
    if (size := file.stat().st_size) > LARGEST_TEXT:
        raise ValueError(f"{size} bytes, expected at most {LARGEST_TEXT}")
    return file.read_text(encoding="utf-8")


def _read(file: Path) -> dict[str, Tensor]:
    with open(file, "rb"):
        pass  # the system's own errors (no permission, a broken disk) name the file
    try:
        content: Any = _read_safetensors(file) if file.suffix == ".safetensors" else _read_pickled(file)
    except ImportError as error:
        raise ImportError(f"{file}: reading safetensors needs `pip install safetensors`") from error
    except Exception as error:  # each format has its own exceptions for a truncated or foreign file
        raise ValueError(f"{file}: not a readable checkpoint, truncated or of another kind ({error})") from error
    for wrapper in ("state_dict", "model"):  # of training checkpoints
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{file}: got {type(content).__name__}, expected a state_dict of tensors")
    for key, value in content.items():
        if not isinstance(key, str):
            raise ValueError(f"{file}: got the key {key!r:.80}, expected names of parameters")
        if value.device.type != "cpu" or value.layout != torch.strided or value.is_quantized:
            raise ValueError(f"{file}: {key} is not a plain tensor with values, expected one")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError(f"{file}: {key} has shape {tuple(value.shape)}, but fewer values than that are stored")
    return dict(content)


def _read_safetensors(file: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(file)  # maps the file


def _read_pickled(file: Path) -> Any:
    """A file of torch.save, mapped; the format before torch 1.6 is read whole."""
    if not zipfile.is_zipfile(file):
        return torch.load(file, map_location="cpu", weights_only=True)
    with zipfile.ZipFile(file) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("its parts are compressed, which torch.save never does")
        if damaged := archive.testzip():
            raise ValueError(f"the checksum of {damaged} is wrong")
    return torch.load(file, map_location="cpu", weights_only=True, mmap=True)


def _flat_yaml(file: Path) -> dict[str, Any]:
    """`name: value` lines; the official config.yaml has no others, so that PyYAML is not needed."""
    words: dict[str, Any] = {"true": True, "false": False, "null": None, "~": None}
    result: dict[str, Any] = {}
    try:
        for line in _text(file).splitlines():
            if match := re.fullmatch(r"(\w+):\s*['\"]?([^'\"#]*?)['\"]?\s*(#.*)?", line):
                name, value = match[1], match[2]
                number = re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", value)
                result[name] = words[value.lower()] if value.lower() in words else (_number(value) if number else value)
    except ValueError as error:
        raise ValueError(f"{file}: not a readable config ({error})") from error
    return result


def _number(text: str) -> int | float:
    return int(text) if re.fullmatch(r"[-+]?\d+", text) else float(text)


def _check(model: nn.Module, weights: dict[str, Tensor], files: dict[str, Path], path: Path) -> None:
    """ValueError unless the weights fit, found on a copy of the model without memory, so that the model itself stays as it is."""
    own = model.state_dict()
    for key, value in weights.items():
        allowed = checks.FLOATING if key not in own or own[key].is_floating_point() else (own[key].dtype,)
        try:
            checks.dtype(key, value, allowed)
        except TypeError as error:
            raise ValueError(f"{files.get(key, path)}: {error}") from None
    skeleton = _skeleton(model)
    without_memory = {key: value.to("meta") for key, value in weights.items()}
    try:
        missing, unexpected = skeleton.load_state_dict(without_memory, strict=False, assign=False)
    except (RuntimeError, IndexError) as error:  # lists every wrong shape
        wrong = [key for key in weights if f"size mismatch for {key}:" in str(error)]
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
