"""The loop without TRL against the trainer, and the promises that it makes about itself."""

import ast
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForImageTextToText, AutoProcessor

from examples import minimal_vgpo
from tests.trl.tiny import GROUP, coin, rows_with_pictures
from vgpo import VGPOSettings
from vgpo.focus import banned_token_ids
from vgpo.toy import checkpoint_path
from vgpo.trl import VGPOConfig, VGPOTrainer

SOURCE = Path(minimal_vgpo.__file__)
NUM_PROMPTS = 3
WATCHED = "model.language_model.layers.0.self_attn.q_proj.weight"


class FirstStep(VGPOTrainer):
    """Trains on the given responses, and keeps the loss and the advantages of its first step."""

    responses: list[list[int]]

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        assert len(prompt_ids) == len(self.responses)
        return self.responses, None

    def _shape_update(self, scoring):
        super()._shape_update(scoring)
        self.inputs = scoring.update

    def _compute_loss(self, model, inputs):
        self.loss = super()._compute_loss(model, inputs)
        return self.loss

    def _get_grad_norm(self, model, grad_norm=None):
        self.gradient = model.get_parameter(WATCHED).grad.clone()
        return super()._get_grad_norm(model, grad_norm)


@pytest.fixture
def responses():
    """Token ids of different lengths, one token among them."""
    generator = torch.Generator().manual_seed(3)
    lengths = [1 + 5 * i % 7 for i in range(NUM_PROMPTS * GROUP)]
    return [torch.randint(20, 300, (length,), generator=generator).tolist() for length in lengths]


@pytest.fixture
def trainer(tmp_path, responses):
    args = VGPOConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[], save_strategy="no", disable_tqdm=True,
        per_device_train_batch_size=len(responses), num_generations=GROUP, max_steps=1, max_completion_length=8,
        loss_type="dapo", beta=0.0, epsilon=minimal_vgpo.EPSILON_LOW, epsilon_high=minimal_vgpo.EPSILON_HIGH,
        max_grad_norm=1e9, shuffle_dataset=False, shuffle_groups=False, gradient_checkpointing=False,
        dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = FirstStep(
        model=load_model(),
        reward_funcs=coin,
        args=args,
        train_dataset=rows_with_pictures(NUM_PROMPTS),
        processing_class=AutoProcessor.from_pretrained(checkpoint_path()),
    )
    trainer.responses = responses
    trainer.train()
    return trainer


def load_model():
    return AutoModelForImageTextToText.from_pretrained(checkpoint_path(), dtype=torch.float32)


@pytest.mark.train
def test_first_step_is_the_trainers(trainer, responses):
    dataset = rows_with_pictures(NUM_PROMPTS)
    assert trainer.inputs["row_index"].tolist() == [row for row in range(NUM_PROMPTS) for _ in range(GROUP)]
    rollouts = minimal_vgpo.Rollouts(
        prompts=minimal_vgpo.encode_prompts(
            AutoProcessor.from_pretrained(checkpoint_path()),
            [dataset[row] for row in trainer.inputs["row_index"].tolist()],
        ),
        response_ids=pad_sequence([torch.tensor(ids) for ids in responses], batch_first=True),
        response_mask=pad_sequence([torch.ones(len(ids), dtype=torch.bool) for ids in responses], batch_first=True),
    )
    advantages = minimal_vgpo.group_advantages(torch.tensor(coin(responses)), GROUP)
    model = load_model()
    loss, shaped = minimal_vgpo.vgpo_loss(model, rollouts, advantages, GROUP, VGPOSettings())
    loss.backward()

    assert torch.equal(rollouts.response_ids, trainer.inputs["completion_ids"])
    assert len(trainer.inputs["scalar_advantages"].unique()) > 2, "groups of equal rewards would compare zeros"
    mask = rollouts.response_mask
    torch.testing.assert_close(shaped.advantages[mask], trainer.inputs["advantages"][mask], rtol=0, atol=1e-5)
    torch.testing.assert_close(loss, trainer.loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(model.get_parameter(WATCHED).grad, trainer.gradient, rtol=1e-4, atol=1e-6)


def test_group_advantages_are_the_deviation_in_standard_deviations():
    # mean 1/4, unbiased variance (3 (1/4)^2 + (3/4)^2) / 3 = 1/4
    advantages = minimal_vgpo.group_advantages(torch.tensor([1.0, 0, 0, 0, 1, 1, 1, 1]), 4)
    expected = torch.tensor([0.75, -0.25, -0.25, -0.25, 0, 0, 0, 0]) / 0.5001
    torch.testing.assert_close(advantages, expected)


def test_responses_end_at_their_end_token_and_hold_no_picture_token():
    model, processor = load_model(), AutoProcessor.from_pretrained(checkpoint_path())
    banned, end = banned_token_ids(model.config), processor.tokenizer.eos_token_id

    def tempt(module, args, logits):
        logits[..., [*banned, end]] += 8

    model.lm_head.register_forward_hook(tempt)
    torch.manual_seed(0)
    rollouts = minimal_vgpo.sample_rollouts(model, processor, minimal_vgpo.draw_questions(8, seed=1))
    assert not torch.isin(rollouts.response_ids, torch.tensor(banned)).any()
    lengths = rollouts.response_mask.sum(1)
    assert len(lengths.unique()) > 1
    for ids, mask, length in zip(rollouts.response_ids, rollouts.response_mask, lengths.tolist(), strict=True):
        assert mask[:length].all()
        assert end not in ids[: length - 1]
        assert length == len(ids) or ids[length - 1] == end


@pytest.mark.train
def test_loop_trains_and_prints_a_line_for_each_step(monkeypatch, capsys):
    model, before = load_model(), load_model()
    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", lambda *args, **kwargs: model)
    accuracies = minimal_vgpo.train(steps=2, prompts=4, generations=4, learning_rate=1e-4, seed=0)
    moved = (model.get_parameter(WATCHED) - before.get_parameter(WATCHED)).abs().max().item()
    assert 0.5e-4 < moved < 2.5e-4  # Adam moves a weight by about the learning rate
    lines = capsys.readouterr().out.splitlines()
    assert len(accuracies) == len(lines) == 2
    assert all(0 <= accuracy <= 1 for accuracy in accuracies)
    assert [line.split()[:4] for line in lines] == [
        ["step", str(i), "reward", f"{accuracy:.3f}"] for i, accuracy in enumerate(accuracies, start=1)
    ]


def test_a_group_of_one_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["minimal_vgpo.py", "--generations", "1"])
    with pytest.raises(SystemExit):
        minimal_vgpo.main()
    assert "--generations at least 2" in capsys.readouterr().err


def test_the_file_is_short_and_needs_no_trl():
    source = SOURCE.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 250
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module)
    standard = {name for name in imported if name.split(".")[0] in sys.stdlib_module_names}
    # None of these imports TRL, unlike vgpo.trl and vgpo.study.
    floors = {"vgpo", "vgpo.data", "vgpo.focus", "vgpo.rewards", "vgpo.toy"}
    assert imported - standard <= {"torch", "transformers"} | floors
