"""Take the tensors out of a file that holds whole Python objects, without running any of it.

A pickle names classes and functions and asks the reader to call them; that is how it can run code.
This reader calls a short list (tensors, ordered dicts); for every other name it makes an inert
shell that remembers only the state given to it. An `nn.Module` is then a shell with `_parameters`,
`_buffers` and `_modules`, from which the state dict is read.

Format: torch's zip archive (`torch.save` since 1.6): `data.pkl` and one raw file a storage under
`data/`, all little-endian.
"""

from __future__ import annotations

import collections
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wsipipe.errors import WeightsError

__all__ = ["convert_pickled", "read_tensors"]

_STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class _Shell:
    """Stands for any class or function of the file. Does nothing, remembers its state."""

    def __init__(self, *_arguments: Any, **_named: Any) -> None:
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) == 2:  # (dict, slots)
            state = {**(state[0] or {}), **(state[1] or {})}
        self.state = state if isinstance(state, dict) else {"state": state}

    def __setitem__(self, key: Any, value: Any) -> None:
        self.state[str(key)] = value

    def append(self, value: Any) -> None:
        """A list-like class gives its items one by one."""
        self.state[str(len(self.state))] = value

    def extend(self, values: Any) -> None:
        """Or many at once."""
        for value in values:
            self.append(value)

    def __call__(self, *_arguments: Any, **_named: Any) -> _Shell:
        return _Shell()


class _Reader(pickle.Unpickler):
    """Calls tensors and ordered dicts; everything else becomes a shell."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(archive.open(f"{root}/data.pkl"))
        self._archive = archive
        self._root = root

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_tensor"):
            return _rebuild_tensor
        if module == "torch._utils" and name == "_rebuild_parameter":
            return _rebuild_parameter
        if module.startswith("torch") and name in _STORAGES:
            return _STORAGES[name]
        return _Shell

    def persistent_load(self, pid: Any) -> Tensor:
        kind, dtype, key, _device, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or "/" in str(key):
            raise pickle.UnpicklingError(f"unknown persistent id {pid!r}")
        data = bytearray(self._archive.read(f"{self._root}/data/{key}"))
        if not data:
            return torch.empty(0, dtype=dtype)
        return torch.frombuffer(data, dtype=dtype, count=int(count))


def _rebuild_tensor(
    storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_rest: Any
) -> Tensor:
    return torch.as_strided(storage, size, stride, offset).clone()


def _rebuild_parameter(data: Tensor, *_rest: Any) -> Tensor:
    return data


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, by their path within it (`encoder.features.0.weight`).

    Args:
        path: torch's zip archive.

    Returns:
        Name -> tensor. Module containers (`_modules`, `_parameters`, `_buffers`) leave no trace in
        the names, as in a state dict.

    Raises:
        WeightsError: The file is not such an archive, or is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise WeightsError(
                    path.name,
                    f"{path} is not a file of torch.save (no data.pkl in it).",
                    "If it is a zip of several files, unpack it first.",
                )
            content = _Reader(archive, pickles[0].removesuffix("/data.pkl")).load()
    except (zipfile.BadZipFile, pickle.UnpicklingError, KeyError, EOFError, ValueError) as error:
        raise WeightsError(
            path.name, f"{path} cannot be read: {error}.", "Download it again."
        ) from error
    return dict(_walk(content, ()))


def _walk(value: Any, at: tuple[str, ...]) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield ".".join(at), value
        return
    if isinstance(value, _Shell):
        value = value.state
    if isinstance(value, Mapping):
        for key, item in value.items():
            silent = key in ("_modules", "_parameters", "_buffers")
            yield from _walk(item, at if silent else (*at, str(key)))
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _walk(item, (*at, str(i)))


def convert_pickled(inputs: list[Path], output: Path) -> int:
    """Write the tensors of one or several files as safetensors.

    Args:
        inputs: The files; of several, each one's tensors get its stem in front of their names
            (`encoder.pt`, `squeezer.pt` -> `encoder.`, `squeezer.`).
        output: The file to write.

    Returns:
        How many tensors were written.
    """
    tensors: dict[str, Tensor] = {}
    for path in inputs:
        prefix = f"{path.name.split('.')[0]}." if len(inputs) > 1 else ""
        tensors |= {f"{prefix}{name}": t for name, t in read_tensors(path).items()}
    return write_safetensors(tensors, output)


def write_safetensors(tensors: Mapping[str, Tensor], output: Path) -> int:
    """Write tensors under a temporary name, then rename."""
    from safetensors.torch import save_file

    if not tensors:
        raise WeightsError(output.name, "There are no tensors to write.", "Is this the right file?")
    temporary = output.with_name(f".{output.name}.partial")
    # clone: safetensors refuses tensors that share memory, as tied weights do.
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, temporary)
    temporary.replace(output)
    return len(tensors)
