"""TRL's generation with vLLM, with the prompt format that vLLM expects for images, and a check of its prompts.

TRL 1.16 gives a colocated vLLM the processor's ids beside the images. vLLM expands the first image token of each image
once more, and answers another prompt than the one that is trained on. Here both modes give it one placeholder for each
image, and compare the prompt that vLLM read with the trainer's, token by token.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn

import requests
from requests.adapters import HTTPAdapter
from trl.generation import vllm_generation
from trl.generation.vllm_client import VLLMClient, parse_logprobs, pil_to_base64
from trl.generation.vllm_generation import VLLMGeneration
from trl.trainer import grpo_trainer
from urllib3.util.retry import Retry

from vgpo.policy.parts import count_parameters
from vgpo.vllm.prompts import EngineError, check_same_prompts, processor_options

logger = logging.getLogger(__name__)

WAITING_MESSAGE_SECONDS = 15.0
CONNECTIONS = 64
FINAL_ONLY = 2  # of vLLM's output kinds; with its default, responses that end early are left out where n > 1
# A server that is gone is reported within seconds; TRL tries for a minute. Read errors are tried again, for a server
# closes connections that were idle for some seconds, as between the generations of long steps.
RETRIES = Retry(
    total=3, connect=3, read=2, status=2, status_forcelist=[502, 503], backoff_factor=0.5, allowed_methods=None
)


@contextmanager
def engine_in_place(dtype: str) -> Iterator[None]:
    """Inside the block, TRL's trainer builds `EngineGeneration` where it would build its parent."""
    parent = grpo_trainer.VLLMGeneration
    vars(grpo_trainer)["VLLMGeneration"] = partial(EngineGeneration, engine_dtype=dtype)
    try:
        yield
    finally:
        vars(grpo_trainer)["VLLMGeneration"] = parent


class EngineGeneration(VLLMGeneration):
    """`VLLMGeneration` whose prompts are those of the trainer.

    Attributes:
        engine_prompts: what vLLM gets for the next prompts; None for the prompts themselves, which have no image.
    """

    def __init__(self, *args: Any, engine_dtype: str, **kwargs: Any) -> None:
        self.engine_prompts: list[list[int]] | None = None
        self.engine_dtype = engine_dtype
        self._sees_anew: bool | None = None
        super().__init__(*args, **kwargs)

    def _init_vllm(self) -> None:
        parts: dict[str, Any] = {"VLLMClient": EngineClient}
        if self.mode == "colocate":
            logger.info("vLLM computes in %s.", self.computes_in)
            options = {
                "dtype": self.computes_in,
                "mm_processor_kwargs": processor_options(self.processing_class) or None,
            }
            parts["LLM"] = partial(vllm_generation.LLM, **options)
        before = {name: vars(vllm_generation)[name] for name in parts}
        vars(vllm_generation).update(parts)
        try:
            super()._init_vllm()
        finally:
            vars(vllm_generation).update(before)

    @property
    def computes_in(self) -> str:
        """The dtype of a colocated vLLM, or expected of a server: as the policy, which `auto` of vLLM is not."""
        if self.engine_dtype != "auto":
            return self.engine_dtype
        mixed = {"bf16": "bfloat16", "fp16": "float16"}.get(self.accelerator.mixed_precision)
        return mixed or str(self.model.dtype).removeprefix("torch.")

    def sync_weights(self) -> None:
        """As the parent; image features of the old weights are forgotten too, where they can have changed."""
        super().sync_weights()
        if self._sees_anew is None:
            counts = count_parameters(self.model)
            self._sees_anew = any(counts[part].trainable for part in ("vision", "projector"))
        if not self._sees_anew:
            return
        if self.mode == "colocate":
            self.llm.llm_engine.reset_encoder_cache()
        elif self.accelerator.is_main_process:
            self.vllm_client.reset_encoder_cache()

    def _place_features(self, features: dict | None, prompt_ids: list[int]) -> dict | None:
        return features  # vLLM finds the place of each image

    def generate(
        self, prompts: list[list[int]], images: Any, num_generations: int, profiler: Any = None
    ) -> tuple[Any, ...]:
        """As the parent.

        Raises:
            EngineError: vLLM read another prompt than the trainer's, or refuses one, as one that is too long.
        """
        given, self.engine_prompts = self.engine_prompts or prompts, None
        try:
            read, *rest = super().generate(given, images, num_generations, profiler)
        except ValueError as error:
            raise EngineError(
                f"vLLM refuses a prompt: {error}. If it is too long, raise vllm_max_model_length or set "
                "max_prompt_length."
            ) from error
        check_same_prompts(prompts, read)
        return read, *rest


class EngineClient(VLLMClient):
    """`VLLMClient` that sends images with placeholders, says what it waits for, and soon reports a dead server."""

    def check_server(self, total_timeout: float = 0.0, retry_interval: float = 2.0) -> None:
        """Wait until the server answers, for at most `total_timeout` seconds.

        Raises:
            EngineError: It does not.
        """
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, HTTPAdapter(max_retries=RETRIES, pool_maxsize=CONNECTIONS))
        start, said = time.monotonic(), 0.0
        while True:
            try:
                if requests.get(f"{self.base_url}/health", timeout=5).status_code == 200:
                    return
                reason = "it is not ready"
            except requests.RequestException as error:
                reason = type(error).__name__
            waited = time.monotonic() - start
            if waited >= total_timeout:
                raise EngineError(
                    f"The vLLM server at {self.base_url} does not answer after {waited:.0f} s ({reason}). Start it "
                    "with `vgpo serve RECIPE`, look at its log, or raise vllm_server_timeout."
                )
            if waited - said >= WAITING_MESSAGE_SECONDS or not said:
                said = max(waited, 0.1)
                logger.warning(
                    "Waiting for the vLLM server at %s: %.0f s of %.0f s.", self.base_url, waited, total_timeout
                )
            time.sleep(retry_interval)

    def _get(self, url: str, **kwargs: Any) -> dict:
        return self._request("GET", url, **kwargs).json()

    def _post(self, url: str, **kwargs: Any) -> dict:
        return self._request("POST", url, **kwargs).json()

    def _request(self, method: str, url: str, **kwargs: Any) -> requests.Response:
        try:
            response = self.session.request(method, url, **kwargs)
        except requests.RequestException as error:
            self._is_gone(error)
        if not response.ok:
            said = f"{response.status_code}: {response.text[:500]}"
            raise EngineError(f"The vLLM server answers {url} with status {said}")
        return response

    def _is_gone(self, error: requests.RequestException) -> NoReturn:
        raise EngineError(
            f"The vLLM server at {self.base_url} has stopped answering ({type(error).__name__}). Its log says why; "
            "start it again, and resume from the last checkpoint with resume: true."
        ) from error

    def image_features(self, images: Sequence[Any], *args: Any, **kwargs: Any) -> list[list[dict[str, str]] | None]:
        """The images of each prompt as parts of its request; the server's own processor reads them."""
        return [[image_part(image) for image in own or ()] or None for own in images]

    def _generate_from_features(
        self, prompts: list[list[int]], features: list[Any], sampling_params: dict[str, Any], *args: Any
    ) -> dict[str, Any]:
        """Responses to prompts with one placeholder for each image, and the prompts that the server read."""

        def send(prompt: list[int], parts: Any) -> dict[str, Any]:
            body = {"model": self.model, "token_ids": prompt, "content_parts": parts, "return_token_ids": True}
            sampling = {**sampling_params, "output_kind": FINAL_ONLY}
            return self._post(f"{self.base_url}/inference/v1/generate", json={**body, "sampling_params": sampling})

        with ThreadPoolExecutor(min(CONNECTIONS, len(prompts))) as threads:
            answers = list(threads.map(send, prompts, features))
        choices = [choice for answer in answers for choice in answer["choices"]]
        logprobs, logprob_token_ids = parse_logprobs([choice["logprobs"] for choice in choices])
        return {
            "prompt_ids": [answer["prompt_token_ids"] for answer in answers],
            "completion_ids": [choice["token_ids"] for choice in choices],
            "logprobs": logprobs,
            "logprob_token_ids": logprob_token_ids,
        }

    def reset_encoder_cache(self) -> None:
        """Forget the features of images; an endpoint of the server's development mode, as that of weights is."""
        self._request("POST", f"{self.base_url}/reset_encoder_cache")


def image_part(image: Any) -> dict[str, str]:
    """An image in a request, without loss."""
    return {"type": "image_url", "url": f"data:image/png;base64,{pil_to_base64(image)}"}
