"""GRPO on TRL with shaped advantages.

The trainer gathers signals and groups, calls the shaping, and hands (B, T) advantages to its parent. It differs from
`trl.GRPOTrainer` in these points, and in no other:

1. Rows of the dataset pass through the data loader as numbers; a row is read once per prompt, when it is rolled out.
2. Groups stay together when a generation batch is shuffled and split, wherever the batch sizes allow it.
3. A prompt is encoded once, and computed once for all its rollouts in an optimizer step (`vgpo.trl.rollout`).
4. Signals of the shaping come from forward passes that the parent runs anyway: the old-log-probability pass where
   there is one, else the update's own. Where there is no old pass and a micro-batch does not hold everything that the
   shaping depends on (complete groups, as a rule), visual similarity is recorded while transformers samples. One
   scoring pass is added for what that cannot tell: other signals, and responses of vLLM or after tools. A shaping that
   compares the policy with and without images adds one pass over ablated prompts (`vgpo.policy.ablation`).
5. Dynamic sampling, a guard against non-finite steps, alarms (`vgpo.trl.monitored`), a ban on generated image tokens.
6. Parts of the model can be frozen, and every process runs the vision tower in a pass in which one does.
7. Checkpoints are complete, and a resumed run equals an uninterrupted one (`vgpo.trl.resumable`).
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import IterableDataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import ProcessorMixin
from trl.trainer.utils import split_tensor_dict

from vgpo.equations import focus_score
from vgpo.focus import visual_token_mask
from vgpo.policy.ablation import ablate_prompts, build_ablations
from vgpo.policy.parts import freeze_parts
from vgpo.policy.processors import suit_trainer
from vgpo.policy.prompts import EncodedPrompt, prompt_columns, response_prefix
from vgpo.report.training import keep_run_folder
from vgpo.rewards.checked import with_prefix
from vgpo.shaping import PROTOTYPE_SIGNALS, Signals
from vgpo.training.accuracy import accuracy_reward_name
from vgpo.training.batches import (
    DIAGNOSTICS,
    Batch,
    RowNumbers,
    action_mask,
    group_order,
    join_rows,
    select_rows,
    split_diagnostics,
)
from vgpo.training.checks import (
    check_decoder,
    check_group_rows,
    check_no_image_tokens,
    check_no_tool_images,
    check_num_rows,
    check_visual_tokens,
)
from vgpo.training.dynamic_sampling import DynamicSampler, PromptStream
from vgpo.training.passes import ScoringPass
from vgpo.training.records import RolloutWriter, rollout_records
from vgpo.training.settings import DynamicSamplingSettings, RolloutLogSettings, settings_from
from vgpo.training.signals import required_signals, shape_across, shape_batch, signals_of
from vgpo.training.strata import find_strata
from vgpo.trl.blind import build_blind_gate
from vgpo.trl.config import VGPOConfig
from vgpo.trl.rollout import RolloutTrainer

logger = logging.getLogger(__name__)

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


class VGPOTrainer(RolloutTrainer):
    """`trl.GRPOTrainer` with Visually-Guided Policy Optimization (arXiv 2604.09349).

    Takes the parent's arguments, and

    Args:
        rollout_writer: called on the main process every `log_rollouts_steps` steps with a list of
            `vgpo.training.records.RolloutRecord` and the images that they name.
        run_dir: leave a run folder there, as `vgpo train` does: settings, environment, metrics.jsonl, rollouts and
            report.html. Checkpoints go to `args.output_dir`; `RUN_DIR/checkpoints` is where `vgpo` looks for them.

    Raises:
        ValueError: if the model names no image token or has no text decoder although focus is required, if that does
            not list its layers although the shaping reads them, if the dataset has no images, if vLLM cannot
            generate for its images, or if `args` is not a `VGPOConfig`.
    """

    _tag_names = ("trl", "vgpo")
    _name = "VGPO"
    _paper = PAPER
    reward_funcs: list[Any]

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: VGPOConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        *rest: Any,
        rollout_writer: RolloutWriter | None = None,
        run_dir: str | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(args, VGPOConfig):
            raise ValueError(f"args is {type(args).__name__}, expected VGPOConfig: VGPOTrainer(args=VGPOConfig(...)).")
        self.shaping = args.build_shaping()
        self._required_signals = required_signals(self.shaping, measure_focus=args.measure_focus)
        if isinstance(train_dataset, IterableDataset):
            train_dataset = train_dataset.map(lambda row, index: {"row_index": index}, with_indices=True)
        column = self.shaping.stratum_column
        self._strata = None if column is None else find_strata(train_dataset, column)
        if self._strata is not None:
            self.shaping.strata = self._strata.names
        self.rollout_writer = rollout_writer
        self._rollout_log = settings_from(RolloutLogSettings, args)
        self._rollouts_step = -1  # the last step whose rollouts were written
        self._announced_scoring_pass = False
        self._num_groups = 0
        super().__init__(model, reward_funcs, args, train_dataset, eval_dataset, processing_class, *rest, **kwargs)
        if not isinstance(self.train_dataset, IterableDataset):
            check_num_rows(len(self.train_dataset), self.args.generation_batch_size, self.num_generations)
        check_decoder(self.model, self._required_signals)
        if isinstance(self.processing_class, ProcessorMixin):
            suit_trainer(self.processing_class, self._model_config)
        self._ablations = build_ablations(
            self._required_signals, self._model_config, self.processing_class, args.seed, self._banned_token_ids
        )
        if args.freeze:
            freeze_parts(self.model, args.freeze)
        prefix = response_prefix(self.processing_class, args.chat_template_kwargs or {})
        self.reward_funcs = [with_prefix(function, prefix) for function in self.reward_funcs]
        self.accuracy_reward = accuracy_reward_name(self.reward_func_names, args.filter_reward)
        self._blind_gate = build_blind_gate(self) if self.shaping.blind_rollouts else None
        self._sampler_of_prompts = self._build_dynamic_sampler() if args.dynamic_sampling else None
        if run_dir is not None:
            keep_run_folder(self, run_dir)

    @property
    def _shapes_in_update(self) -> bool:
        """Whether a micro-batch holds all that the result of the shaping depends on."""
        return self.shaping.scope in ({"rollout", "group"} if self._plan.groups_fit_micro_batch else {"rollout"})

    @property
    def _samples_similarity(self) -> bool:  # type: ignore[override]
        by_generate = not (
            self.use_vllm or self.use_transformers_continuous_batching or self.tools or self.rollout_func
        )
        required = not PROTOTYPE_SIGNALS.isdisjoint(self._required_signals)
        needed = self.model.training and not self._shapes_in_update and required
        return needed and by_generate and self.sampling_records_similarity

    def _build_dynamic_sampler(self) -> DynamicSampler:
        if isinstance(self.train_dataset, IterableDataset):
            raise ValueError(
                "dynamic_sampling draws rows by number, which an IterableDataset does not have. "
                "Use a map-style dataset, or set dynamic_sampling=False."
            )
        stream = PromptStream(len(self.train_dataset), self.args.seed, shuffle=self.shuffle_dataset)
        settings = settings_from(DynamicSamplingSettings, self.args)
        return DynamicSampler(stream, settings, self.collective, self.num_generations)

    # Rows and rollouts

    def _get_dataloader(self, dataset: Any, *args: Any, is_training: bool = False, **kwargs: Any) -> DataLoader:
        if is_training and not isinstance(dataset, IterableDataset):
            dataset = RowNumbers(len(dataset))
        return super()._get_dataloader(dataset, *args, is_training=is_training, **kwargs)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if "row_index" not in self._signature_columns:
            self._signature_columns.append("row_index")

    def _fetch(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Rows of the dataset by number, each read once however often it is asked for."""
        rows = {index: self.train_dataset[index] for index in dict.fromkeys(indices)}
        return [{**rows[index], "row_index": index} for index in indices]

    def _prepare_inputs(self, generation_batch: Any) -> Batch:
        if not self.model.training:
            return super()._prepare_inputs(generation_batch)
        if self._step % self._plan.micro_batches == 0 or self._buffered_inputs is None:
            with self._timer.phase("preparation"):
                batch = self._generation_batch(generation_batch)
            self._buffered_inputs = split_tensor_dict(self._shuffled(batch), self.args.steps_per_generation)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _generation_batch(self, loaded: list[dict[str, Any]]) -> Batch:
        """Scored rollouts for the next updates, aligned by row."""
        if self._sampler_of_prompts is not None:
            batch = self._sample_dynamically(self._sampler_of_prompts)
        elif isinstance(self.train_dataset, IterableDataset):
            batch = self._roll_out(loaded)
        else:
            batch = self._roll_out(self._fetch([row["row_index"] for row in loaded]))
        if self._blind_gate is not None:
            batch = {**batch, **self._blind_gate.signals(batch)}
            self._ratios.add(self._blind_gate.statistics(batch))
        batch = self._score_ablations(batch)
        return batch if self._shapes_in_update else self._shape_across_processes(batch)

    def _shuffled(self, batch: Batch) -> Batch:
        if not self.args.shuffle_groups:
            return batch
        num_rows = len(batch["prompt_ids"])
        # Micro-batches that share a prompt follow one another, so that few prompts are open at a time.
        block = self.num_generations if self._plan.has_whole_groups else 1
        return select_rows(batch, group_order(num_rows, block))

    def _roll_out(self, rows: list[dict[str, Any]]) -> Batch:
        """Generate and score one rollout for each row, with row and group numbers."""
        row_index = torch.tensor([row["row_index"] for row in rows], device=self.accelerator.device)
        batch = self._generate_and_score_completions(rows)
        batch |= {
            "row_index": row_index,
            "group_ids": self._group_ids(row_index),
            "scalar_advantages": batch["advantages"],
            "visual_rows": visual_token_mask(batch["prompt_ids"], self._visual_token_ids).any(1),
        }
        if self._strata is not None:
            batch["stratum"] = self._strata.of_rows(row_index)
        check_no_image_tokens(batch, self._banned_token_ids)
        if self._requires_images:
            self._check_images(batch)
        return batch

    def _group_ids(self, row_index: Tensor) -> Tensor:
        """Numbers of the groups of this process's rollouts (B,): a new one for each draw of a prompt."""
        gathered = self.collective.gather_rows(row_index)
        check_group_rows(gathered, self.num_generations)
        first, own = self._num_groups, self.collective.rank * len(row_index)
        self._num_groups += len(gathered) // self.num_generations
        numbers = torch.arange(first, self._num_groups, device=gathered.device)
        return numbers.repeat_interleave(self.num_generations)[own : own + len(row_index)]

    def _check_images(self, batch: Batch) -> None:
        """The dataset has images, and the prompts have visual tokens where they have images."""
        if not self._has_images and not any(prompt.num_images for prompt in batch["prompts"]):
            raise ValueError(
                f"The dataset has no images: its rows have {sorted(self.train_dataset.column_names or [])}, "
                "expected a column 'images' or 'image'. For a text-only run set shaping='none' and "
                "measure_focus=False."
            )
        check_visual_tokens(batch, self._visual_token_ids)

    def _sample_dynamically(self, sampler: DynamicSampler) -> Batch:
        """Rollouts of groups of mixed accuracy; surplus groups are cut, as the next update would be off-policy."""
        num_groups = self._plan.groups_per_process
        accuracy = self.reward_func_names.index(self.accuracy_reward)
        kept, tally = sampler.sample(
            num_groups,
            roll_out=lambda rows: self._roll_out(self._fetch(rows)),
            accuracy_of=lambda batch: batch["rewards"][:, accuracy],
        )
        for name, value in tally.metrics().items():
            self._metrics["train"][name].append(value)
        batch = select_rows(join_rows(kept, self._tokenizer.pad_token_id), range(num_groups * self.num_generations))
        batch["num_items_in_batch"] = self.accelerator.gather(action_mask(batch).sum()).sum()
        return batch

    # Shaping

    def _signals(self, batch: Batch, captured: Mapping[str, Tensor]) -> Signals:
        """The signals of the shaping: those in the batch, and others that a pass has computed."""
        tensors = {name: batch[name] for name in batch.keys() & self._required_signals}
        progress = self.state.global_step / max(1, self.state.max_steps)
        tensors |= {
            "response_mask": action_mask(batch),
            "group_ids": batch["group_ids"],
            "visual_rows": batch["visual_rows"],
            "progress": torch.full_like(batch["scalar_advantages"], progress),
        }
        return signals_of({**captured, **tensors}, self._required_signals)

    def _compute_loss(self, model: nn.Module, inputs: Batch) -> Tensor:
        scoring = ScoringPass(inputs["prompts"])
        # Until the first step after a generation, the weights are those that sampled.
        first_update = self._step % self._plan.micro_batches < self.args.gradient_accumulation_steps
        if self.model.training and first_update and "sampled_log_probs" in inputs:
            scoring.sampled = inputs["sampled_log_probs"], action_mask(inputs)
        if self.model.training:
            scoring.later = self._later_prompts()
        if self.model.training and self._shapes_in_update:
            # A copy: the buffered micro-batch is used again when num_iterations > 1.
            scoring.update = inputs = {**inputs}
            scoring.required = self._required_signals - inputs.keys()
        elif self.model.training:
            self._write_rollouts(inputs, inputs.get("similarity"), split_diagnostics(inputs))
        with self._current(scoring):
            return super()._compute_loss(model, inputs)

    def _later_prompts(self) -> list[list[EncodedPrompt]]:
        """The prompts of each micro-batch that follows in the optimizer step, as far as they are known."""
        assert self._buffered_inputs is not None
        left = self.current_gradient_accumulation_steps - 1 - self._micro_batch
        return [self._buffered_inputs[i]["prompts"] for i in self._plan.following(self._step, left)]

    def _shape_update(self, scoring: ScoringPass) -> None:
        """Shape the advantages of a micro-batch, which the parent reads after the pass that has just run."""
        assert scoring.update is not None
        signals = self._signals(scoring.update, scoring.captured[-1])
        shaped = shape_batch(self.shaping, scoring.update["scalar_advantages"], signals)
        scoring.update["advantages"] = shaped.advantages
        self._ratios.add(shaped.statistics)
        self._write_rollouts(scoring.update, signals.similarity, shaped.diagnostics)

    def _shape_across_processes(self, batch: Batch) -> Batch:
        """Shape rollouts whose groups extend over micro-batches or processes, before the batch is split."""
        captured: dict[str, Tensor] = {}
        missing = self._required_signals - batch.keys() - {"progress"}
        if missing:
            if not self._announced_scoring_pass:
                self._announce_scoring_pass()
            self._announced_scoring_pass = True
            captured = self._score(batch, missing)
            # The update reads it for the records of its rollouts.
            batch = {**batch, **{name: captured[name] for name in captured.keys() & {"similarity"}}}
        signals = self._signals(batch, captured)
        shaped = shape_across(self.shaping, batch["scalar_advantages"], signals, self.collective)
        self._ratios.add(shaped.statistics)
        diagnostics = {DIAGNOSTICS + name: value for name, value in shaped.diagnostics.items()}
        return {**batch, "advantages": shaped.advantages, **diagnostics}

    def _score_ablations(self, batch: Batch) -> Batch:
        """Log-probabilities of the responses after ablated prompts, for a shaping that compares them."""
        for name, ablation in self._ablations.items():
            check_no_tool_images(batch, self._visual_token_ids, self.args.shaping)
            prompts = ablate_prompts(batch["prompts"], batch["group_ids"], ablation)
            columns = prompt_columns(prompts, self._tokenizer.pad_token_id, batch["prompt_ids"].device)
            scores = self._score({**batch, **columns, "prompts": prompts}, frozenset({"log_probs"}))
            batch = {**batch, name: scores["log_probs"]}
        return batch

    def _score(self, batch: Batch, required: frozenset[str]) -> dict[str, Tensor]:
        """Signals from a pass of their own, where the parent runs none that computes them."""
        with torch.no_grad(), self._current(ScoringPass(batch["prompts"], required)) as scoring:
            self._get_per_token_logps_and_entropies(
                self.model,
                torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
                torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
                batch["completion_ids"].shape[1],
                batch_size=self.args.per_device_train_batch_size,
            )
        return scoring.captured[0]

    def _announce_scoring_pass(self) -> None:
        size, group = self.args.per_device_train_batch_size, self.num_generations
        reason = (
            f"per_device_train_batch_size={size} cannot hold complete groups of num_generations={group}; sizes that "
            f"can: {group}, {2 * group} or another multiple of {group}, with gradient_accumulation_steps to match"
            if self.shaping.scope == "group"
            else f"shaping={self.args.shaping!r} with its settings depends on the complete rollout batch"
        )
        logger.warning("One scoring pass is added to each generation: %s.", reason)

    def _write_rollouts(self, inputs: Batch, similarity: Tensor | None, diagnostics: dict[str, Tensor]) -> None:
        """Hand the first groups of a step's first micro-batch to the writer, when rollouts are due."""
        step = self.state.global_step
        is_due = self._rollout_log.is_due(step) and step != self._rollouts_step
        if self.rollout_writer is None or not is_due or not self.accelerator.is_main_process:
            return
        self._rollouts_step = step
        num_rows = min(self._rollout_log.log_rollouts_groups * self.num_generations, len(inputs["row_index"]))
        rows = inputs["row_index"][:num_rows].tolist()
        mask = action_mask(inputs)
        records, images = rollout_records(
            step=step + 1,
            batch=inputs,
            dataset_rows=[{}] * num_rows if isinstance(self.train_dataset, IterableDataset) else self._fetch(rows),
            reward_names=self.reward_func_names,
            accuracy_reward=self.accuracy_reward,
            action_mask=mask,
            focus=None if similarity is None else focus_score(similarity, mask, "paper"),
            diagnostics=diagnostics,
            tokenizer=self._tokenizer,
        )
        self.rollout_writer(records, images)

    # State

    def step_state(self) -> dict[str, Any]:
        return super().step_state() | {
            "num_drawn": None if self._sampler_of_prompts is None else self._sampler_of_prompts.stream.num_drawn,
            "num_groups": self._num_groups,
            "rollouts_step": self._rollouts_step,
            "blind_gate": None if self._blind_gate is None else self._blind_gate.state(),
            "shaping": self.shaping.state_dict(),
        }

    def load_step_state(self, state: Mapping[str, Any]) -> None:
        super().load_step_state(state)
        if self._sampler_of_prompts is not None:
            self._sampler_of_prompts.stream.num_drawn = state["num_drawn"]
        self._num_groups = state["num_groups"]
        self._rollouts_step = state["rollouts_step"]
        if self._blind_gate is not None:
            self._blind_gate.load_state(state.get("blind_gate"))
        if "shaping" in state:  # earlier versions had no shaping with a state
            self.shaping.load_state_dict(state["shaping"])
