"""verl's FSDP engine with one more output: the visual similarity of every token (Eq. 3), from a pass that runs anyway.

A pass whose non-tensor data holds `SIMILARITY_FLAG` returns `SIMILARITY` beside the log-probabilities, whatever the
layout of its micro-batches: padded, packed, padded to a bucket, cut by Ulysses. One that holds `CORRUPTION_FLAG` sees
images with black patches. Any other pass is verl's own.

Around two faults of verl 0.9.1: it does not start beside TRL 1.16 or newer (`_leave_trl_alone`), and micro-batches
without an image crash (`_return_features_only`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from safetensors.torch import save_file
from tensordict import TensorDict
from torch import Tensor, nn
from verl.models.transformers import monkey_patch
from verl.utils import tensordict_utils as tu
from verl.utils.fsdp_utils import collect_lora_params
from verl.workers.engine import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

from vgpo.focus import decoder_of, last_hidden_state, ragged_similarity, visual_token_ids, visual_token_mask
from vgpo.policy.ablation import BlackPatches
from vgpo.policy.prompts import EncodedPrompt
from vgpo.verl.names import CORRUPTION_FLAG, MODEL_TYPE, SIMILARITY, SIMILARITY_FLAG

_FEATURES_ONLY = ("qwen2_vl", "qwen2_5_vl", "glm4v")
"""Model types whose patched forward, in verl 0.9.1, reads the vision tower's output as one tensor."""


@EngineRegistry.register(MODEL_TYPE, ["fsdp", "fsdp2"], ["cuda"])
class VGPOEngine(FSDPEngineWithLMHead):
    """Engine of actor and reference worker; chosen with ``actor_rollout_ref.model.model_type``."""

    def __init__(self, model_config: Any, *args: Any, **kwargs: Any) -> None:
        model_config.model_type = "language_model"  # verl chooses the class of the model by it
        super().__init__(model_config, *args, **kwargs)
        self._hidden: list[Tensor] | None = None  # what the decoder returned, while similarity is measured

    def initialize(self) -> None:
        """Build the model as verl does, and find its text decoder.

        Raises:
            ValueError: if the model names no text decoder, or if its attention would be wrong under Ulysses.
        """
        _leave_trl_alone()
        super().initialize()
        self._decoder = decoder_of(self.module)
        if self.use_ulysses_sp:
            check_ulysses_attention(self._decoder, self.ulysses_sequence_parallel_size)
        if self.model_config.hf_config.model_type in _FEATURES_ONLY:
            _return_features_only(self.module)

    def forward_step(self, micro_batch: TensorDict, loss_function: Any, forward_only: bool) -> Any:
        """One micro-batch, with the decoder's states kept for `prepare_model_outputs` if similarity is asked for.

        Raises:
            ValueError: if a micro-batch does not say where its prompts end, or the model has no image token.
            RuntimeError: if the decoder did not run exactly once, or not on the micro-batch's tokens.
        """
        seed = tu.get_non_tensor_data(micro_batch, CORRUPTION_FLAG, None)
        if seed is not None:
            micro_batch = with_black_patches(micro_batch, self._black_patches(seed))
        if not tu.get_non_tensor_data(micro_batch, SIMILARITY_FLAG, False):
            return super().forward_step(micro_batch, loss_function, forward_only)
        _check_prompts(micro_batch)
        with self._recorded():
            return super().forward_step(micro_batch, loss_function, forward_only)

    def prepare_model_outputs(
        self, output: Any, output_args: dict[str, Any], micro_batch: TensorDict, logits_processor_func: Any
    ) -> dict[str, Tensor]:
        """verl's outputs and, if asked for, `SIMILARITY`: float32, nested (B, prompt + response).

        The value at a token belongs to the state at that very token, not to the one that predicts it.
        """
        outputs = super().prepare_model_outputs(output, output_args, micro_batch, logits_processor_func)
        if self._hidden is not None:
            input_ids = micro_batch["input_ids"]
            similarity = self._similarity(_only(self._hidden), micro_batch, output_args.get("pad_size"))
            outputs[SIMILARITY] = torch.nested.nested_tensor_from_jagged(similarity, input_ids.offsets())
        return outputs

    def save_checkpoint(self, local_path: str, *args: Any, **kwargs: Any) -> None:
        """As verl; the adapters of a model that has some are written where the weights of another one are."""
        super().save_checkpoint(local_path, *args, **kwargs)
        policy: Any = getattr(self.module, "_fsdp_wrapped_module", self.module)
        if hasattr(policy, "peft_config"):
            adapters = collect_lora_params(self.module, layered_summon=False, base_sync_done=True)
            if torch.distributed.get_rank() == 0:
                write_adapters(policy.peft_config["default"], adapters, Path(local_path) / "huggingface")
            torch.distributed.barrier()

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        hidden: list[Tensor] = []

        def keep(decoder: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            hidden.append(last_hidden_state(output))

        handle = self._decoder.register_forward_hook(keep)
        self._hidden = hidden
        try:
            yield
        finally:
            self._hidden = None
            handle.remove()

    def _similarity(self, hidden: Tensor, micro_batch: TensorDict, pad_size: int | None) -> Tensor:
        """Similarity of the micro-batch's tokens, one sequence after another.

        Args:
            hidden: (B, longest sequence, D) of padded sequences, or (1, this process's part of the tokens, D).
            pad_size: padding after the tokens of all processes; None if sequences are padded one by one.
        """
        input_ids = micro_batch["input_ids"]
        sequence, position = _places(input_ids.offsets(), len(input_ids.values()))
        visual = visual_token_mask(input_ids.values(), self._visual_token_ids)
        visual &= position < micro_batch["prompts"].offsets().diff()[sequence]
        if pad_size is None:
            _check_shape(hidden, (len(input_ids), int(input_ids.offsets().diff().max())))
            tokens = hidden.flatten(0, 1)[sequence * hidden.shape[1] + position]
            return ragged_similarity(tokens, sequence, visual, len(input_ids))

        num_processes = self.ulysses_sequence_parallel_size
        length = (len(sequence) + pad_size) // num_processes
        _check_shape(hidden, (1, length))
        sequence = nn.functional.pad(sequence, (0, pad_size), value=-1)
        visual = nn.functional.pad(visual, (0, pad_size))
        part = slice(None)
        if self.use_ulysses_sp:
            start = torch.distributed.get_rank(self.ulysses_parallel_group) * length
            part = slice(start, start + length)
        similarity = ragged_similarity(hidden[0], sequence[part], visual[part], len(input_ids), self._sum_of_parts)
        return self._gather_and_unpad_packed(similarity, pad_size)

    def _sum_of_parts(self, tensor: Tensor) -> Tensor:
        if self.use_ulysses_sp:
            torch.distributed.all_reduce(tensor, group=self.ulysses_parallel_group)
        return tensor

    def _black_patches(self, seed: int) -> BlackPatches:
        return BlackPatches.of(self.model_config.hf_config, self.model_config.processor, seed)

    @cached_property
    def _visual_token_ids(self) -> list[int]:
        return visual_token_ids(self.model_config.hf_config)


def with_black_patches(micro_batch: TensorDict, black: BlackPatches) -> TensorDict:
    """A micro-batch whose images have black patches, the same in all rollouts of a draw of a prompt."""
    inputs = [getattr(row, "data", row) for row in micro_batch["multi_modal_inputs"]]
    draws = [int.from_bytes(sha256(str(uid).encode()).digest()[:4]) for uid in micro_batch["uid"]]
    prompts = [EncodedPrompt([], 0, dict(row or {}), {}) for row in inputs]
    blackened = [black(prompt, draw).media for prompt, draw in zip(prompts, draws, strict=True)]
    changed = micro_batch.copy()
    tu.assign_non_tensor_stack(changed, "multi_modal_inputs", blackened)
    return changed


def write_adapters(config: Any, adapters: dict[str, Tensor], folder: Path) -> None:
    """Write adapters as PEFT reads them; the config of the base model that verl has put there goes."""
    for name in ("config.json", "generation_config.json"):
        (folder / name).unlink(missing_ok=True)
    save_file({name: value.contiguous() for name, value in adapters.items()}, folder / "adapter_model.safetensors")
    config.save_pretrained(str(folder))


def check_ulysses_attention(decoder: nn.Module, num_processes: int) -> None:
    """Refuse attention that verl does not spread over the processes of Ulysses: it would be wrong, without an error.

    Raises:
        ValueError: if the decoder's attention is not flash attention.
    """
    found = getattr(getattr(decoder, "config", None), "_attn_implementation", None)
    if "flash" not in str(found):
        raise ValueError(
            f"{type(decoder).__name__} uses attention {found!r} with ulysses_sequence_parallel_size={num_processes}. "
            "verl exchanges heads and tokens in flash attention only: with another one each process would attend to "
            "its own part of the tokens. Set actor_rollout_ref.model.override_config.attn_implementation to "
            "'flash_attention_2', or ulysses_sequence_parallel_size to 1."
        )


def _leave_trl_alone() -> None:
    """Where TRL is installed, verl patches its model with a value head, for critics; TRL 1.16 no longer has that."""
    monkey_patch.is_trl_available = lambda: False


def _return_features_only(module: nn.Module) -> None:
    """Work around verl 0.9.1 with transformers 5, whose vision towers return an object and not the features.

    verl runs the tower on an empty image if a micro-batch has none, and calls `mean()` on what it returns
    (qwen2_vl.py and glm4v.py, `_get_input_embeds`); that of glm4v does so with real images too.
    """

    def features(tower: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return getattr(output, "pooler_output", output)

    for name, child in module.named_modules():
        if name.split(".")[-1] == "visual":
            child.register_forward_hook(features)


def _places(offsets: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
    """Number of each token's sequence, and its position there, without a look at values; int64 (num_tokens,)."""
    rows = torch.arange(len(offsets) - 1, device=offsets.device)
    sequence = torch.repeat_interleave(rows, offsets.diff(), output_size=num_tokens)
    return sequence, torch.arange(num_tokens, device=offsets.device) - offsets[sequence]


def _check_prompts(micro_batch: TensorDict) -> None:
    prompts = micro_batch.get("prompts", None)
    if prompts is None or not prompts.is_nested:
        fields = sorted(name for name, value in micro_batch.items() if isinstance(value, Tensor))
        found = f"only {', '.join(fields)}" if prompts is None else "padded 'prompts'"
        raise ValueError(
            f"A pass that measures visual similarity needs the nested field 'prompts', to tell the images of a prompt "
            f"from image tokens in a response; its micro-batch holds {found}. Select 'prompts' for the pass."
        )


def _only(hidden: list[Tensor]) -> Tensor:
    if len(hidden) != 1:
        raise RuntimeError(
            f"The text decoder ran {len(hidden)} times in one forward pass, expected once: get_decoder() of this "
            "model names another module than the one that verl runs, or verl runs it again. Train this model with "
            "shaping='none', or report its class."
        )
    return hidden[0]


def _check_shape(hidden: Tensor, expected: tuple[int, int]) -> None:
    if hidden.shape[:2] != expected:
        raise RuntimeError(
            f"The text decoder returned states of {tuple(hidden.shape[:2])} tokens, expected {expected}, this "
            "process's part of the micro-batch: verl lays out the tokens of this model in another way. Set "
            "ulysses_sequence_parallel_size=1 and pad_to_length=False, or report the model's class."
        )
