"""What goes to an inference engine and what comes back, without one."""

import itertools
import json
import threading
import warnings
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from transformers import AutoProcessor

from tests.families.build import picture
from vgpo.policy.prompts import messages_with_images
from vgpo.recipe import serving
from vgpo.recipe.errors import RecipeError
from vgpo.recipe.loading import set_pixel_limits
from vgpo.recipe.recipe import load_recipe
from vgpo.recipe.serving import server_settings
from vgpo.recipe.setup import Setup
from vgpo.toy import checkpoint_path
from vgpo.vllm.prompts import (
    EngineError,
    check_importance_ratio,
    check_same_prompts,
    placeholder_ids,
    processor_options,
    with_placeholders,
)
from vgpo.vllm.server import ServerSettings, as_shell, server_faults

MODEL = {"dtype": "torch.float32", "logprobs_mode": "processed_logprobs", "multimodal_config": {}}


@pytest.fixture(scope="module")
def processor() -> Any:
    return AutoProcessor.from_pretrained(checkpoint_path())


def test_a_prompt_has_one_placeholder_for_each_image_also_for_neighbours(processor: Any) -> None:
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Which?"}]
    images = [picture(56, 56), picture(84, 56)]
    messages = messages_with_images([{"role": "user", "content": content}], images)
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = placeholder_ids(processor, text)
    encoded = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
    image = processor.image_token_id
    (expanded,) = encoded["input_ids"]
    assert (ids.count(image), expanded.count(image)) == (2, 4 + 6)
    assert [token for token in ids if token != image] == [token for token in expanded if token != image]


def test_turns_after_the_prompt_stay_as_they_are() -> None:
    assert with_placeholders([5, 9, 9, 6, 1, 2], [5, 9, 9, 6], [5, 9, 6]) == [5, 9, 6, 1, 2]
    with pytest.raises(EngineError, match="does not begin with the prompt that was encoded for it"):
        with_placeholders([5, 9, 6], [5, 9, 9, 6], [5, 9, 6])


@pytest.mark.parametrize(
    ("read", "said"),
    [
        ([1, 9, 9, 9, 2], "Row 1: 4 tokens in the trainer, 5 in the engine, different from token 3 on"),
        ([1, 9, 9], "Row 1: 4 tokens in the trainer, 3 in the engine, different from token 3 on"),
        ([1, 9, 9, 3], "Row 1: 4 tokens in the trainer, 4 in the engine, different from token 3 on"),
    ],
)
def test_another_prompt_is_an_error_with_the_row_and_both_lengths(read: list[int], said: str) -> None:
    check_same_prompts([[1, 9, 9, 2]] * 2, [(1, 9, 9, 2)] * 2)
    with pytest.raises(EngineError) as caught:
        check_same_prompts([[1, 9, 9, 2]] * 2, [[1, 9, 9, 2], read])
    assert said in str(caught.value)
    assert "in 1 of 2 rows" in str(caught.value)


def test_a_ratio_near_zero_is_an_error_and_a_low_one_is_not() -> None:
    for ratios in ([], [4e-12, 0.3], [0.01]):
        check_importance_ratio(ratios, 3)
    with pytest.raises(EngineError, match=r"to the inference engine is 4\.0e-12 after step 3"):
        check_importance_ratio([0.9, 4e-12], 3)


def test_pixel_limits_are_given_where_a_processor_has_them() -> None:
    own = AutoProcessor.from_pretrained(checkpoint_path())
    set_pixel_limits(own.image_processor, 784, 3136)
    assert processor_options(own) == {"size": {"shortest_edge": 784, "longest_edge": 3136}}
    own.image_processor.valid_kwargs = type("Plain", (), {"__annotations__": {}})
    assert processor_options(own) == {}


# The server's command, and what a server says of itself


def settings_of(tmp_path: Path, *words: str) -> ServerSettings:
    own = ["--use_vllm", "true", "--vllm_mode", "server", "--use_cpu", "true"]
    return server_settings(Setup(load_recipe("quickstart_vgpo", [*own, *words]), tmp_path))


def test_the_command_has_what_the_recipe_says(tmp_path: Path) -> None:
    words = ["--max_pixels", "3136", "--max_prompt_length", "100", "--vllm_server_port", "9000"]
    settings = settings_of(tmp_path, *words, "--vllm_tensor_parallel_size", "2")
    command = settings.command(["--enforce-eager"])
    assert command[:7] == ["vllm", "serve", str(checkpoint_path()), "--host", "127.0.0.1", "--port", "9000"]
    options = dict(itertools.pairwise(command))
    assert json.loads(options["--mm-processor-kwargs"]) == {"size": {"shortest_edge": 784, "longest_edge": 3136}}
    assert json.loads(options["--weight-transfer-config"]) == {"backend": "nccl"}
    assert (options["--dtype"], options["--max-model-len"]) == ("float32", "140")
    assert options["--tensor-parallel-size"] == "2"
    assert command[-1] == "--enforce-eager"
    assert as_shell(command).startswith("VLLM_SERVER_DEV_MODE=1 vllm serve ")
    assert "--mm-processor-kwargs" not in settings_of(tmp_path).command()
    assert "bfloat16" in settings_of(tmp_path, "--vllm_dtype", "bfloat16").command()


def test_a_version_that_trl_does_not_support_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert serving.unsupported_vllm() is None or "TRL currently supports vLLM versions" in str(
        serving.unsupported_vllm()
    )

    def available() -> bool:
        warnings.warn("TRL currently supports vLLM versions from 0.22.0 to 0.31.0. You have version 9", stacklevel=1)
        return True

    monkeypatch.setattr(serving, "is_vllm_available", available)
    assert str(serving.unsupported_vllm()).endswith("You have version 9")


def test_devices_without_a_server_are_refused() -> None:
    with pytest.raises(RecipeError, match="vllm_server_devices has no effect without use_vllm: true and vllm_mode"):
        load_recipe("quickstart_vgpo", ["--vllm_server_devices", "6,7"])


class Server(BaseHTTPRequestHandler):
    """Answers as vLLM does."""

    answers: ClassVar[dict[str, Any]] = {}

    def do_GET(self) -> None:
        found = self.answers.get(self.path.partition("?")[0])
        self.send_response(404 if found is None else 200)
        self.end_headers()
        self.wfile.write(json.dumps(found).encode())

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_what_is_wrong_with_a_server_is_named(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ServerSettings(model="m", url=address, dtype="float32", processor={})
    models = {"data": [{"root": "m"}]}

    def faults(config: dict[str, Any] | None) -> list[str]:
        answers = {"/v1/models": models} | ({"/server_info": {"vllm_config": config}} if config else {})
        monkeypatch.setattr(Server, "answers", answers)
        return server_faults(settings)

    sound = {"model_config": MODEL, "weight_transfer_config": {"backend": "nccl"}}
    assert faults(sound) == []
    assert faults(None) == ["it was started without VLLM_SERVER_DEV_MODE=1, which weight updates need"]
    wrong = {**MODEL, "dtype": "torch.bfloat16", "logprobs_mode": "raw_logprobs", "multimodal_config": None}
    assert [fault.split(",")[0] for fault in faults({"model_config": wrong})] == [
        "it was started without --weight-transfer-config",
        "its --logprobs-mode is raw_logprobs",
        "it computes in torch.bfloat16",
    ]
    models["data"] = []
    assert faults(sound) == ["it serves [], expected 'm'"]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://127.0.0.1:9", "No vLLM server answers at http://127.0.0.1:9"),
        ("file:///etc/passwd", "expected http://"),
    ],
)
def test_no_server_is_an_error(url: str, said: str) -> None:
    with pytest.raises(EngineError, match=said):
        server_faults(ServerSettings(model="m", url=url, dtype="float32", processor={}))
