"""A checkpoint in this process as a model of inspect-ai: `--model vgpo/CHECKPOINT`."""

from dataclasses import dataclass
from typing import Any

from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    StopReason,
)
from inspect_ai.tool import ToolChoice, ToolInfo

from vgpo.evaluation.completions import Completion
from vgpo.recipe.loading import quiet_libraries
from vgpo.recipe.policies import TRANSFORMERS, CheckpointOptions, open_checkpoint
from vgpo.suite.batching import Batcher
from vgpo.suite.prompts import THINK_BOXED, ProviderError, Row, row_of


@dataclass(frozen=True)
class Request:
    """A prompt and how it is answered. Only requests with equal limits and temperature share a batch."""

    row: Row
    max_new_tokens: int
    temperature: float
    seed: int


class CheckpointAPI(ModelAPI):
    """A checkpoint folder, a hub name or `toy`, answering in batches with transformers or vLLM.

    Arguments of the model (`-M name=value`):
        engine: `transformers` or `vllm`.
        batch_size: Questions answered at once.
        dtype, min_pixels, max_pixels, max_new_tokens: As in `vgpo.recipe.policies.CheckpointOptions`.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig | None = None,
        *,
        batch_size: int = 64,
        engine: str = TRANSFORMERS,
        **options: Any,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config or GenerateConfig())
        quiet_libraries()
        self.batch_size = batch_size
        self.checkpoint = open_checkpoint(
            model_name, CheckpointOptions(**options), engine=engine, untrained_template=THINK_BOXED
        )
        self.policy = self.checkpoint.policy()
        self.batcher: Batcher[Request, Completion] = Batcher(self._complete, batch_size)

    def close(self) -> None:
        """End the thread that answers; the weights go with this object."""
        self.batcher.close()

    @property
    def template(self) -> str:
        """The prompt template that the checkpoint was trained with."""
        return self.checkpoint.template

    def max_tokens(self) -> int:
        """The response length that the checkpoint was trained with."""
        return self.checkpoint.max_new_tokens

    def max_connections(self) -> int:
        """Requests under way: while one batch is answered, the next one waits."""
        return 2 * self.batch_size

    async def generate(
        self,
        input: list[ChatMessage],
        tools: list[ToolInfo],
        tool_choice: ToolChoice,
        config: GenerateConfig,
    ) -> ModelOutput:
        """The response to messages with texts and images.

        Raises:
            ProviderError: Tools, another medium, or a sampling option that the policy does not have.
        """
        if tools:
            raise ProviderError(f"vgpo/{self.model_name} has no tools, found {[tool.name for tool in tools]}")
        request = Request(
            row=row_of(input),
            max_new_tokens=config.max_tokens or self.max_tokens(),
            temperature=temperature_of(config),
            seed=config.seed or 0,
        )
        return output_of(self.model_name, await self.batcher(request))

    def _complete(self, requests: list[Request]) -> list[Completion]:
        """One batch for each kind of decoding among the requests; nearly always there is one."""
        kinds = dict.fromkeys((request.max_new_tokens, request.temperature) for request in requests)
        found: dict[int, Completion] = {}
        for limit, temperature in kinds:
            numbers = [
                number
                for number, request in enumerate(requests)
                if (request.max_new_tokens, request.temperature) == (limit, temperature)
            ]
            completions = self.policy.complete(
                [requests[number].row for number in numbers],
                max_new_tokens=limit,
                temperature=temperature,
                seeds=[requests[number].seed for number in numbers],
            )
            found |= dict(zip(numbers, completions, strict=True))
        return [found[number] for number in range(len(requests))]


def temperature_of(config: GenerateConfig) -> float:
    """The temperature of a request; 0 where none is named.

    Raises:
        ProviderError: It narrows the distribution in another way.
    """
    if (config.top_p is not None and config.top_p != 1.0) or config.top_k not in (None, 0, -1):
        raise ProviderError(
            f"top_p is {config.top_p} and top_k is {config.top_k}; a checkpoint in this process is greedy or samples "
            "from the full softmax: leave both out"
        )
    return config.temperature or 0.0


def output_of(model_name: str, completion: Completion) -> ModelOutput:
    """A completion as inspect-ai keeps it."""
    reason: StopReason = "stop"
    if completion.oversized or completion.truncated:
        reason = "model_length" if completion.oversized else "max_tokens"
    message = ChatMessageAssistant(content=completion.text, source="generate", model=model_name)
    usage = ModelUsage(
        input_tokens=completion.num_prompt_tokens,
        output_tokens=completion.num_tokens,
        total_tokens=completion.num_prompt_tokens + completion.num_tokens,
    )
    choice = ChatCompletionChoice(message=message, stop_reason=reason)
    return ModelOutput(model=model_name, choices=[choice], usage=usage)
