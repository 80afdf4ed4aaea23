"""GRPO on TRL with shaped advantages.

The trainer gathers signals and groups, calls the shaping, and hands (B, T) advantages to its parent. It differs from
the parent in these points, and in no other:

1. Data-set rows travel through the data loader as numbers; a row is read once per prompt, when it is rolled out.
2. Groups stay whole when a generation batch is shuffled and cut, wherever the batch sizes allow it.
3. A prompt is encoded once, and computed once for all rollouts of a micro-batch that share it (`vgpo.shared_prompt`).
4. Signals of the shaping come out of forward passes that the parent runs anyway: of the old-log-probability pass
   where there is one, else of the update's own. Only where a micro-batch does not hold all that a shaping looks at
   (whole groups, as a rule) and there is no old pass, one scoring pass is added. Where a shaping compares the policy
   with one that sees less, so is one pass over such prompts (`vgpo.policy.ablation`).
5. Dynamic sampling, a guard against non-finite steps, alarms, and a ban on generated image tokens.
6. Parts of the model can be frozen, and every process runs the vision tower in a pass in which one does.
7. Checkpoints are whole, and a resumed run is the run that was never interrupted (`vgpo.trl.resumable`).
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from operator import is_
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import IterableDataset
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import AutoConfig, PretrainedConfig
from trl.extras.profiling import profiling_decorator
from trl.trainer.utils import split_tensor_dict

from vgpo.data.media_columns import has_media_column
from vgpo.equations import focus_score
from vgpo.focus import (
    banned_token_ids,
    decoder_of,
    focus_statistics,
    layers_of,
    named_visual_token_ids,
    visual_token_ids,
    visual_token_mask,
)
from vgpo.media import TOKEN_TYPE_FIELDS, TRAINER_FIELDS
from vgpo.policy.ablation import ABLATIONS, ablate_prompts
from vgpo.policy.blank_media import blank_media, blank_prompt
from vgpo.policy.parts import freeze_parts
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
from vgpo.policy.scoring import Rows, score_rows
from vgpo.shaping import IMAGE_SIGNALS, Shaped, Signals
from vgpo.shared_prompt import PrefillError, enable_layouts, prefill_once, why_not_prefill_once, why_not_shared
from vgpo.trl.alarms import PREFIX, AlarmError, Alarms
from vgpo.trl.batches import TRACE, Batch, gather_rows, group_order, join_rows, select_rows, split_trace
from vgpo.trl.config import VGPOConfig
from vgpo.trl.dynamic_sampling import PromptStream, SamplingTally, group_rows, keep_mask
from vgpo.trl.guard import FiniteGuard, NonFiniteError, non_finite_weight
from vgpo.trl.metrics import PhaseTimer, RunningRatios, means
from vgpo.trl.resumable import ResumableTrainer, to_device
from vgpo.trl.rollouts import RolloutWriter, rollout_records
from vgpo.trl.vllm import refuse_colocate, stores_images

logger = logging.getLogger(__name__)

NEVER = -100.0  # a logit bias with which vLLM never samples a token


# For the card of a trained model.
PAPER = {
    "title": "Visually-Guided Policy Optimization for Multimodal Reasoning",
    "id": "2604.09349",
    "citation": "@article{vgpo2026,\n"
    "    title  = {{Visually-Guided Policy Optimization for Multimodal Reasoning}},\n"
    "    year   = 2026,\n"
    "    eprint = {arXiv:2604.09349},\n"
    "}",
}


class RowNumbers(Dataset):
    """Stands for a data set in the data loader: row i is the number i, and nothing is decoded."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"row_index": index}


@dataclass(frozen=True)
class Listener:
    """Hears what each log-probability pass tells, by the names of `vgpo.shaping.Signals`; (B, T) each."""

    hear: Callable[[dict[str, Tensor]], None]
    wanted: frozenset[str]


class VGPOTrainer(ResumableTrainer):
    """`trl.GRPOTrainer` with Visually-Guided Policy Optimization (arXiv 2604.09349).

    Takes the parent's arguments, and

    Args:
        rollout_writer: called on the main process every `log_rollouts_steps` steps with a list of rollout records
            (see `vgpo.trl.rollouts`).

    Raises:
        ValueError: if the model names no image token or has no text decoder although focus is wanted, if that does not
            list its layers although the shaping looks at them, if the data set has no images, if vLLM cannot
            generate for its images, or if `args` is not a `VGPOConfig`.
    """

    _tag_names = ("trl", "vgpo")
    _name = "VGPO"
    _paper = PAPER

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: VGPOConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        *positional: Any,
        rollout_writer: RolloutWriter | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(args, VGPOConfig):
            raise ValueError(f"args is {type(args).__name__}, expected VGPOConfig: VGPOTrainer(args=VGPOConfig(...)).")
        self.shaping = args.build_shaping()
        self._wanted = self.shaping.signals | ({"similarity"} if args.measure_focus else set())
        self._wants_images = not IMAGE_SIGNALS.isdisjoint(self._wanted)
        config = model_config(model, args)
        self._visual_token_ids = (visual_token_ids if self._wants_images else named_visual_token_ids)(config)
        self._banned_token_ids = banned_token_ids(config)
        if args.use_vllm and train_dataset is not None and stores_images(train_dataset):
            refuse_colocate(args)  # before vLLM is started
        if isinstance(train_dataset, IterableDataset):
            train_dataset = train_dataset.map(lambda row, index: {"row_index": index}, with_indices=True)
        self.rollout_writer = rollout_writer
        self._rollouts_step = -1
        self._listener: Listener | None = None
        self._announced_scoring_pass = False
        self._rewards: Tensor | None = None
        self._rows: list[dict[str, Any]] = []
        self._images: list[list[Any]] = []
        self._prompts: list[EncodedPrompt] = []  # of the rows that a pass reads, see _reading
        self._num_groups = 0
        self._ratios = RunningRatios()
        self._timer = PhaseTimer()
        self._num_unlogged_steps = 0
        self._last_update = 0  # the step of it; skipped ones may have come after it
        self._save_is_due = False  # a save was put off until a step is finite again
        super().__init__(
            model, reward_funcs, args, train_dataset, eval_dataset, processing_class, *positional, **kwargs
        )
        self._refuse_small_dataset()
        self._refuse_unreadable_model()
        self._views = {
            name: make_view(config, self.processing_class, args.seed, self._banned_token_ids)
            for name, make_view in ABLATIONS.items()
            if name in self._wanted
        }
        if args.freeze:
            freeze_parts(self.model, args.freeze)
        self._has_images = has_media_column(self.train_dataset)
        self._blank: dict[str, Tensor] = {}  # what the processor makes of a blank image, once asked for
        self._shares_prompts = self._prepare_shared_prompts()
        self._repeats_prefill = False  # set once generation was found unable to read a prompt once per group
        self._guard = FiniteGuard(self.accelerator, args.max_skipped_steps)
        self._alarms = Alarms(args)
        self._ban_image_tokens()
        self._stream = self._prompt_stream() if args.dynamic_sampling else None
        self._filter_column = self._find_filter_column()

    @property
    def _shapes_in_update(self) -> bool:
        """Whether a micro-batch holds all that the result of the shaping depends on."""
        return self.shaping.scope in ({"rollout", "group"} if self.args.groups_fit_micro_batch else {"rollout"})

    def _refuse_unreadable_model(self) -> None:
        """A model whose decoder, or its layers where the shaping looks at them, cannot be found."""
        if self._wants_images:
            decoder = decoder_of(self.model)
            if "layer_similarity" in self._wanted:
                layers_of(decoder)

    def _refuse_small_dataset(self) -> None:
        """Fewer rows than one generation takes would train no step at all, without a word."""
        num_prompts = self.args.generation_batch_size // self.num_generations
        if not isinstance(self.train_dataset, IterableDataset) and len(self.train_dataset) < num_prompts:
            raise ValueError(
                f"The data set has {len(self.train_dataset)} row(s), but one generation takes {num_prompts} prompts "
                f"(generation_batch_size={self.args.generation_batch_size} / num_generations={self.num_generations}). "
                "Give more rows, or lower per_device_train_batch_size or gradient_accumulation_steps."
            )

    def _prepare_shared_prompts(self) -> bool:
        """Whether the rollouts of a micro-batch share their prompts; says why not."""
        if self.args.share_prompt == "off":
            return False
        models = [model for model in (self.model, self.ref_model) if model is not None]
        reason = next(filter(None, map(why_not_shared, models)), None)
        if reason is not None:
            self._raise_if_sharing_is_required(reason)
            level = logging.WARNING if self._visual_token_ids else logging.INFO
            logger.log(level, "share_prompt is off, each rollout computes its prompt itself: %s.", reason)
            return False
        for model in models:
            enable_layouts(self.accelerator.unwrap_model(model).config)
        return True

    def _prompt_stream(self) -> PromptStream:
        if isinstance(self.train_dataset, IterableDataset):
            raise ValueError(
                "dynamic_sampling draws rows by number, which an IterableDataset does not have. "
                "Use a map-style data set, or set dynamic_sampling=False."
            )
        return PromptStream(len(self.train_dataset), self.args.seed, shuffle=self.shuffle_dataset)

    def _find_filter_column(self) -> int:
        """Which reward dynamic sampling takes for the accuracy of a rollout."""
        name = self.args.filter_reward or self.reward_func_names[0]
        if name not in self.reward_func_names:
            raise ValueError(f"filter_reward={name!r} is none of the reward functions {self.reward_func_names}.")
        return self.reward_func_names.index(name)

    def _ban_image_tokens(self) -> None:
        """No backend may sample a token that stands for an image."""
        banned = self._banned_token_ids
        if self.use_vllm:
            kwargs = self.vllm_generation.generation_kwargs
            own = {int(token): bias for token, bias in kwargs.get("logit_bias", {}).items()}
            self.vllm_generation.generation_kwargs = {**kwargs, "logit_bias": own | dict.fromkeys(banned, NEVER)}
            return
        suppressed = sorted({*(self.generation_config.suppress_tokens or []), *banned}) or None
        self.generation_config.suppress_tokens = suppressed
        self.generation_kwargs["suppress_tokens"] = suppressed

    def _get_dataloader(self, dataset: Any, *args: Any, is_training: bool = False, **kwargs: Any) -> DataLoader:
        if is_training and not isinstance(dataset, IterableDataset):
            dataset = RowNumbers(len(dataset))
        return super()._get_dataloader(dataset, *args, is_training=is_training, **kwargs)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if "row_index" not in self._signature_columns:
            self._signature_columns.append("row_index")

    def _fetch(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Data-set rows by number, each one read once however often it is asked for."""
        rows = {index: self.train_dataset[index] for index in dict.fromkeys(indices)}
        return [{**rows[index], "row_index": index} for index in indices]

    _batch_environments: list[Any] | None = None

    def _prepare_inputs(self, generation_batch: Any) -> Batch:
        if not self.model.training:
            return super()._prepare_inputs(generation_batch)
        window = self.args.steps_per_generation * self.num_iterations
        if self._step % window == 0 or self._buffered_inputs is None:
            with self._timer.phase("preparation"):
                batch = self._generation_batch(generation_batch)
            self._buffered_inputs = split_tensor_dict(self._shuffled(batch), self.args.steps_per_generation)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _generation_batch(self, loaded: list[dict[str, Any]]) -> Batch:
        """Scored rollouts for the next updates, aligned by row."""
        if self._stream is not None:
            batch = self._sample_dynamically(self._stream)
        elif isinstance(self.train_dataset, IterableDataset):
            batch = self._roll_out(loaded)
        else:
            batch = self._roll_out(self._fetch([row["row_index"] for row in loaded]))
        batch = self._score_ablations(batch)
        return batch if self._shapes_in_update else self._shape_across_processes(batch)

    def _shuffled(self, batch: Batch) -> Batch:
        if not self.args.shuffle_groups:
            return batch
        num_rows = len(batch["prompt_ids"])
        block = self.num_generations if self.args.groups_fit_micro_batch else 1
        return select_rows(batch, group_order(num_rows, block))

    def _roll_out(self, rows: list[dict[str, Any]]) -> Batch:
        """Generate and score one rollout for each row, and note what the parent forgets: rows, groups, rewards."""
        row_index = torch.tensor([row["row_index"] for row in rows], device=self.accelerator.device)
        heard: list[dict[str, Tensor]] = []
        with self._listening(heard.append, self._wanted):
            batch = self._generate_and_score_completions(rows)
        assert self._rewards is not None
        own = slice(self.accelerator.process_index * len(rows), (self.accelerator.process_index + 1) * len(rows))
        batch["row_index"] = row_index
        batch["group_ids"] = self._group_ids(row_index)[own]
        batch["rewards"] = self._rewards[own]
        batch["scalar_advantages"] = batch["advantages"]
        self._refuse_image_tokens(batch)
        # The first pass is the old policy's, if the parent ran one; what follows is a reference model's.
        if "old_per_token_logps" in batch:
            # Entropy is the updated policy's.
            batch |= {name: value for name, value in heard[0].items() if name in self._wanted - {"entropy"}}
        batch["visual_rows"] = visual_token_mask(batch["prompt_ids"], self._visual_token_ids).any(1)
        if self._wants_images:
            self._require_visual_tokens(batch)
        return batch

    def _generate_and_score_completions(self, rows: list[dict[str, Any]]) -> Batch:
        """As the parent, which sees the images in the prompts only: what it would make of them is made once here."""
        self._rows = rows
        if self.environment_factories is None:  # an environment may ask for any column
            rows = [row_with_images_in_prompt(row) for row in rows]
        with self._reading([]):
            batch = super()._generate_and_score_completions(rows)
            batch = {name: value for name, value in batch.items() if name not in TRAINER_FIELDS + TOKEN_TYPE_FIELDS}
            batch["prompts"] = self._prompts
        self._rows, self._images = [], []
        return batch

    @contextmanager
    def _reading(self, prompts: list[EncodedPrompt]) -> Iterator[None]:
        """Inside the block, log-probability passes read these prompts, or those that are tokenized in it."""
        self._prompts = prompts
        try:
            yield
        finally:
            self._prompts = []

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], list[Any] | None, dict[str, Any]]:
        """Each prompt once: prompts of the same text and the very same images share it."""
        environments = self._batch_environments or [None] * len(prompts)
        keys = list(zip(environments, map(prompt_key, prompts), strict=True))
        first = {key: i for i, key in reversed(list(enumerate(keys)))}
        encoded = {key: self._encode(prompts[i], i) for key, i in first.items()}
        self._prompts = [encoded[key][0] for key in keys]
        self._images = [encoded[key][1] for key in keys]
        # The parent hands the fields on to the first turn, which has its own, and from there to turns after tools.
        fields = generation_fields(self._prompts) if self.tools else {}
        images = [images or None for images in self._images] if any(self._images) else None
        return [prompt.token_ids for prompt in self._prompts], images, fields

    def _encode(self, prompt: Any, rollout: int) -> tuple[EncodedPrompt, list[Any]]:
        """A prompt for the model, and its images."""
        environments = self._batch_environments
        if environments is not None:
            self._batch_environments = environments[rollout : rollout + 1]
        ids, images, fields = super()._tokenize_prompts([prompt])
        self._batch_environments = environments
        images = (images[0] if images else None) or []
        return encoded_prompt(ids[0], len(images), fields, self.accelerator.device), images

    def _take_prompt_ids(self, prompt_ids: list[list[int]]) -> None:
        """Where `rollout_func` wrote prompts of its own, these are read, and shared by none."""
        for i, (prompt, ids) in enumerate(zip(self._prompts, prompt_ids, strict=True)):
            if prompt.token_ids != list(ids):
                types = [int(token in self._visual_token_ids) for token in ids]
                token_types = dict.fromkeys(prompt.token_types, types)
                self._prompts[i] = replace(prompt, token_ids=list(ids), token_types=token_types)

    def _add_tool_images(self, tool_images: list[list[Any]]) -> None:
        """Rollouts into which a tool has put images have a prompt of their own, with these behind its own ones."""
        if any(tool_images) and self.args.mask_truncated_completions:
            raise ValueError(
                "A tool has put an image into a rollout, but mask_truncated_completions takes the tokens of one "
                "that is cut off away, and not its images. Set it to False, or let the tool return text."
            )
        for i, added in enumerate(tool_images):
            if added:
                self._images[i] = [*self._images[i], *added]
                fields = self.processing_class.image_processor(images=self._images[i], return_tensors="pt")
                media = media_fields(fields, self.accelerator.device)
                self._prompts[i] = replace(self._prompts[i], num_images=len(self._images[i]), media=media)

    def _group_ids(self, row_index: Tensor) -> Tensor:
        """Numbers of the groups of all processes' rollouts (N,): a new one for each draw of a prompt."""
        gathered = self.accelerator.gather(row_index)
        groups = gathered.view(-1, self.num_generations)
        mixed = (groups != groups[:, :1]).any(1).nonzero()
        if len(mixed):
            raise RuntimeError(
                f"Rollouts {int(mixed[0]) * self.num_generations} and following belong to the prompts of rows "
                f"{groups[mixed[0, 0]].tolist()}, expected {self.num_generations} rollouts of one prompt beside each "
                "other. The training sampler must repeat each row num_generations times."
            )
        first = self._num_groups
        self._num_groups += len(groups)
        return torch.arange(first, self._num_groups, device=gathered.device).repeat_interleave(self.num_generations)

    def _require_visual_tokens(self, batch: Batch) -> None:
        """A row with an image but no visual token in its prompt is an error, and so is a run without images."""
        num_images = [prompt.num_images for prompt in batch["prompts"]]
        if not any(num_images) and not self._has_images:
            raise ValueError(
                f"The data set has no images: its rows have {sorted(self.train_dataset.column_names or [])}, "
                "expected a column 'images' or 'image'. For a text-only run set shaping='none' and "
                "measure_focus=False."
            )
        has_image = torch.tensor(num_images, device=batch["visual_rows"].device) > 0
        blind = (has_image & ~batch["visual_rows"]).nonzero()
        if len(blind):
            rollout = int(blind[0, 0])
            raise ValueError(
                f"Row {int(batch['row_index'][rollout])} has {num_images[rollout]} image(s), but its prompt "
                f"holds none of the model's visual tokens {self._visual_token_ids}. Check that the chat template of "
                "the processor writes the image token, and that model and processor belong together."
            )

    def _refuse_image_tokens(self, batch: Batch) -> None:
        """Last line of defence behind the ban, for backends that are not ours."""
        sampled = visual_token_mask(batch["completion_ids"], self._banned_token_ids) & batch["completion_mask"].bool()
        if "tool_mask" in batch:
            sampled &= batch["tool_mask"].bool()
        found = sampled.nonzero()
        if len(found):
            rollout, place = found[0].tolist()
            raise RuntimeError(
                f"A rollout of row {int(batch['row_index'][rollout])} holds the image token "
                f"{int(batch['completion_ids'][rollout, place])} at position {place}: the generation backend ignored "
                f"the ban on {self._banned_token_ids}. Make it suppress these tokens."
            )

    def _sample_dynamically(self, stream: PromptStream) -> Batch:
        """Roll out prompts, round after round, until every process has its groups of mixed accuracy."""
        low, high = self.args.accuracy_low, self.args.accuracy_high
        wanted = self.args.rollouts_per_process // self.num_generations
        tally = SamplingTally(wanted=wanted * self.accelerator.num_processes)
        kept: list[Batch] = []
        missing = wanted
        while missing > 0:
            if tally.rounds == self.args.max_sampling_rounds:
                raise tally.error(low, high)
            num_prompts = tally.next_draw(missing, most=wanted)
            drawn = stream.draw(num_prompts, self.accelerator.process_index, self.accelerator.num_processes)
            batch = self._roll_out(self._fetch([row for row in drawn for _ in range(self.num_generations)]))
            accuracy = self._group_accuracy(batch)
            groups = keep_mask(accuracy, low, high).nonzero().squeeze(1)
            tally.count(self.accelerator.gather(accuracy), low, high)
            kept.append(select_rows(batch, list(group_rows(groups, self.num_generations))))
            num_kept = sum(len(batch["group_ids"]) for batch in kept) // self.num_generations
            fewest = self.accelerator.gather(torch.tensor([num_kept], device=self.accelerator.device)).min()
            missing = wanted - int(fewest)
        for name, value in tally.metrics().items():
            self._metrics["train"][name].append(value)
        return self._filled(kept, wanted * self.num_generations)

    def _group_accuracy(self, batch: Batch) -> Tensor:
        """Mean of the filtering reward by group (groups,)."""
        return batch["rewards"][:, self._filter_column].view(-1, self.num_generations).nanmean(1)

    def _filled(self, kept: Sequence[Batch], num_rows: int) -> Batch:
        """The first `num_rows` rows; surplus groups are cut, as the next update would find them off-policy."""
        batch = select_rows(join_rows(kept, self._tokenizer.pad_token_id), range(num_rows))
        batch["num_items_in_batch"] = self.accelerator.gather(self._response_mask(batch).sum()).sum()
        return batch

    def _calculate_rewards(self, inputs: list[dict[str, Any]], *args: Any, **kwargs: Any) -> Tensor:
        # Rewards may ask for any column, images included.
        inputs = [{**row, **given} for row, given in zip(self._rows, inputs, strict=True)]
        with self._phase("reward"):
            self._rewards = super()._calculate_rewards(inputs, *args, **kwargs)
        return self._rewards

    def _generate(self, prompts: list[Any]) -> Any:
        prompt_ids, *outputs, _, tool_images = super()._generate(prompts)
        if self.rollout_func is not None:
            self._tokenize_prompts(prompts)
            self._take_prompt_ids(prompt_ids)
        self._add_tool_images(tool_images)
        if self.log_completions and self.log_multimodal:
            images = gather_object(self._images)
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
        if images and any(images):
            refuse_colocate(self.args)
        # Turns after tools, and those of a rollout_func, bring other lists than those that were tokenized here.
        own = [prompt.token_ids for prompt in self._prompts]
        first_turn = len(own) == len(prompt_ids) and all(map(is_, own, prompt_ids))
        if not first_turn or self.use_vllm or self.use_transformers_continuous_batching:
            return self._sample(prompt_ids, images, fields, num_generations, *args, **kwargs)
        if self._prefills_once(num_generations):
            prompts = self._prompts[::num_generations]
            try:
                with self._prefilled_once(num_generations):
                    return self._sample_first_turn(prompts, images, num_generations, *args, **kwargs)
            except PrefillError as error:
                self._cannot_prefill_once(str(error).rstrip("."))
        return self._sample_first_turn(self._prompts, images, num_generations, *args, **kwargs)

    def _sample_first_turn(self, prompts: list[EncodedPrompt], images: Any, *args: Any, **kwargs: Any) -> Any:
        """Sample responses to prompts that were tokenized here, with their own image tensors."""
        looking: AbstractContextManager[None] = nullcontext()
        if (blank := self._blank_media()) and not has_media(prompts):
            looking = blank_media(self.model, blank)
        prompt_ids, fields = [prompt.token_ids for prompt in prompts], generation_fields(prompts)
        with looking:
            return self._sample(prompt_ids, images, fields, *args, **kwargs)

    def _sample(self, *args: Any, **kwargs: Any) -> Any:
        with self._phase("generation"):
            try:
                return super()._generate_single_turn(*args, **kwargs)
            except RuntimeError as error:
                if "probability tensor contains" not in str(error):
                    raise
                raise NonFiniteError(
                    f"The policy's probabilities are not finite after step {self.state.global_step}: an update with a "
                    f"finite gradient made its weights too large. {self._way_back()}"
                ) from error

    def _prefills_once(self, num_generations: int) -> bool:
        """Whether generation can compute each prompt once for its group."""
        if not self._shares_prompts or self._repeats_prefill or num_generations == 1:
            return False
        groups = [self._prompts[i : i + num_generations] for i in range(0, len(self._prompts), num_generations)]
        if not all(len(group) == num_generations and len(set(map(id, group))) == 1 for group in groups):
            return False
        if reason := why_not_prefill_once(self.model, self.generation_config):
            self._cannot_prefill_once(reason)
        return not self._repeats_prefill

    def _cannot_prefill_once(self, reason: str) -> None:
        """Read prompts once per rollout from here on. Only `share_prompt: on` insists."""
        self._raise_if_sharing_is_required(reason)
        logger.warning("Generation reads each prompt once per rollout, not once per group: %s.", reason)
        self._repeats_prefill = True

    def _raise_if_sharing_is_required(self, reason: str) -> None:
        if self.args.share_prompt == "on":
            raise ValueError(f"share_prompt='on' is not possible: {reason}. Set share_prompt to 'auto' or 'off'.")

    @contextmanager
    def _prefilled_once(self, num_generations: int) -> Iterator[None]:
        """Generation takes one prompt of each group, and gives `num_generations` rollouts of it."""
        before = self.generation_config.num_return_sequences
        self.generation_config.num_return_sequences = num_generations
        try:
            with prefill_once(self.model):
                yield
        finally:
            self.generation_config.num_return_sequences = before

    @contextmanager
    def _listening(self, hear: Callable[[dict[str, Tensor]], None], wanted: frozenset[str]) -> Iterator[None]:
        """Pass what every log-probability pass inside the block tells, of the wanted signals, to `hear`."""
        self._listener = Listener(hear, wanted)
        try:
            yield
        finally:
            self._listener = None

    @profiling_decorator
    def _get_per_token_logps_and_entropies(
        self,
        model: nn.Module,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **images: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """As the parent, over `self._prompts`, whose images stand in for those that the parent would bring."""
        del images
        if len(self._prompts) != len(input_ids):
            raise RuntimeError(f"A pass over {len(input_ids)} rows was told of {len(self._prompts)} prompts.")
        rows = Rows(input_ids, attention_mask, input_ids.shape[1] - logits_to_keep, self._prompts)
        options = {"output_router_logits": True} if compute_aux_loss else {}
        wanted = self._listener.wanted if self._listener is not None else frozenset()
        with self._phase("update" if torch.is_grad_enabled() else "scoring"), self.accelerator.autocast():
            scores = score_rows(
                model,
                rows,
                self._visual_token_ids,
                share=self._shares_prompts,
                similarity="similarity" in wanted,
                layer_similarity="layer_similarity" in wanted,
                blank=self._blank_media(),
                batch_size=batch_size,
                **options,
            )
        if self._listener is not None:
            self._listener.hear({name: value for name, value in scores.signals().items() if name in wanted})
        return scores.log_probs, scores.entropy if compute_entropy else None, scores.aux_loss

    def _blank_media(self) -> dict[str, Tensor] | None:
        """A blank image for passes over text alone, where the rows of any process have images at this time.

        Called by all processes at once.
        """
        if self.accelerator.num_processes == 1 or not (self._has_images and self._visual_token_ids):
            return None
        here = torch.tensor([has_media(self._prompts)], device=self.accelerator.device)
        if not self.accelerator.gather(here).any():
            return None
        if not self._blank:
            self._blank = self._encode(blank_prompt(), 0)[0].media
        return self._blank

    def _phase(self, name: str) -> AbstractContextManager[None]:
        """Time a phase of training; an evaluation between two steps is none."""
        return self._timer.phase(name) if self.model.training else nullcontext()

    def _response_mask(self, batch: Batch) -> Tensor:
        """The policy's own tokens; bool (B, T)."""
        mask = batch["completion_mask"].bool()
        return mask & batch["tool_mask"].bool() if "tool_mask" in batch else mask

    def _signals(self, batch: Batch, heard: Mapping[str, Tensor]) -> Signals:
        """What the shaping may look at: signals that are in the batch, and others that a pass has told."""
        told = {name: batch.get(name, heard.get(name)) for name in self._wanted}
        if "progress" in self._wanted:
            done = self.state.global_step / max(1, self.state.max_steps)
            told["progress"] = torch.full_like(batch["scalar_advantages"], done)
        return Signals(
            response_mask=self._response_mask(batch),
            group_ids=batch["group_ids"],
            visual_rows=batch["visual_rows"],
            **told,
        )

    def _compute_loss(self, model: nn.Module, inputs: Batch) -> Tensor:
        with self._reading(inputs["prompts"]):
            return self._compute_shaped_loss(model, inputs)

    def _compute_shaped_loss(self, model: nn.Module, inputs: Batch) -> Tensor:
        if not self.model.training:
            return super()._compute_loss(model, inputs)
        if not self._shapes_in_update:
            self._write_rollouts(inputs, inputs.get("similarity"), split_trace(inputs))
            return super()._compute_loss(model, inputs)
        # The buffered micro-batch is used again when num_iterations > 1. The parent reads the advantages after the
        # log-probability pass, in time for what that pass tells.
        inputs = {**inputs}
        with self._listening(partial(self._shape_micro_batch, inputs), self._wanted - inputs.keys()):
            return super()._compute_loss(model, inputs)

    def _shape_micro_batch(self, inputs: Batch, heard: Mapping[str, Tensor]) -> None:
        signals = self._signals(inputs, heard)
        shaped = self.shaping.shape(inputs["scalar_advantages"], signals)
        inputs["advantages"] = shaped.advantages
        self._measure(signals, shaped)
        self._write_rollouts(inputs, signals.similarity, shaped.trace)

    def _shape_across_processes(self, batch: Batch) -> Batch:
        """Shape rollouts whose groups lie across micro-batches or processes, before they are cut apart."""
        heard: dict[str, Tensor] = {}
        missing = self._wanted - batch.keys() - {"progress"}
        if missing:
            self._announce_scoring_pass()
            heard = self._score(batch, missing)
            # The update reads it for the records of its rollouts.
            batch = {**batch, **{name: heard[name] for name in heard.keys() & {"similarity"}}}
        gather = partial(gather_rows, self.accelerator)
        local = self._signals(batch, heard)
        everywhere = Signals(**{name: gather(value) for name, value in vars(local).items() if value is not None})
        shaped = self.shaping.shape(gather(batch["scalar_advantages"]), everywhere)
        self._measure(everywhere, shaped)
        num_rows, width = local.response_mask.shape
        first = self.accelerator.process_index * num_rows

        def own(value: Tensor) -> Tensor:
            rows = value[first : first + num_rows]
            return rows[:, :width] if rows.ndim == 2 else rows

        trace = {TRACE + name: own(value) for name, value in shaped.trace.items()}
        return {**batch, "advantages": own(shaped.advantages), **trace}

    def _score_ablations(self, batch: Batch) -> Batch:
        """Log-probabilities of the responses behind prompts with less to look at, for a shaping that compares them."""
        for name, view in self._views.items():
            self._refuse_images_of_tools(batch)
            prompts = ablate_prompts(batch["prompts"], batch["group_ids"], view)
            columns = prompt_columns(prompts, self._tokenizer.pad_token_id, batch["prompt_ids"].device)
            seen = self._score({**batch, **columns, "prompts": prompts}, frozenset({"log_probs"}))
            batch = {**batch, name: seen["log_probs"]}
        return batch

    def _refuse_images_of_tools(self, batch: Batch) -> None:
        """A view changes prompts only: an image in a response would be left without its features."""
        visual = visual_token_mask(batch["completion_ids"], self._visual_token_ids)
        found = (visual & batch["completion_mask"].bool()).any(1).nonzero()
        if len(found):
            raise ValueError(
                f"A tool has put an image into a rollout of row {int(batch['row_index'][int(found[0])])}, but "
                f"shaping={self.args.shaping!r} compares rollouts behind other images, which is known for those of "
                "prompts only. Choose another shaping, or a tool that returns text."
            )

    def _score(self, batch: Batch, wanted: frozenset[str]) -> dict[str, Tensor]:
        """Signals out of a pass of their own, where the parent runs none that could tell them."""
        heard: list[dict[str, Tensor]] = []
        with torch.no_grad(), self._reading(batch["prompts"]), self._listening(heard.append, wanted):
            self._get_per_token_logps_and_entropies(
                self.model,
                torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
                torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
                batch["completion_ids"].shape[1],
                batch_size=self.args.per_device_train_batch_size,
            )
        return heard[0]

    def _announce_scoring_pass(self) -> None:
        if self._announced_scoring_pass:
            return
        self._announced_scoring_pass = True
        size, group = self.args.per_device_train_batch_size, self.num_generations
        reason = (
            f"per_device_train_batch_size={size} cannot hold whole groups of num_generations={group}; sizes that can: "
            f"{group}, {2 * group} or another multiple of {group}, with gradient_accumulation_steps to match"
            if self.shaping.scope == "group"
            else f"shaping={self.args.shaping!r} as it is set looks at the whole rollout batch"
        )
        logger.warning("One scoring pass is added to each generation: %s.", reason)

    def _measure(self, signals: Signals, shaped: Shaped) -> None:
        self._ratios.add(shaped.statistics)
        if signals.similarity is not None:
            focus = focus_score(signals.similarity, signals.response_mask, "paper")
            self._ratios.add(focus_statistics(focus, signals.response_mask, signals.visual_rows))

    def _write_rollouts(self, inputs: Batch, similarity: Tensor | None, trace: dict[str, Tensor]) -> None:
        """Hand the first groups of a step's first micro-batch to the writer, when rollouts are due."""
        step, every = self.state.global_step, self.args.log_rollouts_steps
        due = every and step % every == 0 and step != self._rollouts_step
        if self.rollout_writer is None or not due or not self.accelerator.is_main_process:
            return
        self._rollouts_step = step
        num_rows = min(self.args.log_rollouts_groups * self.num_generations, len(inputs["row_index"]))
        rows = inputs["row_index"][:num_rows].tolist()
        own_tokens = self._response_mask(inputs)
        records = rollout_records(
            step=step + 1,
            batch=inputs,
            dataset_rows=[{}] * num_rows if isinstance(self.train_dataset, IterableDataset) else self._fetch(rows),
            reward_names=self.reward_func_names,
            own_tokens=own_tokens,
            focus=None if similarity is None else focus_score(similarity, own_tokens, "paper"),
            trace=trace,
            tokenizer=self._tokenizer,
        )
        self.rollout_writer(records)

    def step_state(self) -> dict[str, Any]:
        return super().step_state() | {
            "guard": {
                "num_skipped": self._guard.num_skipped,
                "num_skipped_in_a_row": self._guard.num_skipped_in_a_row,
            },
            "alarms": self._alarms.state(),
            "num_drawn": None if self._stream is None else self._stream.num_drawn,
            "num_groups": self._num_groups,
            "num_unlogged_steps": self._num_unlogged_steps,
            "ratios": self._ratios.sums,
            "rollouts_step": self._rollouts_step,
        }

    def load_step_state(self, state: Mapping[str, Any]) -> None:
        super().load_step_state(state)
        vars(self._guard).update(state["guard"])
        self._last_update = self.state.global_step - self._guard.num_skipped_in_a_row
        self._alarms.load_state(state["alarms"])
        if self._stream is not None:
            self._stream.num_drawn = state["num_drawn"]
        self._num_groups = state["num_groups"]
        self._num_unlogged_steps = state["num_unlogged_steps"]
        self._ratios.sums = to_device(state["ratios"], self.accelerator.device)
        self._rollouts_step = state["rollouts_step"]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.model.training and self._num_unlogged_steps:
            numbers = {
                **self._ratios.flush(self.accelerator),
                **self._timer.flush(self._num_unlogged_steps),
                "guard/skipped_steps": float(self._guard.num_skipped),
            }
            self._num_unlogged_steps = 0
            for name, value in numbers.items():
                self._metrics["train"][name] = [value]
            self._sound_alarms({**logs, **means(self._metrics["train"])})
        super().log(logs, start_time)

    def _sound_alarms(self, figures: Mapping[str, float]) -> None:
        """Log the alarms that hold, and end the training after a checkpoint if one is to stop it."""
        step = self.state.global_step
        for name in self._alarms.hear(step, figures, self.checkpoints, suspect=self._last_update):
            self._metrics["train"][PREFIX + name] = [1.0]
        if self._alarms.stopping:
            self.control.should_save = self.control.should_training_stop = True

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As the parent.

        Raises:
            AlarmError: alarms of a run with `alarms="stop"` have ended it, with a checkpoint if its step was finite.
            NonFiniteError: too many steps in a row were skipped, or the last one; or trained weights are not finite.
        """
        result = super().train(*args, **kwargs)
        if self._guard.num_skipped_in_a_row and self.state.global_step >= self.state.max_steps:
            self._stop_after_skipped_steps()
        if self._alarms.stopping:
            raise AlarmError("\n".join(self._alarms.stopping))
        return result

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        with self._timer.phase("update"):
            loss = super().training_step(*args, **kwargs)
        self._guard.add_loss(loss)
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        grad_norm = super()._get_grad_norm(model, grad_norm)
        self._num_unlogged_steps += 1
        # A gradient scaler (fp16) looks for overflows and skips them itself, as a matter of course.
        if self.accelerator.scaler is None and not self._guard.step_is_finite(grad_norm):
            # An optimiser leaves parameters without a gradient alone: weights, moments and decay.
            model.zero_grad(set_to_none=True)
            logger.warning(
                "Step %d skipped: its loss or gradient norm is not finite (%d in a row).",
                self.state.global_step + 1, self._guard.num_skipped_in_a_row,
            )  # fmt: skip
            if self._guard.exhausted:
                self._stop_after_skipped_steps()
            return grad_norm
        self._last_update = self.state.global_step + 1
        if self._save_is_due:
            self.control.should_save = True
        return grad_norm

    def _stop_after_skipped_steps(self) -> None:
        """End the training at a skipped step; the weights as they are go to `last_good`.

        Raises:
            NonFiniteError: always.
        """
        folder = Path(self.args.output_dir) / "last_good"
        self.save_model(str(folder))
        skipped = self._guard.num_skipped_in_a_row
        raise NonFiniteError(
            f"{skipped} steps in a row had a non-finite loss or gradient norm (the last one: step "
            f"{self._last_update + skipped}). The weights from before the first of them are in {folder}, but no loss "
            f"computed with them was finite. {self._way_back()} Look at the rewards of the last rollouts too, lower "
            "max_grad_norm, or raise max_skipped_steps."
        )

    def _way_back(self) -> str:
        """Which checkpoint to go back to, and how.

        A finite loss shows that the weights it was computed with are sound, but not those after its update.
        """
        sound = self.checkpoints.complete_steps(before=self._last_update)
        if not sound:
            return "There is no earlier checkpoint to go back to: start a new run with a lower learning_rate."
        path = self.checkpoints.path(sound[0])
        later = [step for step in self.checkpoints.steps() if step >= self._last_update]
        move = f"move {', '.join(f'checkpoint-{late}' for late in later)} elsewhere, " if later else ""
        return (
            f"Go back to {path}, the newest checkpoint whose weights gave a finite loss: {move}lower learning_rate "
            "and resume (`--resume true --allow_changes true`)."
        )

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As the parent, but after a skipped step the save waits for a finite one: the weights may be the reason."""
        self._save_is_due = self._guard.num_skipped_in_a_row > 0
        if self._save_is_due:
            logger.warning("Step %d was skipped, so it has no checkpoint.", self.state.global_step)
            return
        self._check_weights_are_finite()
        super()._save_checkpoint(model, trial)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the parent.

        Raises:
            NonFiniteError: a trained weight holds a NaN or an infinity; nothing is written.
        """
        if self._staging is None:  # a checkpoint is checked before it is begun
            self._check_weights_are_finite()
        super().save_model(output_dir, _internal_call)

    def _check_weights_are_finite(self) -> None:
        name = non_finite_weight(self.model, self.accelerator)
        if name is not None:
            raise NonFiniteError(
                f"After the update of step {self._last_update} the trained weights hold a NaN or an infinity, the "
                f"first in {name}: they are not saved. {self._way_back()}"
            )


def model_config(model: Any, args: VGPOConfig) -> PretrainedConfig:
    """The config of a model, or of a checkpoint that is not loaded yet."""
    if not isinstance(model, str):
        return model.config
    kwargs = {name: value for name, value in (args.model_init_kwargs or {}).items() if name == "revision"}
    return AutoConfig.from_pretrained(model, trust_remote_code=args.trust_remote_code, **kwargs)
