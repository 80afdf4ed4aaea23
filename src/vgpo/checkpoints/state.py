"""Training state on disk: written by `torch.save`, and read by `torch.load` without executing code."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vgpo.checkpoints.store import CheckpointError


def save_state(folder: Path, name: str, state: Any) -> None:
    """Write `<name>.pt`.

    Args:
        folder: an existing folder.
        name: file name without its suffix.
        state: None, bool, int, float, str, bytes or a dense tensor, or a dict (keys str or int), list or tuple of
            these. Every bit is kept, also of NaN. One tensor object in several places is stored once. Tensors lose
            their strides and `requires_grad`.

    Raises:
        TypeError: the state holds something else; names the place and the type. Nothing is written.
    """
    storable = _storable(state, "", {})
    try:
        with (folder / f"{name}.pt").open("wb") as file:
            torch.save(storable, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # a full disk, which torch reports as an error of its archive
            raise error.__context__ from None
        raise


def load_state(folder: Path, name: str) -> Any:
    """Read what `save_state` wrote; tensors are on the CPU. Tensors that were one object are one object again.

    Raises:
        CheckpointError: the file is damaged, or holds anything else, such as code; names it.
    """
    path = folder / f"{name}.pt"
    try:
        with torch.serialization.safe_globals([bytes]):  # an empty one is stored as a call
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  # a damaged pickle can raise anything
        # Torch's outer error and its second sentence advise trusting the file.
        cause = error.__context__ or error
        reason = str(cause).partition("\n")[0].partition(". ")[0] or type(cause).__name__
        raise CheckpointError(
            f"{path} is not a training state of this library ({reason}); none of its code was run. Use another "
            "checkpoint."
        ) from cause


def _storable(value: Any, where: str, copies: dict[int, tuple[Tensor, Tensor]]) -> Any:
    """The value with its tensors in the form in which they are stored.

    Args:
        value: see `save_state`.
        where: its place in the state.
        copies: by id, a tensor and its stored form. It keeps the tensor alive, so that its id is not reused.
    """
    kind = type(value)
    if value is None or kind in (bool, int, float, str, bytes):
        return value
    if kind in (list, tuple):
        return kind(_storable(item, f"{where}[{index}]", copies) for index, item in enumerate(value))
    if kind is dict:
        return {_key(key, where): _storable(item, _below(where, key), copies) for key, item in value.items()}
    if kind in (Tensor, nn.Parameter) and value.layout is torch.strided and not value.is_meta:
        if id(value) not in copies:
            copies[id(value)] = value, _compact(value)
        return copies[id(value)][1]
    detail = f" ({value.dtype}, {value.layout}, {value.device})" if isinstance(value, Tensor) else ""
    raise TypeError(
        f"{where or 'the state itself'} is a {kind.__module__}.{kind.__qualname__}{detail}, expected None, bool, int, "
        "float, str, bytes, a dense tensor, or a dict, list or tuple of these; convert it first"
    )


def _compact(tensor: Tensor) -> Tensor:
    """The tensor itself, or a copy if it is a view of a larger storage, which torch would save in full."""
    tensor = tensor.detach()
    if tensor.is_contiguous() and tensor.nbytes == tensor.untyped_storage().nbytes():
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor)


def _key(key: Any, where: str) -> str | int:
    if type(key) in (str, int):
        return key
    raise TypeError(f"{where or 'the state itself'} has the key {key!r} ({type(key).__name__}), expected str or int")


def _below(where: str, key: str | int) -> str:
    if isinstance(key, str) and key.isidentifier():
        return f"{where}.{key}" if where else key
    return f"{where}[{key!r}]"
