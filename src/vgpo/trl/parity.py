"""The parity check of a trainer: what `vgpo.policy.parity` measures, on the trainer's model, data and precision."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from accelerate.utils import DistributedType
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback
from trl.models import unwrap_model_for_generation

from vgpo.policy.generation import sampled_decoding
from vgpo.policy.head import use_own_head
from vgpo.policy.measurement import MAX_TOKENS, SCORING_PASS, Host
from vgpo.policy.parity import REMEDIES, Parity, settle
from vgpo.policy.probes import choose_probes
from vgpo.policy.prompts import joined_media, row_with_images_in_prompt

if TYPE_CHECKING:
    from vgpo.trl.rollout import RolloutTrainer

logger = logging.getLogger(__name__)


class ParityCheck(TrainerCallback):
    """Measures parity before the first step of a run, also of a resumed one."""

    def __init__(self, trainer: "RolloutTrainer") -> None:
        self.trainer = trainer

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.trainer.check_parity()


def check_parity(trainer: "RolloutTrainer") -> Parity:
    """Measure, and let the trainer score in another way where its own is wrong for the model.

    Raises:
        vgpo.policy.parity.ParityError: a difference that no other way removes; with parity='strict', any.
        ValueError: share_prompt='on', and shared prompts differ from separate rows.
    """
    probes = choose_probes(
        map(row_with_images_in_prompt, trainer.train_dataset), lambda prompt, images: trainer._encode(prompt, 0)[0]
    )

    def own_head(reason: str) -> None:
        logger.warning("The model's own head is used: %s.", reason)
        for model in trainer.scoring_models():
            use_own_head(model, trainer.temperature)

    def run_tower(reason: str) -> None:
        logger.warning("Outputs of the vision tower are not kept: %s.", reason)
        trainer.keep_vision_outputs = False

    parity = settle(
        partial(host_of, trainer),
        probes,
        strict=trainer.args.parity == "strict",
        use_own_head=own_head,
        separate_rows=trainer._sharing.stop,
        run_tower=run_tower,
    )
    failed = [gap for gap in parity.gaps if gap.remedy == SCORING_PASS and not gap.passes]
    if failed:
        logger.warning("%s: %s; %s.", failed[0].name, failed[0].result, REMEDIES[SCORING_PASS])
    trainer.sampling_records_similarity = not failed
    if trainer.use_vllm:
        from vgpo.vllm.parity import with_engine

        parity = with_engine(parity, host_of(trainer), trainer)
    return parity


def host_of(trainer: "RolloutTrainer") -> Host:
    """The trainer's model as it scores, samples and runs backward."""
    accelerator, model = trainer.accelerator, trainer.model_wrapped
    processes, tokenizer = accelerator.num_processes, trainer._tokenizer
    decoding = sampled_decoding(
        trainer.scoring_models()[0], trainer.processing_class,
        min(MAX_TOKENS, trainer.args.max_completion_length), trainer.temperature,
    )  # fmt: skip
    if not trainer.use_vllm:  # with it, the parent has no such config
        decoding.update(suppress_tokens=trainer.generation_config.suppress_tokens)
    # DeepSpeed runs a backward pass as a part of a step.
    has_backward = accelerator.distributed_type != DistributedType.DEEPSPEED

    def largest(values: Tensor) -> Tensor:
        return values if processes == 1 else accelerator.gather(values[None]).amax(0)

    return Host(
        model=model,
        visual_token_ids=trainer._visual_token_ids,
        decoding=decoding,
        temperature=trainer.temperature,
        special_token_ids=sorted(tokenizer.added_tokens_decoder),
        pad_token_id=tokenizer.pad_token_id,
        autocast=accelerator.autocast,
        generating=partial(generating, trainer),
        share=trainer._sharing.scoring,
        needs_blank=processes > 1,
        backward=accelerator.backward if has_backward else None,
        largest=largest,
        token_of=tokenizer.convert_ids_to_tokens,
        media=trainer.media_of if trainer.keep_vision_outputs else joined_media,
    )


@contextmanager
def generating(trainer: "RolloutTrainer") -> Iterator[PreTrainedModel]:
    """The model that generates, as the parent unwraps it."""
    wrapped, args = trainer.model_wrapped, trainer.args
    with (
        unwrap_model_for_generation(
            wrapped, trainer.accelerator, gather_deepspeed3_params=args.ds3_gather_for_generation
        ) as model,
        trainer._dist.summon_full_params(wrapped, recurse=False),
    ):
        yield model
