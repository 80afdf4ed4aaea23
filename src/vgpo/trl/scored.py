"""Scoring in TRL: each prompt is computed once, images come from encoded prompts, all processes run the same passes.

TRL calls its log-probability passes with token ids and little else. All other inputs and the results of a pass are in
a `ScoringPass` object that is current while TRL runs.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from trl.extras.profiling import profiling_decorator

from vgpo.metric_names import SAMPLING_LOG_PROB_GAP
from vgpo.policy.blank_media import blank_prompt
from vgpo.policy.experts import why_no_aux_loss
from vgpo.policy.prompts import EncodedPrompt, has_media, joined_media
from vgpo.policy.sampled import mean_gap
from vgpo.policy.scoring import Rows, can_share, score_rows
from vgpo.policy.vision_outputs import VisionOutputs, why_run_tower
from vgpo.shaping import PROTOTYPE_SIGNALS
from vgpo.shared_prompt import OpenPrompts, PromptSharing, sharing_pattern
from vgpo.training.collective import all_equal, largest
from vgpo.training.passes import ScoringPass
from vgpo.trl.monitored import MonitoredTrainer

logger = logging.getLogger(__name__)

Pass = TypeVar("Pass", bound=ScoringPass)


class ScoringTrainer(MonitoredTrainer):
    """Scores rollouts, each prompt once in an optimizer step where that is exact."""

    _model_config: PretrainedConfig
    _visual_token_ids: list[int]
    _has_images: bool
    _sharing: PromptSharing

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._pass: ScoringPass | None = None
        self._open_prompts = OpenPrompts()  # of the current optimizer step
        self._micro_batch = 0  # number of the current one in its optimizer step
        self._announced_unlike_passes = False
        self._kept: VisionOutputs | None = None
        self._blank: dict[str, Tensor] = {}  # the media of a blank image, once asked for
        super().__init__(*args, **kwargs)

    def _encode(self, prompt: Any, row: int) -> tuple[EncodedPrompt, list[Any]]:
        """A prompt for the model, and its images."""
        raise NotImplementedError

    @contextmanager
    def _current(self, scoring: Pass) -> Iterator[Pass]:
        """Inside the block, TRL's generation, rewards and log-probability passes belong to `scoring`."""
        self._pass = scoring
        try:
            yield scoring
        finally:
            self._pass = None

    def _shape_update(self, scoring: ScoringPass) -> None:
        """Called when the pass of an update has run, before TRL reads the advantages of `scoring.update`."""
        raise NotImplementedError

    def _settle_aux_loss(self) -> None:
        """The load-balancing loss of a mixture of experts, where TRL's head can compute it.

        Raises:
            ValueError: it was asked for and cannot be computed.
        """
        if not self.aux_loss_enabled:  # type: ignore[has-type]  # the parent's
            return
        reason = why_no_aux_loss(self.scoring_models()[0], self._tokenizer.eos_token_id)
        if reason is None:
            return
        if self.args.router_aux_loss_coef:
            raise ValueError(
                f"router_aux_loss_coef={self.args.router_aux_loss_coef} has no effect: {reason}. Set it to 0."
            )
        logger.warning("The load-balancing loss of the experts is left out (router_aux_loss_coef: 0): %s.", reason)
        self.aux_loss_enabled = False

    @cached_property
    def keep_vision_outputs(self) -> bool:
        """Whether the vision tower runs once per prompt and generation. Set to False, it runs in every pass."""
        reason = why_run_tower(self.model_wrapped)
        if reason is None and self._visual_token_ids:
            logger.info("The vision tower runs once per prompt and generation: its weights are frozen.")
        return reason is None

    def media_of(self, prompts: Sequence[EncodedPrompt]) -> dict[str, Any]:
        """What a pass gets of the images of prompts."""
        if not self.keep_vision_outputs:
            return joined_media(prompts)
        self._kept = self._kept or VisionOutputs(self.model)
        with self.accelerator.autocast():
            return self._kept.media(prompts)

    def scoring_models(self) -> list[PreTrainedModel]:
        """The models that have a scoring head, without wrappers: the policy, and a reference if there is one."""
        models = [self.accelerator.unwrap_model(model) for model in (self.model, self.ref_model) if model is not None]
        return [model.get_base_model() if hasattr(model, "get_base_model") else model for model in models]

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        try:
            loss = super().training_step(*args, **kwargs)
        except BaseException:
            # A smaller batch may be tried (auto_find_batch_size), with the same prompts.
            self._open_prompts, self._micro_batch = OpenPrompts(), 0
            raise
        self._micro_batch += 1
        if self._micro_batch == self.current_gradient_accumulation_steps:
            self._micro_batch = 0
            self._open_prompts.check_closed()
        return loss

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
        **media: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """As the parent, over the prompts of the current pass and their media."""
        del media
        scoring = self._pass
        assert scoring is not None, "a log-probability pass runs inside of _current()"
        if len(scoring.prompts) != len(input_ids):
            raise RuntimeError(f"A log-probability pass has {len(input_ids)} rows and {len(scoring.prompts)} prompts.")
        rows = Rows(input_ids, attention_mask, input_ids.shape[1] - logits_to_keep, scoring.prompts)
        options = {"output_router_logits": True} if compute_aux_loss else {}
        with self._phase("update" if torch.is_grad_enabled() else "scoring"), self.accelerator.autocast():
            scores = score_rows(
                model,
                rows,
                self._visual_token_ids,
                share=self._sharing.scoring and self._passes_are_alike([scoring.prompts, *scoring.later]),
                similarity=not PROTOTYPE_SIGNALS.isdisjoint(scoring.required),
                layer_similarity="layer_similarity" in scoring.required,
                blank=self._blank_media(),
                batch_size=batch_size,
                open_prompts=self._open_prompts if torch.is_grad_enabled() else None,
                later=scoring.later,
                agreed=partial(largest, self.collective),
                media=self.media_of,
                **options,
            )
        signals = scores.signals()
        scoring.captured.append({name: signals[name] for name in signals.keys() & scoring.required})
        if scoring.sampled is not None:
            self._ratios.add({SAMPLING_LOG_PROB_GAP: mean_gap(scores.log_probs, *scoring.sampled)})
        if scoring.update is not None:
            self._shape_update(scoring)
        return scores.log_probs, scores.entropy if compute_entropy else None, scores.aux_loss

    def _passes_are_alike(self, passes: Sequence[Sequence[EncodedPrompt]]) -> bool:
        """Whether all processes run the same passes over prompts if they share them; called by all at once.

        Args:
            passes: the prompts of the pass that comes now, and of those that follow in its optimizer step.
        """
        rows = [prompt for prompts in passes for prompt in prompts]
        pattern = sharing_pattern(rows, lambda prompt: can_share(prompt, self._visual_token_ids))
        if all_equal(self.collective, pattern):
            return True
        if not self._announced_unlike_passes:
            logger.warning(
                "Processes hold different groups, whose rollouts compute their prompts themselves. Make the rollouts "
                "of a process, per_device_train_batch_size x steps_per_generation, a multiple of num_generations."
            )
        self._announced_unlike_passes = True
        return False

    def _blank_media(self) -> dict[str, Tensor] | None:
        """A blank image for passes over text alone, where the rows of any process have images at this time.

        Called by all processes at once.
        """
        if self.accelerator.num_processes == 1 or not (self._has_images and self._visual_token_ids):
            return None
        assert self._pass is not None
        here = torch.tensor([has_media(self._pass.prompts)], device=self.accelerator.device)
        if not self.accelerator.gather(here).any():
            return None
        if not self._blank:
            self._blank = self._encode(blank_prompt(), 0)[0].media
        return self._blank
