from collections.abc import Callable
from pathlib import Path

import datasets
import PIL.Image
import pytest
from transformers import AutoProcessor
from trl import prepare_multimodal_messages

from vgpo.data import DataError, drop_long, prompt_lengths, to_prompts, tokens
from vgpo.toy import checkpoint_path

pytest_plugins = ["tests.families.fixtures"]

SIZES = [(28, 28), (56, 112), (112, 56), (84, 61), (30, 200)]


@pytest.fixture
def pictures() -> datasets.Dataset:
    """Rows with no, one and two images of several sizes."""
    images = [PIL.Image.new("RGB", size) for size in SIZES]
    rows = [{"images": [image], "problem": "<image>" + "Why? " * n} for n, image in enumerate(images)]
    rows += [{"images": images[1:3], "problem": "<image> or <image>?"}, {"images": [], "problem": "text only"}]
    features = datasets.Features(
        images=datasets.List(datasets.Image()), problem=datasets.Value("string"), answer=datasets.Value("string")
    )
    return datasets.Dataset.from_list([{**row, "answer": "7"} for row in rows], features=features)


def really_encoded(processor, pictures: datasets.Dataset) -> list[int]:
    """Lengths of the prompts as evaluation and training encode them."""
    return [
        processor.apply_chat_template(
            [prepare_multimodal_messages(row["prompt"], images=row["images"])],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )["input_ids"].shape[1]
        for row in to_prompts(pictures, "think_boxed")
    ]


@pytest.mark.parametrize(
    ("family", "computes"),
    [("qwen2_5_vl", True), ("internvl", True), ("gemma3", True), ("smolvlm", False), ("llava_onevision", False)],
)
def test_lengths_are_those_of_really_encoding(
    family_folder: Callable[[str], Path], pictures, monkeypatch: pytest.MonkeyPatch, family: str, computes: bool
) -> None:
    processor = AutoProcessor.from_pretrained(family_folder(family))
    expected = really_encoded(processor, pictures)
    calls = []
    encoded = tokens.TokenCounter.encoded
    monkeypatch.setattr(tokens.TokenCounter, "encoded", lambda self, *args: calls.append(args) or encoded(self, *args))
    assert prompt_lengths(pictures, "think_boxed", processor) == expected
    # Text alone, two to four sizes, and a pair; more where arithmetic is not to be trusted.
    assert (len(calls) <= 6) == computes


def test_longer_templates_and_lower_pixel_limits_are_counted(pictures) -> None:
    processor = AutoProcessor.from_pretrained(checkpoint_path())
    plain, boxed = (prompt_lengths(pictures, name, processor) for name in ("plain", "think_boxed"))
    assert all(b > a + 30 for a, b in zip(plain, boxed, strict=True))
    processor.image_processor.size["longest_edge"] = 28 * 28
    assert prompt_lengths(pictures, "plain", processor)[4] < plain[4]


def test_long_prompts_are_left_out_with_their_rows(pictures) -> None:
    kept, said = drop_long(pictures, [5, 9, 7, 9, 1, 1, 1], 8)
    assert kept["problem"][:] == [pictures["problem"][row] for row in (0, 2, 4, 5, 6)]
    assert said == ("dropped 2 of 7 prompts, longer than max_prompt_length=8 tokens (rows 1, 3); the longest has 9")
    assert drop_long(pictures, [5] * 7, 5) == (pictures, None)
    assert drop_long(pictures, [5] * 7, None) == (pictures, None)
    with pytest.raises(DataError, match=r"all 7 prompts have more than max_prompt_length=4 .* has 5"):
        drop_long(pictures, [5, 6, 6, 6, 6, 6, 6], 4)
