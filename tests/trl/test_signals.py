"""Where the signals come from, and that no forward pass is run for them that the parent would not run."""

import pytest
import torch

from tests.shaping.half import Half
from tests.trl.tiny import GROUP, rows_with_pictures
from vgpo import VGPOSettings, reweight_advantages
from vgpo.policy.prompts import joined_media
from vgpo.shaping import SHAPINGS
from vgpo.toy.model import build_model
from vgpo.trl import VGPOTrainer


class Watched(VGPOTrainer):
    """Keeps what was shaped: micro-batches, or the complete batch if groups are split."""

    seen: list

    def _shape_update(self, scoring):
        super()._shape_update(scoring)
        self.seen.append({**scoring.captured[-1], **scoring.update})

    def _shape_across_processes(self, batch):
        self.seen.append(super()._shape_across_processes(batch))
        return self.seen[-1]


def watched(make_trainer, **settings):
    trainer = make_trainer(Watched, **settings)
    trainer.seen = []
    return trainer


def passes(trainer):
    """Decoder passes outside of generation, as (without gradient, with gradient)."""
    counts = {False: 0, True: 0}
    original = trainer._get_per_token_logps_and_entropies

    def counted(*args, **kwargs):
        counts[torch.is_grad_enabled()] += 1
        return original(*args, **kwargs)

    trainer._get_per_token_logps_and_entropies = counted
    trainer.train()
    return counts[False], counts[True]


@pytest.mark.train
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"gradient_accumulation_steps": 2}, (0, 4)),  # own forward
        ({"steps_per_generation": 2}, (1, 2)),  # old-log-probability pass, which GRPO runs as well
        ({"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}, (0, 8)),  # told while sampling
        ({"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8, "num_generations": 4}, (0, 16)),
        (
            {"per_device_train_batch_size": 2, "steps_per_generation": 4, "gradient_accumulation_steps": 2},
            (1, 4),  # split groups, but the old pass tells
        ),
        ({"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "inter": False}, (0, 8)),
        ({"gradient_accumulation_steps": 2, "preset": "released"}, (0, 4)),  # depends on the complete batch
        ({"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "max_completion_length": 1}, (2, 8)),
    ],
    ids=["own", "old", "split", "single-rows", "split-old", "split-but-tokens-only", "released", "one-token"],
)
def test_number_of_forward_passes(make_trainer, settings, expected):
    assert passes(make_trainer(**settings)) == expected


@pytest.mark.train
def test_split_groups_are_announced_once_with_sizes_that_work(make_trainer, caplog):
    # A single token is read by no step of the sampling.
    make_trainer(per_device_train_batch_size=2, gradient_accumulation_steps=4, max_completion_length=1).train()
    messages = [record.message for record in caplog.records if "scoring pass" in record.message]
    assert len(messages) == 1
    assert "per_device_train_batch_size=2 cannot hold complete groups of num_generations=4" in messages[0]
    assert "sizes that can: 4, 8" in messages[0]


@pytest.mark.train
@pytest.mark.parametrize(
    "settings", [{"gradient_accumulation_steps": 2}, {"steps_per_generation": 2}], ids=["own", "old"]
)
def test_advantages_are_the_equations_applied_to_each_micro_batch(make_trainer, settings):
    trainer = watched(make_trainer, **settings)
    trainer.train()
    assert len(trainer.seen) >= 2
    for batch in trainer.seen:
        expected = reweight_advantages(
            batch["scalar_advantages"],
            batch["similarity"],
            batch["completion_mask"].bool(),
            batch["group_ids"],
            VGPOSettings(),
        )
        assert torch.equal(batch["advantages"], expected.advantages)
        assert batch["advantages"].shape == batch["completion_ids"].shape


class Predicting(Watched):
    """Beside what was shaped, the similarity of the predicting states out of plain passes with the same weights."""

    def _shape_update(self, scoring):
        super()._shape_update(scoring)
        self.seen[-1]["plain"] = plain_predicting_rows(self.model, self.seen[-1])

    def _shape_across_processes(self, batch):
        shaped = super()._shape_across_processes(batch)
        self.seen[-1] = {**shaped, "plain": plain_predicting_rows(self.model, shaped)}
        return shaped


def plain_predicting_rows(model, batch):
    """Cosines of the states at the last prompt token and all of the response but its end, row by row; (B, T)."""
    found = torch.zeros(batch["completion_ids"].shape)
    for row, (prompt, ids) in enumerate(zip(batch["prompts"], batch["completion_ids"], strict=True)):
        mask = batch["completion_mask"][row].bool()
        response = ids[mask].tolist()
        tokens = torch.tensor([[*prompt.token_ids, *response]])
        types = {name: torch.tensor([[*kinds, *[0] * len(response)]]) for name, kinds in prompt.token_types.items()}
        states = []
        handle = model.get_decoder().register_forward_hook(
            lambda *call, states=states: states.append(call[-1].last_hidden_state[0])
        )
        with torch.no_grad():
            model(input_ids=tokens, attention_mask=torch.ones_like(tokens), **types, **joined_media([prompt]))
        handle.remove()
        start = len(prompt.token_ids)
        visual = torch.tensor(prompt.token_ids) == model.config.image_token_id
        prototype = states[0][:start][visual].mean(0)
        found[row, mask] = torch.cosine_similarity(states[0][start - 1 : -1], prototype, dim=-1)
    return found


@pytest.mark.train
@pytest.mark.parametrize(
    "settings",
    [
        {"gradient_accumulation_steps": 2},
        {"gradient_accumulation_steps": 2, "measure_focus": False},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8, "preset": "released"},
    ],
    ids=["own", "own-alone", "sampled", "sampled-released"],
)
def test_the_focus_of_predicting_states_shapes_the_advantages(make_trainer, settings):
    trainer = make_trainer(Predicting, focus_state="predicting", max_steps=1, **settings)
    trainer.seen = []
    trainer.train()
    method = VGPOSettings(focus_state="predicting", preset=settings.get("preset", "paper"))
    assert trainer.seen
    for batch in trainer.seen:
        mask = batch["completion_mask"].bool()
        torch.testing.assert_close(batch["predicting_similarity"][mask], batch["plain"][mask], atol=1e-5, rtol=0)
        expected = reweight_advantages(
            batch["scalar_advantages"], batch["plain"], mask, batch["group_ids"], method
        ).advantages
        torch.testing.assert_close(batch["advantages"], expected, atol=1e-3, rtol=0)
        measured = settings.get("measure_focus", True)
        assert ("similarity" in batch) == measured
        if measured:
            assert not torch.allclose(batch["similarity"][mask], batch["plain"][mask], atol=1e-2)


@pytest.mark.train
def test_every_micro_batch_is_a_set_of_whole_groups(make_trainer):
    trainer = watched(make_trainer, gradient_accumulation_steps=3, max_steps=2)
    trainer.train()
    for batch in trainer.seen:
        groups = batch["group_ids"].view(-1, GROUP)
        assert (groups == groups[:, :1]).all()
        assert len(groups.unique()) == 2
        rows = batch["row_index"].view(-1, GROUP)
        assert (rows == rows[:, :1]).all()


@pytest.mark.train
@pytest.mark.parametrize("truncated", [False, True])
@pytest.mark.parametrize("preset", ["paper", "released"])
def test_split_and_whole_micro_batches_have_the_same_advantages(make_trainer, processor, preset, truncated):
    """Sampling and the update's own forward see the same model, so they must tell the same factors."""
    seen, weights = [], []
    for size in (2 * GROUP, GROUP, 2, 1):
        trainer = watched(
            make_trainer,
            policy=build_model(processor.tokenizer, seed=1),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=2 * GROUP // size,
            shuffle_groups=False,
            max_steps=1,
            preset=preset,
            mask_truncated_completions=truncated,
            optim="sgd",  # AdamW's first step makes as much of the rounding of a gradient as of the gradient
            learning_rate=0.1,
        )
        torch.manual_seed(7)
        trainer.train()
        seen.append(torch.cat([batch["advantages"] for batch in trainer.seen]))
        weights.append(torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()]))
    for advantages, trained in zip(seen[1:], weights[1:], strict=True):
        torch.testing.assert_close(advantages, seen[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(trained, weights[0], atol=1e-5, rtol=0)
    assert seen[0].std() > 0


@pytest.mark.train
def test_the_buffered_batch_is_not_written_into(make_trainer):
    trainer = make_trainer(steps_per_generation=1, num_iterations=2, max_steps=1)
    trainer.train()
    assert trainer._buffered_inputs[0]["advantages"].ndim == 1


def test_evaluation_is_the_parents(make_trainer):
    trainer = make_trainer(
        trainer_kwargs={"eval_dataset": rows_with_pictures(2)}, per_device_eval_batch_size=GROUP, max_steps=1
    )
    metrics = trainer.evaluate()
    assert "eval_loss" in metrics
    assert trainer._pass is None


@pytest.mark.train
def test_a_third_way_runs_without_a_change_of_the_trainer(make_trainer, monkeypatch):
    monkeypatch.setitem(SHAPINGS, "half", Half)
    trainer = watched(make_trainer, shaping="half", shaping_options={"factor": 0.25}, measure_focus=False)
    trainer.train()
    for batch in trainer.seen:
        base = batch["scalar_advantages"][:, None].expand_as(batch["advantages"])
        assert torch.equal(batch["advantages"], 0.25 * base)
