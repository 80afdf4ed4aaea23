"""Trees of plain values and tensors on disk, as JSON and safetensors; a hash that says whether weights are equal."""

import hashlib
import json
import math
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vgpo.checkpoints.store import CheckpointError


def save_tree(folder: Path, name: str, tree: Any) -> None:
    """Write a tree as `<name>.json` (its structure) and `<name>.safetensors` (its tensors).

    Args:
        folder: an existing folder.
        name: first part of both file names.
        tree: None, bool, int, float (every bit is kept, of NaN too), str, bytes or a dense tensor, or a dict (keys
            str or int), list or tuple of trees. One tensor object in several places is stored once. Tensors keep
            dtype, shape and values; not device, strides, `requires_grad`, nor memory shared by two objects.

    Raises:
        TypeError: something else is in the tree; names the place and the type.
    """
    memo: dict[int, tuple[str, Tensor]] = {}
    structure = json.dumps(_encode(tree, "", memo), allow_nan=False)
    save_file({key: _dense(tensor) for key, tensor in memo.values()}, folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(structure, encoding="ascii")


def load_tree(folder: Path, name: str) -> Any:
    """Read a tree that `save_tree` wrote; tensors are on the CPU, and one object where they were one.

    Raises:
        CheckpointError: the two files are not a tree of this library; names the first thing that is not understood.
    """
    path = folder / f"{name}.json"
    try:
        # Copied out of the file's memory map: later the file may be deleted or written again.
        tensors = {key: tensor.clone() for key, tensor in load_file(folder / f"{name}.safetensors").items()}
        return _decode(json.loads(path.read_bytes()), tensors)
    except (SafetensorError, ValueError, TypeError, KeyError, struct.error) as error:
        raise CheckpointError(f"{path} is no tree of this library: {error!r}. Use another checkpoint.") from error


def weight_hash(named_tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 (hex) over name, dtype, shape and bytes of all tensors, whatever their order and device.

    Of a tensor that is spread over processes, the part that this process holds. One tensor at a time is copied to the
    CPU.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(named_tensors, key=lambda pair: pair[0]):
        local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        digest.update(json.dumps([name, str(local.dtype), list(local.shape)]).encode("ascii"))
        # Viewed as bytes: NumPy has no bfloat16.
        digest.update(local.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _dense(tensor: Tensor) -> Tensor:
    """Copy to contiguous CPU memory of its own: safetensors refuses tensors that share memory."""
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())


def _encode(value: Any, where: str, memo: dict[int, tuple[str, Tensor]]) -> Any:
    """JSON has None, bool, int, str, list and finite floats of its own; all else is an object of one tagged entry."""
    kind = type(value)
    if value is None or kind in (bool, int, str):
        return value
    if kind is float:
        return value if math.isfinite(value) else {"float": struct.pack(">d", value).hex()}
    if kind is bytes:
        return {"bytes": value.hex()}
    if kind in (list, tuple):
        items = [_encode(item, f"{where}[{index}]", memo) for index, item in enumerate(value)]
        return items if kind is list else {"tuple": items}
    if kind is dict:
        return {"dict": [[_key(key, where), _encode(item, _below(where, key), memo)] for key, item in value.items()]}
    if kind in (Tensor, nn.Parameter) and _is_storable(value):
        # The tensor is kept with its id, so that no other object can take the id meanwhile.
        return {"tensor": memo.setdefault(id(value), (str(len(memo)), value))[0]}
    detail = f" ({value.dtype}, {value.layout})" if isinstance(value, Tensor) else ""
    raise TypeError(
        f"{where or 'the tree itself'} is a {kind.__module__}.{kind.__qualname__}{detail}, expected None, bool, int, "
        "float, str, bytes, a dense tensor, or a dict, list or tuple of these; convert it first"
    )


def _is_storable(tensor: Tensor) -> bool:
    """Whether safetensors has a form for it: dense, and of a dtype that it knows."""
    unknown = tensor.is_quantized or tensor.dtype in (torch.complex32, torch.complex128)
    return tensor.layout is torch.strided and not unknown


def _key(key: Any, where: str) -> str | int:
    if type(key) in (str, int):
        return key
    raise TypeError(f"{where or 'the tree itself'} has the key {key!r} ({type(key).__name__}), expected str or int")


def _below(where: str, key: str | int) -> str:
    if isinstance(key, str) and key.isidentifier():
        return f"{where}.{key}" if where else key
    return f"{where}[{key!r}]"


def _decode(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    match node:
        case list():
            return [_decode(item, tensors) for item in node]
        case {"tuple": items}:
            return tuple(_decode(item, tensors) for item in items)
        case {"dict": items}:
            return {key: _decode(item, tensors) for key, item in items}
        case {"tensor": key}:
            return tensors[key]
        case {"bytes": text}:
            return bytes.fromhex(text)
        case {"float": bits}:
            return struct.unpack(">d", bytes.fromhex(bits))[0]
        case dict():
            raise ValueError(f"unknown entry {list(node)}")
    return node
