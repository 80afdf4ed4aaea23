"""Runs with fixed rollouts: the shaped advantages, and the resulting weights."""

from pathlib import Path

import torch
import torch.distributed

from tests.trl.tiny import GROUP, coin, mixed_rows, rows_with_pictures
from vgpo.toy.model import build_model, build_processor
from vgpo.trl import VGPOConfig, VGPOTrainer

PADDING = 0


class FixedRollouts(VGPOTrainer):
    """Rollout n of the global batch has the same tokens in any split over processes."""

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        self.num_turns = getattr(self, "num_turns", 0) + 1
        first = 1000 * self.num_turns + self.accelerator.process_index * len(prompt_ids)
        return [tokens_of(first + i) for i in range(len(prompt_ids))], None


class RecordedRollouts(FixedRollouts):
    """Keeps the shaped advantages of fixed rollouts."""

    def _generation_batch(self, loaded):
        batch = super()._generation_batch(loaded)
        self.groups = getattr(self, "groups", [])
        self.groups += zip(batch["group_ids"].tolist(), batch["rewards"][:, 0].tolist(), strict=True)
        return batch

    def _compute_loss(self, model, inputs):
        self.saved = getattr(self, "saved", [])
        loss = super()._compute_loss(model, inputs)
        if not self._shapes_in_update:
            self.saved.append((inputs["completion_ids"], inputs["advantages"]))
        return loss

    def _shape_update(self, scoring):
        super()._shape_update(scoring)
        self.saved.append((scoring.update["completion_ids"], scoring.update["advantages"]))


def tokens_of(number: int) -> list[int]:
    generator = torch.Generator().manual_seed(number)
    length = 3 + number % 4
    return torch.randint(20, 60, (length,), generator=generator).tolist()


def train(folder: Path, settings: dict) -> dict:
    """Steps with fixed rollouts: shaped advantages by the tokens of the rollout, the weights, and the log."""
    processor = build_processor()
    settings = dict(settings)
    mixed = settings.pop("mixed", False)
    trainer = RecordedRollouts(
        model=build_model(processor.tokenizer, seed=1),
        reward_funcs=coin,
        args=VGPOConfig(
            output_dir=str(folder), use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True, 
            logging_steps=1, learning_rate=1e-3, num_generations=GROUP, max_completion_length=8, bf16=False,
            gradient_checkpointing=False, shuffle_groups=False, dataloader_pin_memory=False,
            **{"max_steps": 2, **settings},
        ),
        train_dataset=mixed_rows(16) if mixed else rows_with_pictures(16),
        processing_class=processor,
    )  # fmt: skip
    trainer.train()
    rollouts = {
        tuple(tokens[tokens != PADDING].tolist()): advantages[tokens != PADDING]
        for batch_tokens, batch_advantages in trainer.saved
        for tokens, advantages in zip(batch_tokens, batch_advantages, strict=True)
    }
    model = trainer.accelerator.unwrap_model(trainer.model)
    weights = {name: p.detach() for name, p in model.named_parameters()}
    return {"rollouts": rollouts, "weights": weights, "log": trainer.state.log_history, "groups": trainer.groups}


def train_and_write(folder: Path, named_settings: dict[str, dict]) -> None:
    """What each of several processes does: a file for each run."""
    for name, settings in named_settings.items():
        torch.save(train(folder / name, settings), folder / f"{name}-{torch.distributed.get_rank()}.pt")
