"""What is loaded is what was saved, bit by bit and object by object; a hash of weights sees every difference."""

import math
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from vgpo.checkpoints import CheckpointError, load_tree, save_tree, weight_hash

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint16,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.float8_e4m3fn,
]


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def plain(tree, objects: dict[int, int]):
    """A tree that == compares bit by bit: types, floats as bytes, tensors as bytes and the number of their object."""
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


# Text with lone surrogates and control characters: JSON has to carry what a model wrote.
TEXT = st.text(st.characters(exclude_categories=()), max_size=8)
TENSORS = st.builds(
    random_tensor, st.sampled_from(DTYPES), st.sampled_from([(), (0,), (3,), (2, 0, 3), (2, 3)]), st.integers(0, 99)
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.binary(max_size=8) | TENSORS
KEYS = TEXT | st.integers() | st.sampled_from(["tensor", "dict", "tuple", "float", "bytes", "__metadata__"])


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
    return tmp_path_factory.mktemp("trees")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(tree=st.recursive(LEAVES, branches, max_leaves=12))
def test_a_tree_comes_back_bit_by_bit_and_object_by_object(folder: Path, tree):
    save_tree(folder, "state", tree)
    assert plain(load_tree(folder, "state"), {}) == plain(tree, {})


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, -math.nan, -0.0, 5e-324, 0.1, 1e22, 1.0])
def test_floats_keep_every_bit(folder: Path, value: float):
    save_tree(folder, "float", value)
    assert struct.pack(">d", load_tree(folder, "float")) == struct.pack(">d", value)


def test_a_nan_keeps_its_payload(folder: Path):
    (value,) = struct.unpack(">d", bytes.fromhex("fff800000000beef"))
    save_tree(folder, "nan", [value])
    assert struct.pack(">d", load_tree(folder, "nan")[0]).hex() == "fff800000000beef"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3, 4)])
def test_tensors_of_every_dtype_and_shape(folder: Path, dtype, shape):
    tensor = random_tensor(dtype, shape, 0)
    save_tree(folder, "tensor", tensor)
    loaded = load_tree(folder, "tensor")
    assert (loaded.dtype, loaded.shape, bits(loaded)) == (dtype, tensor.shape, bits(tensor))


def test_one_object_is_stored_once_and_equal_objects_stay_two(folder: Path):
    prompt, equal = torch.ones(1000, dtype=torch.uint8), torch.ones(1000, dtype=torch.uint8)
    save_tree(folder, "rows", {"prompts": [prompt, prompt, equal], "first": (prompt,)})
    loaded = load_tree(folder, "rows")
    first, again, other = loaded["prompts"]
    assert first is again is loaded["first"][0]
    assert other is not first
    assert torch.equal(other, first)
    assert (folder / "rows.safetensors").stat().st_size < 2 * 1000 + 500


def test_views_strides_and_parameters_are_copied(folder: Path):
    base = torch.arange(12.0).view(3, 4)
    weight = nn.Parameter(base.clone())
    complex_view = torch.tensor([1 + 2j]).conj()
    tree = [base, base[1], base.T, base[:, ::2], base[:1].expand(3, 4), weight, complex_view]
    save_tree(folder, "views", tree)
    loaded = load_tree(folder, "views")
    for found, expected in zip(loaded, tree, strict=True):
        assert type(found) is torch.Tensor
        assert not found.requires_grad
        assert torch.equal(found, expected.detach())
    loaded[0].zero_()
    assert torch.equal(loaded[1], base[1])


def test_loaded_tensors_do_not_depend_on_the_file(folder: Path):
    save_tree(folder, "mapped", torch.arange(5000))
    loaded = load_tree(folder, "mapped")
    with (folder / "mapped.safetensors").open("r+b") as file:
        file.write(bytes(40_000))
    assert torch.equal(loaded, torch.arange(5000))


def test_no_pickle_and_no_unknown_names_on_disk(folder: Path, tmp_path: Path):
    save_tree(tmp_path, "state", {"a": [1, torch.ones(2)]})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state.json", "state.safetensors"]
    assert (tmp_path / "state.json").read_text() == '{"dict": [["a", [1, {"tensor": "0"}]]]}'


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (
            {"rollouts": [0, 1, 2, {"prompts": [{1}]}]},
            r"^rollouts\[3\]\.prompts\[0\] is a builtins\.set, expected None",
        ),
        ({"a b": {3: (object(),)}}, r"^\['a b'\]\[3\]\[0\] is a builtins\.object"),
        (torch.float32, r"^the tree itself is a torch\.dtype"),
        ([torch.eye(2).to_sparse()], r"^\[0\] is a torch\.Tensor \(torch\.float32, torch\.sparse_coo\), expected"),
        ([torch.ones(1, dtype=torch.complex128)], r"^\[0\] is a torch\.Tensor \(torch\.complex128, torch\.strided\)"),
        ({"a": {(1, 2): 0}}, r"^a has the key \(1, 2\) \(tuple\), expected str or int"),
        ({True: 0}, r"^the tree itself has the key True \(bool\)"),
        ([torch.Size([1])], r"^\[0\] is a torch\.Size"),
    ],
)
def test_what_cannot_come_back_is_refused_with_its_place(tmp_path: Path, tree, message: str):
    with pytest.raises(TypeError, match=message):
        save_tree(tmp_path, "state", tree)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text", ["", "[", '{"tensor": "7"}', '{"pickle": "00"}', '{"bytes": "xy"}', '{"float": "00"}', '{"dict": [1]}']
)
def test_a_file_that_is_no_tree_is_refused(tmp_path: Path, text: str):
    save_tree(tmp_path, "state", [])
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"state\.json is no tree of this library: "):
        load_tree(tmp_path, "state")


def test_a_cut_tensor_file_is_refused(tmp_path: Path):
    save_tree(tmp_path, "state", torch.ones(8))
    (tmp_path / "state.safetensors").write_bytes((tmp_path / "state.safetensors").read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=r"state\.json is no tree of this library: SafetensorError"):
        load_tree(tmp_path, "state")


def weights() -> dict[str, torch.Tensor]:
    return {
        "a": torch.arange(6, dtype=torch.bfloat16).view(2, 3),
        "b": torch.tensor(1.0),
        "c": torch.zeros(0, 4),
        "d": torch.tensor([True, False]),
    }


def test_the_hash_does_not_depend_on_order_strides_or_parameters():
    named = weights()
    expected = weight_hash(named.items())
    assert expected == weight_hash(reversed(named.items()))
    assert expected == weight_hash(iter({**named, "a": named["a"].T.contiguous().T}.items()))
    assert expected == weight_hash({**named, "b": nn.Parameter(named["b"])}.items())
    assert len(expected) == 64


def test_the_hash_sees_name_dtype_shape_and_every_bit():
    named = weights()
    a = named["a"]
    changes = [
        {**named, "e": torch.zeros(0)},
        {name: tensor for name, tensor in named.items() if name != "c"},
        {"dd" if name == "d" else name: tensor for name, tensor in named.items()},
        {**named, "a": named["b"], "b": a},
        {**named, "a": a.view(torch.float16)},
        {**named, "a": a.view(3, 2)},
        {**named, "c": torch.zeros(4, 0)},
        {**named, "b": torch.tensor([1.0])},
        {**named, "b": torch.tensor(1.0, dtype=torch.float64)},
        {**named, "b": torch.tensor(1.0 + 2**-52, dtype=torch.float64)},
    ]
    for index in range(a.numel() * 16):
        flipped = a.clone()
        flipped.view(torch.int16).view(-1)[index // 16] ^= -(1 << 15) if index % 16 == 15 else 1 << index % 16
        changes.append({**named, "a": flipped})
    hashes = {weight_hash(change.items()) for change in [named, *changes]}
    assert len(hashes) == 1 + len(changes)


def test_the_hash_tells_minus_zero_from_zero():
    assert weight_hash([("a", torch.tensor(0.0))]) != weight_hash([("a", torch.tensor(-0.0))])


def test_the_hash_of_a_distributed_tensor_is_that_of_the_local_part():
    class Spread:
        def to_local(self) -> torch.Tensor:
            return torch.ones(2)

    assert weight_hash([("a", Spread())]) == weight_hash([("a", torch.ones(2))])
