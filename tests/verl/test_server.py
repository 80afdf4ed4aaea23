"""The server of the tests' rollout engine: when it serves, and with which weights. No Ray runs."""

import tests.verl.cpu_platform  # isort: skip  # noqa: F401 - before verl

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer
from verl.workers.config import RolloutConfig
from verl.workers.rollout.replica import TokenOutput

from tests.verl import transformers_rollout
from tests.verl.transformers_rollout import TransformersServer
from vgpo.toy import checkpoint_path

GREEDY = {"temperature": 0, "logprobs": True}


@pytest.fixture(scope="module")
def prompt_ids() -> list[int]:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path())
    text = "What is the sum of row 2?"
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=True
    )["input_ids"]


@pytest.fixture
def server() -> TransformersServer:
    return make_server()


def make_server(**settings: Any) -> TransformersServer:
    config = RolloutConfig(name="transformers", prompt_length=64, response_length=12, seed=3, **settings)
    return TransformersServer(config, {"path": str(checkpoint_path())}, replica_rank=0)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many requests each batch of a server has."""
    sizes: list[int] = []

    def counted(model: Any, processor: Any, requests: Any, respond: Callable = transformers_rollout.respond) -> Any:
        sizes.append(len(requests))
        return respond(model, processor, requests)

    monkeypatch.setattr(transformers_rollout, "respond", counted)
    return sizes


async def finishes(work: Coroutine[Any, Any, TokenOutput], seconds: float = 0.3) -> tuple[asyncio.Task, bool]:
    task = asyncio.create_task(work)
    done, _ = await asyncio.wait([task], timeout=seconds)
    return task, bool(done)


def test_a_request_waits_for_the_weights_and_is_served_with_them(server, prompt_ids) -> None:
    async def scenario() -> tuple[TokenOutput, TokenOutput]:
        zeros = {name: torch.zeros_like(value) for name, value in server.model.state_dict().items()}
        weights = {name: value.clone() for name, value in server.model.state_dict().items()}
        task, done = await finishes(server.generate(prompt_ids, GREEDY, "a"))
        assert not done
        await server.wake_up(["weights"])
        await asyncio.wait([task], timeout=0.3)
        assert not task.done()
        await server.load_weights(zeros, global_steps=4)
        await server.wake_up(["kv_cache"])
        first = await task
        await server.sleep()
        task, done = await finishes(server.generate(prompt_ids, GREEDY, "b"))
        assert not done
        await server.load_weights(weights, global_steps=5)
        await server.wake_up()
        return first, await task

    first, second = asyncio.run(scenario())
    assert first.token_ids == [0] * 12  # of equal logits the first
    assert first.extra_fields["global_steps"] == 4
    assert second.token_ids != first.token_ids
    assert second.extra_fields["global_steps"] == 5
    assert second.stop_reason == "completed"
    assert len(second.log_probs) == len(second.token_ids)


def test_weights_of_other_names_are_refused(server) -> None:
    with pytest.raises(RuntimeError, match="Missing key"):
        asyncio.run(server.load_weights({"other": torch.zeros(1)}, 0))


def test_requests_that_follow_each_other_closely_are_one_batch(server, prompt_ids, batches, monkeypatch) -> None:
    monkeypatch.setattr(transformers_rollout, "QUIET_SECONDS", 0.5)

    async def scenario() -> None:
        await server.wake_up()
        tasks = []
        for number in range(6):
            tasks.append(asyncio.create_task(server.generate(prompt_ids, {"temperature": 1.0}, str(number))))
            await asyncio.sleep(0.002)
        await asyncio.gather(*tasks)

    asyncio.run(scenario())
    assert batches == [6]


def test_an_aborted_server_serves_again_once_it_resumes(server, prompt_ids) -> None:
    async def scenario() -> TokenOutput:
        await server.wake_up()
        assert await server.abort_all_requests() == {"aborted_count": 0, "request_ids": []}
        task, done = await finishes(server.generate(prompt_ids, GREEDY, "a"))
        assert not done
        await server.resume_generation()
        return await task

    assert asyncio.run(scenario()).token_ids


def test_an_error_in_a_batch_reaches_those_who_asked_and_the_next_are_served(server, prompt_ids) -> None:
    async def scenario() -> list[Any]:
        await server.wake_up()
        bad = {**GREEDY, "min_p": 0.1}
        failed = await asyncio.gather(server.generate(prompt_ids, bad, "a"), return_exceptions=True)
        return [*failed, await server.generate(prompt_ids, GREEDY, "b")]

    failed, served = asyncio.run(scenario())
    assert isinstance(failed, ValueError)
    assert served.token_ids


def test_the_request_that_is_to_fail_fails(prompt_ids) -> None:
    server = make_server(custom={"failing_request": 1})

    async def scenario() -> list[Any]:
        await server.wake_up()
        asked = (server.generate(prompt_ids, GREEDY, str(i)) for i in range(3))
        return await asyncio.gather(*asked, return_exceptions=True)

    outcomes = asyncio.run(scenario())
    assert [isinstance(outcome, RuntimeError) for outcome in outcomes] == [False, True, False]


def test_a_response_is_as_long_as_the_request_allows(prompt_ids) -> None:
    server = make_server(free_cache_engine=False, max_model_len=len(prompt_ids) + 5)

    async def scenario() -> list[TokenOutput]:
        asked = ({"max_tokens": 3}, {"max_new_tokens": 4}, {})
        return [await server.generate(prompt_ids, {"ignore_eos": True, **limit}, "a") for limit in asked]

    assert [len(output.token_ids) for output in asyncio.run(scenario())] == [3, 4, 5]


def test_a_prompt_without_room_for_a_response_is_refused(prompt_ids) -> None:
    server = make_server(max_model_len=len(prompt_ids))
    with pytest.raises(ValueError, match=f"A prompt has {len(prompt_ids)} tokens, expected fewer"):
        asyncio.run(server.generate(prompt_ids, GREEDY, "a"))


def test_videos_are_refused(server, prompt_ids) -> None:
    with pytest.raises(ValueError, match="Request a has videos or audio"):
        asyncio.run(server.generate(prompt_ids, GREEDY, "a", video_data=[object()]))


def test_the_weights_version_seeds_what_is_sampled(server, prompt_ids) -> None:
    async def scenario() -> list[list[int]]:
        weights = {name: value.clone() for name, value in server.model.state_dict().items()}
        await server.wake_up()
        drawn = []
        for step in (1, 2, 1):
            await server.load_weights(weights, step)
            outputs = (server.generate(prompt_ids, {"temperature": 1.5}, str(i)) for i in range(4))
            drawn.append([output.token_ids for output in await asyncio.gather(*outputs)])
        return drawn

    first, second, again = asyncio.run(scenario())
    assert first == again != second
