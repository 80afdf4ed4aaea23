"""vLLM reads the prompts of training, and answers as transformers does; every fault that is put back is seen."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

from tests.families import build
from tests.families.build import picture, write_checkpoint
from vgpo.policy.generation import as_responses, greedy_decoding, respond
from vgpo.policy.prompts import encode
from vgpo.recipe.loading import set_pixel_limits
from vgpo.toy import checkpoint_path
from vgpo.vllm.offline import OfflineEngine
from vgpo.vllm.prompts import EngineError

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")
HEAD = 32  # wide: vLLM on a CPU has no narrower one
NUM_TOKENS = 16


def row(text: str, *images: Image.Image) -> dict[str, Any]:
    content = [*[{"type": "image"}] * len(images), {"type": "text", "text": text}]
    return {"prompt": [{"role": "user", "content": content}], "images": list(images)}


IMAGES = [picture(56, 56, 1), picture(84, 56, 2), picture(56, 112, 3)]
ROWS = [
    row("What?"),
    row("How many?", IMAGES[0]),
    row("Which?", *IMAGES),
    row("The same?", IMAGES[1], IMAGES[1]),
]


@dataclass
class Family:
    """A checkpoint in both libraries."""

    engine: OfflineEngine
    model: PreTrainedModel
    processor: ProcessorMixin


def toy(folder: Path) -> Path:
    return checkpoint_path()


def qwen3_vl(folder: Path) -> Path:
    config, processor = build.qwen3_vl()
    text = config.get_text_config()
    text.head_dim, text.rope_parameters["mrope_section"] = HEAD, [4, 6, 6]
    write_checkpoint(lambda: (config, processor), folder)
    return folder


def smolvlm(folder: Path) -> Path:
    """Its images are cut into tiles, with marks between them."""
    config, processor = build.smolvlm()
    config.get_text_config().head_dim = HEAD
    write_checkpoint(lambda: (config, processor), folder)
    return folder


@pytest.fixture(scope="module", params=[toy, qwen3_vl, smolvlm], ids=lambda family: family.__name__)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Family]:
    make: Callable[[Path], Path] = request.param
    folder = str(make(tmp_path_factory.mktemp(make.__name__)))
    processor = AutoProcessor.from_pretrained(folder)
    engine = OfflineEngine(folder, processor, AutoConfig.from_pretrained(folder), dtype="float32", max_model_len=1024)
    yield Family(engine, AutoModelForImageTextToText.from_pretrained(folder, dtype="float32").eval(), processor)
    del engine


def test_greedy_responses_and_their_log_probs_are_those_of_transformers(family: Family) -> None:
    decoding = greedy_decoding(family.model, family.processor, NUM_TOKENS)
    answered = family.engine.respond(ROWS, max_new_tokens=NUM_TOKENS)
    for one, response in zip(ROWS, answered, strict=True):
        prompt = encode(family.processor, one, {}, CPU)
        expected = respond(family.model, [prompt], decoding)
        assert response.token_ids == expected.ids[0][expected.mask[0]].tolist()
        assert response.ended == (len(response.token_ids) < NUM_TOKENS)
        torch.testing.assert_close(
            torch.tensor(response.log_probs), log_probs(family, prompt, response.token_ids), atol=1e-3, rtol=0
        )


@torch.no_grad()
def log_probs(family: Family, prompt: Any, token_ids: list[int]) -> torch.Tensor:
    """Of a response, by a plain pass, without the banned tokens."""
    rows = as_responses([prompt], [token_ids], 0, CPU).rows
    logits = family.model(
        input_ids=rows.input_ids, attention_mask=rows.attention_mask, **prompt.media,
        **{name: torch.tensor([types + [0] * len(token_ids)]) for name, types in prompt.token_types.items()},
    ).logits[0, len(prompt.token_ids) - 1 : -1].float()  # fmt: skip
    logits[:, family.engine.banned] -= 100.0
    return logits.log_softmax(-1).gather(1, torch.tensor(token_ids)[:, None])[:, 0]


def test_other_pixel_limits_in_the_engine_are_an_error(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    other = AutoProcessor.from_pretrained(family.model.name_or_path)
    if "max_pixels" not in other.image_processor.valid_kwargs.__annotations__:
        pytest.skip("this kind of processor has no pixel limits")
    set_pixel_limits(other.image_processor, None, 4 * 28 * 28)
    monkeypatch.setattr(family.engine, "processor", other)
    with pytest.raises(EngineError, match=r"read another prompt than the one .* in [12] of 4 rows\. Row"):
        family.engine.respond([*ROWS[:2], ROWS[0], row("Which?", picture(112, 112))], max_new_tokens=1)


def test_ids_that_are_expanded_before_are_an_error(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    def expanded(one: dict[str, Any], prompt: list[int], kwargs: Any) -> dict[str, Any]:
        return {"prompt_token_ids": prompt, "multi_modal_data": {"image": list(one["images"])}}

    monkeypatch.setattr(family.engine, "_request", expanded)
    with pytest.raises((EngineError, ValueError)):
        family.engine.respond(ROWS[1:2], max_new_tokens=1)


def test_banned_tokens_are_never_sampled(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    def sampled() -> set[int]:
        responses = family.engine.respond(ROWS[1:2] * 128, max_new_tokens=64, temperature=2.0)
        return {token for response in responses for token in response.token_ids}

    banned = set(family.engine.banned)
    assert banned.isdisjoint(sampled())
    monkeypatch.setattr(family.engine, "banned", [])
    assert not banned.isdisjoint(sampled())
