"""The blind gate of a trainer: TRL samples, and the accuracy reward grades, as for the rollouts of the run."""

from typing import TYPE_CHECKING

from datasets import IterableDataset

from vgpo.policy.ablation import TextOnly
from vgpo.training.blind import BlindGate, TextOnlyHost, check_blind_gate

if TYPE_CHECKING:
    from vgpo.trl.trainer import VGPOTrainer


def build_blind_gate(trainer: "VGPOTrainer") -> BlindGate:
    """The gate for the shaping of a trainer.

    Raises:
        ValueError: the trainer's dataset, rewards or tools do not allow it.
    """
    host = TextOnlyHost(
        reward=trainer.reward_funcs[trainer.reward_func_names.index(trainer.accuracy_reward)],
        tokenizer=trainer._tokenizer,
        model=lambda: trainer.model,  # wrapped when training begins
        trainer_state=lambda: trainer.state,
        fetch=trainer._fetch,
        sample=lambda ids, fields, number: trainer._sample(ids, None, fields, number)[0],
        phase=trainer._timer.phase,
    )
    parts = [trainer.tools, trainer.environment_factories, trainer.rollout_func]
    has_row_numbers = not isinstance(trainer.train_dataset, IterableDataset)
    check_blind_gate(host, trainer.accuracy_reward, has_row_numbers=has_row_numbers, only_samples=not any(parts))
    text_only = TextOnly(trainer._banned_token_ids)
    return BlindGate(trainer.shaping.blind_rollouts, text_only, trainer.args.seed, trainer.collective, host)
