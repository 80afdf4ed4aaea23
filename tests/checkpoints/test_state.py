"""Training state is loaded bit by bit and object by object as it was saved; a file of another kind runs no code."""

import errno
import io
import math
import os
import pickle
import struct
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from vgpo.checkpoints import CheckpointError, load_state, save_state

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
]


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def size_of_tensors(path: Path) -> int:
    with zipfile.ZipFile(path) as archive:
        return sum(entry.file_size for entry in archive.infolist() if "/data/" in entry.filename)


def plain(tree, objects: dict[int, int]):
    """A state that == compares bit by bit: types, floats as bytes, tensors as bytes and the number of their object."""
    if isinstance(tree, torch.Tensor):
        number = objects.setdefault(id(tree), len(objects))
        return "tensor", number, str(tree.dtype), tuple(tree.shape), bits(tree)
    if isinstance(tree, float):
        return "float", struct.pack(">d", tree)
    if isinstance(tree, list | tuple):
        return type(tree).__name__, [plain(item, objects) for item in tree]
    if isinstance(tree, dict):
        return "dict", [(plain(key, objects), plain(item, objects)) for key, item in tree.items()]
    return type(tree).__name__, tree


def random_tensor(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    if dtype is torch.bool:
        return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) > 0.5
    num_bytes = math.prod(shape) * dtype.itemsize
    data = torch.randint(0, 256, (num_bytes,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return data.view(dtype).view(shape)


# With lone surrogates and control characters: a model can write them.
TEXT = st.text(st.characters(exclude_categories=()), max_size=8)
TENSORS = st.builds(
    random_tensor, st.sampled_from(DTYPES), st.sampled_from([(), (0,), (3,), (2, 0, 3), (2, 3)]), st.integers(0, 99)
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.binary(max_size=8) | TENSORS
KEYS = TEXT | st.integers() | st.sampled_from(["state", "__reduce__", "builtins"])


def branches(children):
    return (
        st.lists(children, max_size=4)
        | st.lists(children, max_size=4).map(tuple)
        | st.dictionaries(KEYS, children, max_size=4)
        # The same object twice.
        | children.map(lambda child: [child, child])
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("states")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(tree=st.recursive(LEAVES, branches, max_leaves=12))
def test_a_state_comes_back_bit_by_bit_and_object_by_object(folder: Path, tree):
    save_state(folder, "state", tree)
    assert plain(load_state(folder, "state"), {}) == plain(tree, {})


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, -math.nan, -0.0, 5e-324, 0.1, 1e22, 1.0])
def test_floats_keep_every_bit(folder: Path, value: float):
    save_state(folder, "float", value)
    assert struct.pack(">d", load_state(folder, "float")) == struct.pack(">d", value)


def test_a_nan_keeps_its_payload(folder: Path):
    (value,) = struct.unpack(">d", bytes.fromhex("fff800000000beef"))
    save_state(folder, "nan", [value])
    assert struct.pack(">d", load_state(folder, "nan")[0]).hex() == "fff800000000beef"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3, 4)])
def test_tensors_of_every_dtype_and_shape(folder: Path, dtype, shape):
    tensor = random_tensor(dtype, shape, 0)
    save_state(folder, "tensor", tensor)
    loaded = load_state(folder, "tensor")
    assert (loaded.dtype, loaded.shape, bits(loaded)) == (dtype, tensor.shape, bits(tensor))


def test_one_object_is_stored_once_and_equal_objects_stay_two(folder: Path):
    prompt, equal = torch.ones(1000, dtype=torch.uint8), torch.ones(1000, dtype=torch.uint8)
    save_state(folder, "rows", {"prompts": [prompt, prompt, equal], "first": (prompt,)})
    loaded = load_state(folder, "rows")
    first, again, other = loaded["prompts"]
    assert first is again is loaded["first"][0]
    assert other is not first
    assert torch.equal(other, first)
    assert size_of_tensors(folder / "rows.pt") == 2 * 1000


def test_views_strides_and_parameters_are_copied(folder: Path):
    base = torch.arange(12.0).view(3, 4)
    weight = nn.Parameter(base.clone())
    complex_view = torch.tensor([1 + 2j]).conj()
    tree = [base, base[1], base.T, base[:, ::2], base[:1].expand(3, 4), weight, complex_view]
    save_state(folder, "views", tree)
    loaded = load_state(folder, "views")
    for found, expected in zip(loaded, tree, strict=True):
        assert type(found) is torch.Tensor
        assert not found.requires_grad
        assert torch.equal(found, expected.detach())
    loaded[0].zero_()
    assert torch.equal(loaded[1], base[1])


def test_of_a_view_only_its_part_is_stored(folder: Path):
    large = torch.arange(100_000.0)
    save_state(folder, "parts", [large[:10], large[5:25].view(4, 5).T, large[:1].expand(3)])
    assert size_of_tensors(folder / "parts.pt") == 4 * (10 + 20 + 3)


def test_loaded_tensors_do_not_depend_on_the_file(folder: Path):
    save_state(folder, "mapped", torch.arange(5000))
    loaded = load_state(folder, "mapped")
    with (folder / "mapped.pt").open("r+b") as file:
        file.write(bytes(50_000))
    assert torch.equal(loaded, torch.arange(5000))


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (
            {"rollouts": [0, 1, 2, {"prompts": [{1}]}]},
            r"^rollouts\[3\]\.prompts\[0\] is a builtins\.set, expected None",
        ),
        ({"a b": {3: (object(),)}}, r"^\['a b'\]\[3\]\[0\] is a builtins\.object"),
        (torch.float32, r"^the state itself is a torch\.dtype"),
        (
            [torch.eye(2).to_sparse()],
            r"^\[0\] is a torch\.Tensor \(torch\.float32, torch\.sparse_coo, cpu\), expected",
        ),
        ([torch.ones(2, device="meta")], r"^\[0\] is a torch\.Tensor \(torch\.float32, torch\.strided, meta\)"),
        ({"metrics": Counter("ab")}, r"^metrics is a collections\.Counter"),
        ({"metrics": defaultdict(list)}, r"^metrics is a collections\.defaultdict"),
        ({"a": {(1, 2): 0}}, r"^a has the key \(1, 2\) \(tuple\), expected str or int"),
        ({True: 0}, r"^the state itself has the key True \(bool\)"),
        ([torch.Size([1])], r"^\[0\] is a torch\.Size"),
    ],
)
def test_what_cannot_come_back_is_refused_with_its_place(tmp_path: Path, tree, message: str):
    with pytest.raises(TypeError, match=message):
        save_state(tmp_path, "state", tree)
    assert list(tmp_path.iterdir()) == []


class Code:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


FILES = {
    "code": lambda path, ran: torch.save({"weights": Code(Path.touch, ran)}, path),
    "code of a system call": lambda path, ran: torch.save(Code(os.system, f"touch {ran}"), path),
    "a plain pickle": lambda path, ran: path.write_bytes(pickle.dumps(Code(Path.touch, ran), protocol=2)),
    "a pickled model": lambda path, ran: torch.save(nn.Linear(1, 1), path),
    "a cut file": lambda path, ran: path.write_bytes(path.read_bytes()[:-4]),
    "an empty file": lambda path, ran: path.write_bytes(b""),
    "text": lambda path, ran: path.write_text('{"dict": []}'),
    "no file": lambda path, ran: path.unlink(),
}


@pytest.mark.parametrize("write", FILES.values(), ids=FILES)
def test_a_file_that_is_no_state_is_refused_and_runs_nothing(tmp_path: Path, write: Callable[[Path, Path], object]):
    save_state(tmp_path, "state", torch.ones(8))
    write(tmp_path / "state.pt", tmp_path / "ran")
    with pytest.raises(CheckpointError, match=r"state\.pt is not a training state of this library \(.+\)") as caught:
        load_state(tmp_path, "state")
    assert not (tmp_path / "ran").exists()
    assert not any(advice in str(caught.value) for advice in ("weights_only", "safe_globals"))  # torch's, to trust it


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class FullDisk(io.BytesIO):
        def write(self, data) -> int:
            if self.tell() > 1000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    monkeypatch.setattr(Path, "open", lambda path, mode: FullDisk())
    with pytest.raises(OSError, match="No space left on device"):
        save_state(tmp_path, "state", torch.ones(1000))
