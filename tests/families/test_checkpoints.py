"""Each family's small checkpoint behaves as the family's real ones."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from tests.families.build import FAMILIES, LoadFamily, build_checkpoint, encode_prompts, picture

pytest_plugins = ["tests.families.fixtures"]

PICTURES = [picture(28, 28, seed=1), picture(56, 84, seed=2), picture(112, 84, seed=3)]
TILED = ("internvl", "llava_onevision", "smolvlm", "idefics3", "llava_next")

families = pytest.mark.parametrize("family", FAMILIES)


@families
def test_every_weight_is_loaded_by_path(family: str, family_folder: Callable[[str], Path]) -> None:
    model, report = AutoModelForImageTextToText.from_pretrained(family_folder(family), output_loading_info=True)
    assert model.config.model_type == family
    assert not any(report[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert sum(file.stat().st_size for file in family_folder(family).iterdir()) < 2e6


@families
def test_as_many_visual_tokens_as_features(family: str, load_family: LoadFamily) -> None:
    model, processor = load_family(family)
    prompts = [("How many?", PICTURES[:number]) for number in range(len(PICTURES) + 1)]
    counts = []
    for encoded in encode_prompts(processor, prompts):
        # The model refuses a number of features other than that of the visual tokens.
        assert model(**encoded).logits.isfinite().all()
        counts.append(int((encoded["input_ids"] == model.config.image_token_id).sum()))
    assert counts[0] == 0
    assert all(1 <= count <= 64 for count in counts[1:])


@families
def test_the_prompt_ends_where_the_reply_begins(family: str, load_family: LoadFamily) -> None:
    _, processor = load_family(family)
    [encoded] = encode_prompts(processor, [("How many?", PICTURES[:1])])
    text = processor.decode(encoded["input_ids"][0])
    assert text.index(processor.image_token) < text.index("How many?")
    assert text.strip().lower().endswith(("assistant", "assistant:", "model"))


@families
def test_another_picture_moves_the_logits(family: str, load_family: LoadFamily) -> None:
    model, processor = load_family(family)
    prompts = [("How many?", [picture(56, 56, seed)]) for seed in (1, 2)]
    first, second = (model(**encoded).logits for encoded in encode_prompts(processor, prompts))
    assert (first[:, -1] - second[:, -1]).abs().max() > 1e-3


@families
def test_the_decoder_is_the_text_part(family: str, load_family: LoadFamily) -> None:
    model, processor = load_family(family)
    decoder = model.get_decoder()
    seen = []
    decoder.register_forward_hook(lambda module, args, output: seen.append(output.last_hidden_state))
    [encoded] = encode_prompts(processor, [("How many?", PICTURES[:2])])
    logits = model(**encoded).logits
    torch.testing.assert_close(model.get_output_embeddings()(seen[0]), logits, rtol=0, atol=0)
    assert seen[0].shape == (*encoded["input_ids"].shape, decoder.config.hidden_size)


@pytest.mark.parametrize("family", TILED)
def test_a_picture_is_cut_into_tiles(family: str, load_family: LoadFamily) -> None:
    _, processor = load_family(family)
    [encoded] = encode_prompts(processor, [("How many?", [picture(112, 56)])])
    # (tiles, 3, H, W), or (images, tiles, 3, H, W)
    assert encoded["pixel_values"].flatten(0, -4).shape[0] > 1


def test_the_same_seed_gives_the_same_weights(family_folder: Callable[[str], Path], tmp_path: Path) -> None:
    build_checkpoint("internvl", tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == (
        family_folder("internvl") / "model.safetensors"
    ).read_bytes()
