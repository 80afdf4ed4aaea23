"""Generation in TRL: prompts are encoded and computed once, and TRL only gets images inside prompts."""

import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from operator import is_
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, PretrainedConfig
from trl.import_utils import is_vllm_available

from vgpo.data.media_columns import has_media_column
from vgpo.focus import banned_token_ids, named_visual_token_ids, visual_token_ids, visual_token_mask
from vgpo.media import TOKEN_TYPE_FIELDS, TRAINER_FIELDS
from vgpo.metric_names import SAMPLING_IMPORTANCE_RATIO
from vgpo.policy.blank_media import blank_media
from vgpo.policy.parity import Parity
from vgpo.policy.prompts import (
    EncodedPrompt,
    encoded_prompt,
    generation_fields,
    has_media,
    media_fields,
    prompt_columns,
    prompt_key,
    row_with_images_in_prompt,
)
from vgpo.policy.sampled import SampledLogProbs, SampledSimilarity, record_sampled, record_sampled_similarity
from vgpo.policy.undisturbed import evaluation_mode
from vgpo.policy.vision_outputs import generating_from
from vgpo.shaping import IMAGE_SIGNALS
from vgpo.shared_prompt import PrefillError, PromptSharing
from vgpo.training.batches import Batch, as_wide, recorded_everywhere
from vgpo.training.finite_guard import NonFiniteError
from vgpo.training.passes import Rollout
from vgpo.trl.config import VGPOConfig
from vgpo.trl.parity import ParityCheck, check_parity
from vgpo.trl.scored import ScoringTrainer
from vgpo.vllm.prompts import BANNED_BIAS, check_importance_ratio, placeholder_ids, with_placeholders

logger = logging.getLogger(__name__)


class RolloutTrainer(ScoringTrainer):
    """Generates and scores rollouts, each prompt once for all its rollouts where that is exact."""

    _batch_environments: list[Any] | None = None
    _required_signals: frozenset[str] = frozenset()
    _samples_similarity: bool  # whether it is needed before an update computes it, and sampling can record it

    def __init__(self, model: Any, reward_funcs: Any, args: VGPOConfig, *rest: Any, **kwargs: Any) -> None:
        self._model_config = config = model_config(model, args)
        self._visual_token_ids = (visual_token_ids if self._requires_images else named_visual_token_ids)(config)
        self._banned_token_ids = banned_token_ids(config)
        with vllm_in_place(args):
            super().__init__(model, reward_funcs, args, *rest, **kwargs)
        self._has_images = has_media_column(self.train_dataset)
        models = [model for model in (self.model, self.ref_model) if model is not None]
        level = logging.WARNING if self._visual_token_ids else logging.INFO
        reentrant = args.gradient_checkpointing and (args.gradient_checkpointing_kwargs or {}).get("use_reentrant")
        self._sharing = PromptSharing(
            args.share_prompt, models, measured=args.parity != "off", reentrant=bool(reentrant), level=level
        )
        self._settle_aux_loss()
        self._ban_image_tokens()
        self.parity: Parity | None = None
        self.sampling_records_similarity = True  # unless parity found otherwise
        if args.parity != "off":
            self.add_callback(ParityCheck(self))

    @property
    def _requires_images(self) -> bool:
        return not IMAGE_SIGNALS.isdisjoint(self._required_signals)

    def check_parity(self) -> Parity | None:
        """Run the parity check once, see `vgpo.trl.parity.check_parity`; None if it is off."""
        if self.parity is None and self.args.parity != "off":
            self.parity = check_parity(self)
        return self.parity

    @property
    def _rollout(self) -> Rollout:
        assert isinstance(self._pass, Rollout)
        return self._pass

    # Prompts

    def _generate_and_score_completions(self, rows: list[dict[str, Any]]) -> Batch:
        """As the parent, which sees the images in the prompts only: their tensors are computed once, here.

        Adds what the parent does not keep: `prompts`, `rewards` (B, R), and the signals of the old policy's pass.
        """
        if self._kept is not None:
            self._kept.forget()
        with self._current(Rollout(rows=rows, required=self._required_signals)) as rollout:
            if self.environment_factories is None:  # an environment may ask for any column
                rows = [row_with_images_in_prompt(row) for row in rows]
            batch = super()._generate_and_score_completions(rows)
        if self.use_vllm:
            check_importance_ratio(self._metrics["train"].get(SAMPLING_IMPORTANCE_RATIO, []), self.state.global_step)
        assert rollout.rewards is not None
        first = self.accelerator.process_index * len(rows)
        batch = {name: value for name, value in batch.items() if name not in TRAINER_FIELDS + TOKEN_TYPE_FIELDS}
        batch |= {"prompts": rollout.prompts, "rewards": rollout.rewards[first : first + len(rows)]}
        if rollout.sampled_log_probs is not None:
            batch["sampled_log_probs"] = as_wide(rollout.sampled_log_probs, batch["completion_ids"])
        if self._samples_similarity:
            recorded = recorded_everywhere(self.collective, rollout.sampled_similarity, batch)
            batch |= {name: recorded[name] for name in recorded.keys() & self._required_signals}
        # The first pass is the old policy's, if the parent ran one; what follows is a reference model's.
        if "old_per_token_logps" in batch:
            # Entropy is the updated policy's.
            batch |= {name: value for name, value in rollout.captured[0].items() if name != "entropy"}
        return batch

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], list[Any] | None, dict[str, Any]]:
        """Each prompt once: prompts of the same text and the very same images share it."""
        environments = self._batch_environments or [None] * len(prompts)
        keys = list(zip(environments, map(prompt_key, prompts), strict=True))
        first = {key: i for i, key in reversed(list(enumerate(keys)))}
        encoded = {key: self._encode(prompts[i], i) for key, i in first.items()}
        rollout = self._rollout
        rollout.prompts = [encoded[key][0] for key in keys]
        rollout.images = [encoded[key][1] for key in keys]
        # The parent passes the fields to the first turn, which has its own, and from there to turns after tools.
        fields = generation_fields(rollout.prompts) if self.tools else {}
        images = [own or None for own in rollout.images] if any(rollout.images) else None
        return [prompt.token_ids for prompt in rollout.prompts], images, fields

    def _encode(self, prompt: Any, row: int) -> tuple[EncodedPrompt, list[Any]]:
        """A prompt for the model, and its images."""
        environments = self._batch_environments
        if environments is not None:
            self._batch_environments = environments[row : row + 1]
        ids, images, fields = super()._tokenize_prompts([prompt])
        self._batch_environments = environments
        own = (images[0] if images else None) or []
        encoded = encoded_prompt(ids[0], len(own), fields, self.accelerator.device)
        if self.use_vllm and own:
            encoded = replace(encoded, placeholder_ids=self._placeholder_ids(prompt, row))
        return encoded, own

    def _placeholder_ids(self, prompt: Any, row: int) -> list[int]:
        """The prompt as the parent encodes it, before the processor has made tokens of its images."""
        environments = self._batch_environments
        tools = self.tools if environments is None else self._env_tools[environments[row]]
        text = self.processing_class.apply_chat_template(
            prompt,
            tools=tools or None,
            chat_template=self.chat_template,
            add_generation_prompt=True,
            tokenize=False,
            **self.chat_template_kwargs,
        )
        return placeholder_ids(self.processing_class, text)

    def _take_prompt_ids(self, prompt_ids: list[list[int]]) -> None:
        """Where `rollout_func` wrote prompts of its own, these are read, and no two rollouts share one."""
        prompts = self._rollout.prompts
        for i, (prompt, ids) in enumerate(zip(prompts, prompt_ids, strict=True)):
            if prompt.token_ids != list(ids):
                types = [int(token in self._visual_token_ids) for token in ids]
                token_types = dict.fromkeys(prompt.token_types, types)
                prompts[i] = replace(prompt, token_ids=list(ids), token_types=token_types)

    def _add_tool_images(self, tool_images: list[list[Any]]) -> None:
        """Rollouts to which a tool has added images get a prompt of their own, with these after its images."""
        if any(tool_images) and self.args.mask_truncated_completions:
            raise ValueError(
                "A tool has put an image into a rollout, but mask_truncated_completions removes the tokens of a "
                "truncated one, and not its images. Set it to False, or let the tool return text."
            )
        rollout = self._rollout
        for i, added in enumerate(tool_images):
            if added:
                rollout.images[i] = [*rollout.images[i], *added]
                fields = self.processing_class.image_processor(images=rollout.images[i], return_tensors="pt")
                media = media_fields(fields, self.accelerator.device)
                rollout.prompts[i] = replace(
                    rollout.prompts[i],
                    num_images=len(rollout.images[i]),
                    num_tool_images=rollout.prompts[i].num_tool_images + len(added),
                    media=media,
                )

    def _calculate_rewards(self, inputs: list[dict[str, Any]], *args: Any, **kwargs: Any) -> Tensor:
        # Rewards may ask for any column, images included.
        rollout = self._rollout
        inputs = [{**row, **given} for row, given in zip(rollout.rows, inputs, strict=True)]
        with self._phase("reward"):
            rollout.rewards = super()._calculate_rewards(inputs, *args, **kwargs)
        return rollout.rewards

    # Generation

    def _ban_image_tokens(self) -> None:
        """No backend may sample a token that stands for an image."""
        banned = self._banned_token_ids
        if self.use_vllm:
            kwargs = self.vllm_generation.generation_kwargs
            user = {int(token): bias for token, bias in kwargs.get("logit_bias", {}).items()}
            self.vllm_generation.generation_kwargs = {
                **kwargs,
                "logit_bias": user | dict.fromkeys(banned, BANNED_BIAS),
            }
            return
        suppressed = sorted({*(self.generation_config.suppress_tokens or []), *banned}) or None
        self.generation_config.suppress_tokens = suppressed
        self.generation_kwargs["suppress_tokens"] = suppressed

    def _generate(self, prompts: list[Any]) -> Any:
        prompt_ids, *outputs, _, tool_images = super()._generate(prompts)
        if self.rollout_func is not None:
            self._tokenize_prompts(prompts)
            self._take_prompt_ids(prompt_ids)
        self._add_tool_images(tool_images)
        if self.log_completions and self.log_multimodal:
            images = gather_object(self._rollout.images)
            if any(images):
                self._logs["images"].extend(images)
        # Without images the parent makes no tensors of them: every pass takes those of the encoded prompts.
        return prompt_ids, *outputs, None, []

    def _generate_single_turn(
        self,
        prompt_ids: list[list[int]],
        images: Any,
        fields: dict[str, Any],
        num_generations: int,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        if self.use_vllm:
            return self._sample_with_engine(prompt_ids, images, fields, num_generations, *args, **kwargs)
        # Turns after tools, and those of a rollout_func, bring other lists than those that were tokenized here.
        prompts = self._rollout.prompts
        tokenized = [prompt.token_ids for prompt in prompts]
        first_turn = len(tokenized) == len(prompt_ids) and all(map(is_, tokenized, prompt_ids))
        if not first_turn or self.use_transformers_continuous_batching:
            return self._sample(prompt_ids, images, fields, num_generations, *args, **kwargs)
        config = self.generation_config
        if self._sharing.prefills_once(prompts, num_generations, self.model, config):
            unique = prompts[::num_generations]
            try:
                with self._sharing.prefilled_once(self.model, config, num_generations):
                    return self._sample_first_turn(unique, images, num_generations, *args, **kwargs)
            except PrefillError as error:
                self._sharing.stop_prefilling_once(str(error).rstrip("."))
        return self._sample_first_turn(prompts, images, num_generations, *args, **kwargs)

    def _sample_first_turn(self, prompts: list[EncodedPrompt], images: Any, *args: Any, **kwargs: Any) -> Any:
        """Sample responses to prompts that were tokenized here, with their own image tensors."""
        vision: AbstractContextManager[None] = nullcontext()
        if (blank := self._blank_media()) and not has_media(prompts):
            vision = blank_media(self.model, blank)
        prompt_ids = [prompt.token_ids for prompt in prompts]
        if self.tools:  # further turns follow
            with vision:
                return self._sample(prompt_ids, images, generation_fields(prompts), *args, **kwargs)
        with (
            vision,
            generating_from(self.model, self.media_of(prompts)) as media,
            record_sampled(self.model, self.temperature) as sampled,
            self._similarity_of(prompts, sampled) as similarity,
        ):
            fields = generation_fields(prompts, media)
            completion_ids, *rest = self._sample(prompt_ids, images, fields, *args, **kwargs)
        self._rollout.sampled_similarity = None if similarity is None else similarity.columns
        last_tokens = torch.tensor([ids[-1] if ids else 0 for ids in completion_ids], device=self.accelerator.device)
        self._rollout.sampled_log_probs = sampled.log_probs(last_tokens)
        return completion_ids, *rest

    def _similarity_of(
        self, prompts: list[EncodedPrompt], sampled: SampledLogProbs
    ) -> AbstractContextManager[SampledSimilarity | None]:
        """Inside the block, sampling records the visual similarity of tokens, where that saves a scoring pass."""
        if not self._samples_similarity:
            return nullcontext()
        ids = prompt_columns(prompts, self._tokenizer.pad_token_id, self.accelerator.device)["prompt_ids"]
        return record_sampled_similarity(self.model, visual_token_mask(ids, self._visual_token_ids), sampled)

    def _sample_with_engine(self, prompt_ids: list[list[int]], images: Any, *args: Any, **kwargs: Any) -> Any:
        """Sample responses with vLLM, which gets one placeholder for each image of a prompt."""
        prompts = self._rollout.prompts
        if images and any(images):
            self.vllm_generation.engine_prompts = [
                with_placeholders(ids, prompt.token_ids, prompt.placeholder_ids or prompt.token_ids)
                for ids, prompt in zip(prompt_ids, prompts, strict=True)
            ]
        completion_ids, log_probs = self._sample(prompt_ids, images, *args, **kwargs)
        if not self.tools and self.rollout_func is None:
            rows = [torch.tensor(row, dtype=torch.float, device=self.accelerator.device) for row in log_probs]
            self._rollout.sampled_log_probs = pad_sequence(rows, batch_first=True)
        return completion_ids, log_probs

    def _sample(self, *args: Any, **kwargs: Any) -> Any:
        with self._phase("generation"), evaluation_mode(self.model):
            try:
                return super()._generate_single_turn(*args, **kwargs)
            except RuntimeError as error:
                if "probability tensor contains" not in str(error):
                    raise
                raise NonFiniteError(
                    f"The policy's probabilities are not finite after step {self.state.global_step}: an update with a "
                    f"finite gradient made its weights too large. {self._way_back()}"
                ) from error


def vllm_in_place(args: VGPOConfig) -> AbstractContextManager[None]:
    """Inside the block, a trainer that generates with vLLM is built with ours; it imports packages of an extra."""
    if not args.use_vllm or not is_vllm_available():  # of which the parent then says that it is missing
        return nullcontext()
    from vgpo.vllm.generation import engine_in_place

    return engine_in_place(args.vllm_dtype)


def model_config(model: Any, args: VGPOConfig) -> PretrainedConfig:
    """The config of a model, or of a checkpoint that is not loaded yet."""
    if not isinstance(model, str):
        return model.config
    kwargs = {name: value for name, value in (args.model_init_kwargs or {}).items() if name == "revision"}
    return AutoConfig.from_pretrained(model, trust_remote_code=args.trust_remote_code, **kwargs)
