"""The provider `vgpo/CHECKPOINT`: the prompts, responses and limits of a checkpoint in this process."""

import asyncio
import base64
import io
from pathlib import Path
from typing import Any

import inspect_ai
import pytest
from inspect_ai.model import (
    ChatMessageSystem,
    ChatMessageUser,
    ContentAudio,
    ContentImage,
    ContentText,
    GenerateConfig,
    ModelOutput,
    get_model,
)
from inspect_ai.tool import ToolInfo
from PIL import Image

from vgpo.data import decode_image, load_dataset, to_prompts
from vgpo.evaluation.completions import Completion
from vgpo.suite.prompts import ProviderError, as_data_uri, content_of, row_of
from vgpo.suite.provider import CheckpointAPI, output_of
from vgpo.toy import write_datasets


def png(size: tuple[int, int] = (8, 8), color: Any = "red", mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, color).save(file, "PNG")
    return file.getvalue()


def encoded(size: tuple[int, int] = (8, 8)) -> str:
    return f"data:image/png;base64,{base64.b64encode(png(size)).decode()}"


@pytest.fixture(scope="module")
def api() -> CheckpointAPI:
    return CheckpointAPI("toy", batch_size=4, max_new_tokens=8, template="plain")


def generated(api: CheckpointAPI, message: ChatMessageUser, **config: Any) -> ModelOutput:
    return asyncio.run(api.generate([message], [], "none", GenerateConfig(**config)))


QUESTION = ChatMessageUser(content=[ContentImage(image=encoded((84, 84))), ContentText(text="What is largest?")])


def test_images_and_texts_keep_their_order_and_roles() -> None:
    messages = [
        ChatMessageSystem(content="Be brief."),
        ChatMessageUser(
            content=[ContentText(text="Of"), ContentImage(image=encoded((8, 6))), ContentText(text="and"),
                     ContentImage(image=encoded((4, 6)))]
        ),
    ]  # fmt: skip
    row = row_of(messages)
    assert [message["role"] for message in row["prompt"]] == ["system", "user"]
    assert [part.get("text", "<image>") for part in row["prompt"][1]["content"]] == ["Of", "<image>", "and", "<image>"]
    assert [image.size for image in row["images"]] == [(8, 6), (4, 6)]


def test_another_medium_and_a_broken_image_are_errors() -> None:
    audio = ContentAudio(audio="data:audio/wav;base64,AAAA", format="wav")
    with pytest.raises(ProviderError, match="a user message holds 'audio', expected text or images"):
        row_of([ChatMessageUser(content=[audio])])
    with pytest.raises(ProviderError, match="cannot be"):
        row_of([ChatMessageUser(content=[ContentImage(image="data:image/png;base64,AAAA")])])


@pytest.mark.parametrize("stored", [png(), png(mode="L", color=7), png(mode="RGBA", color=(1, 2, 3, 0))])
def test_an_image_as_a_data_uri_has_the_pixels_that_training_sees(stored: bytes) -> None:
    image = {"bytes": stored, "path": None}
    assert decode_image(as_data_uri(image)).tobytes() == decode_image(image).tobytes()


def test_the_stored_bytes_are_sent_as_they_are() -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    uri = as_data_uri({"bytes": file.getvalue(), "path": None})
    assert uri == f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def test_limits_are_those_of_the_checkpoint_and_the_request(api: CheckpointAPI, tmp_path: Path) -> None:
    assert api.max_tokens() == 8
    assert api.max_connections() == 8
    dataset = load_dataset(str(write_datasets(tmp_path, num_train=1, num_test=1, progress=False)[1]))
    question = ChatMessageUser(content=content_of(to_prompts(dataset, read=as_data_uri)[0]))
    cut = generated(api, question)
    assert (cut.stop_reason, cut.usage and cut.usage.output_tokens) == ("max_tokens", 8)
    whole = generated(api, question, max_tokens=200)
    assert whole.stop_reason == "stop"
    assert whole.completion.startswith(cut.completion)


def test_a_prompt_that_fills_the_context_is_not_asked(api: CheckpointAPI) -> None:
    long = generated(api, ChatMessageUser(content="1 " * 1024))
    assert (long.stop_reason, long.completion) == ("model_length", "")


def test_samples_follow_the_seed(api: CheckpointAPI) -> None:
    texts = [generated(api, QUESTION, temperature=1.5, seed=seed, max_tokens=40).completion for seed in (1, 1, 2, 3)]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1


def test_requests_with_other_decoding_are_answered_apart(api: CheckpointAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[tuple[int, int, float, list[int]]] = []

    def complete(rows: list[Any], *, max_new_tokens: int, temperature: float, seeds: list[int]) -> list[Completion]:
        batches.append((len(rows), max_new_tokens, temperature, seeds))
        return [Completion(f"{max_new_tokens} {seed}", 1, 1, truncated=False) for seed in seeds]

    async def ask_all() -> list[ModelOutput]:
        configs = [(8, 0.0, 1), (9, 0.0, 2), (8, 0.0, 3), (8, 1.0, 4)]
        return await asyncio.gather(
            *(
                api.generate([QUESTION], [], "none", GenerateConfig(max_tokens=limit, temperature=heat, seed=seed))
                for limit, heat, seed in configs
            )
        )

    monkeypatch.setattr(api.policy, "complete", complete)
    assert [output.completion for output in asyncio.run(ask_all())] == ["8 1", "9 2", "8 3", "8 4"]
    assert batches == [(2, 8, 0.0, [1, 3]), (1, 9, 0.0, [2]), (1, 8, 1.0, [4])]


@pytest.mark.parametrize("options", [{"top_p": 0.9}, {"top_k": 40}])
def test_sampling_that_narrows_the_distribution_is_an_error(api: CheckpointAPI, options: dict[str, Any]) -> None:
    with pytest.raises(ProviderError, match="is greedy or samples from the full softmax"):
        generated(api, QUESTION, temperature=1.0, **options)


def test_tools_are_an_error(api: CheckpointAPI) -> None:
    tool = ToolInfo(name="search", description="")
    with pytest.raises(ProviderError, match=r"vgpo/toy has no tools, found \['search'\]"):
        asyncio.run(api.generate([QUESTION], [tool], "auto", GenerateConfig()))


def test_inspect_ai_finds_the_provider_by_its_name() -> None:
    model = get_model("vgpo/toy", memoize=False, batch_size=2, max_new_tokens=4)
    assert isinstance(model.api, CheckpointAPI)
    assert model.api.batch_size == 2


def test_inspect_ai_runs_a_task_and_the_provider_by_their_names(folder: Path, tmp_path: Path) -> None:
    (log,) = inspect_ai.eval(
        "vgpo/counting",
        "vgpo/toy",
        task_args={"data": str(folder / "counting.parquet"), "template": "plain"},
        model_args={"batch_size": 4},
        log_dir=str(tmp_path / "logs"),
        display="none",
        log_realtime=False,
        max_tokens=96,
    )
    assert log.results is not None
    assert (log.eval.task_registry_name, log.eval.model) == ("vgpo/counting", "vgpo/toy")
    assert log.results.scores[0].metrics["accuracy"].value == pytest.approx(4 / 6)


def test_outcomes_as_inspect_ai_names_them() -> None:
    outcomes = [Completion("a", 3, 2, truncated=False), Completion("a", 3, 2, truncated=True)]
    assert [output_of("toy", one).stop_reason for one in outcomes] == ["stop", "max_tokens"]
    usage = output_of("toy", outcomes[0]).usage
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (3, 2, 5)
