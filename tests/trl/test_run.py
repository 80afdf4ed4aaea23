"""What a run refuses, bans, logs and writes."""

import math
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from PIL import Image
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from tests.trl.tiny import GROUP, coin, mixed_rows, rows_with_pictures
from vgpo.data.media_columns import has_media_column
from vgpo.focus import banned_token_ids
from vgpo.training.records import rollout_records
from vgpo.trl import VGPOTrainer


@pytest.mark.train
def test_image_tokens_are_never_sampled(make_trainer, model):
    with torch.no_grad():  # a model that wants nothing else
        embedding = model.get_output_embeddings().weight
        embedding.zero_()
    trainer = make_trainer(policy=model)
    banned = banned_token_ids(model.config)
    assert set(banned) <= set(trainer.generation_config.suppress_tokens)
    trainer.train()
    completions = torch.cat([batch["completion_ids"].flatten() for batch in trainer._buffered_inputs])
    assert not torch.isin(completions, torch.tensor(banned)).any()


def test_the_ban_keeps_the_users_own(make_trainer, model):
    trainer = make_trainer(generation_kwargs={"suppress_tokens": [100]})
    assert set(trainer.generation_config.suppress_tokens) == {100, *banned_token_ids(model.config)}
    assert trainer.generation_kwargs["suppress_tokens"] == trainer.generation_config.suppress_tokens


def test_the_ban_reaches_vllm_as_a_logit_bias(model):
    trainer = SimpleNamespace(
        use_vllm=True,
        _banned_token_ids=banned_token_ids(model.config),
        vllm_generation=SimpleNamespace(generation_kwargs={"logit_bias": {7: 2.0}, "seed": 1}),
    )
    VGPOTrainer._ban_image_tokens(trainer)
    bias = trainer.vllm_generation.generation_kwargs["logit_bias"]
    assert bias == {7: 2.0, **dict.fromkeys(banned_token_ids(model.config), -100.0)}
    assert trainer.vllm_generation.generation_kwargs["seed"] == 1


def test_a_backend_that_ignores_the_ban_is_caught(make_trainer, model):
    trainer = make_trainer()
    image = model.config.image_token_id
    trainer._generate_single_turn = lambda prompts, *args, **kwargs: ([[50, image, 51] for _ in prompts], None)
    with pytest.raises(RuntimeError, match=rf"row \d+ holds the image token {image} at position 1.*ignored the ban"):
        trainer.train()


def test_a_data_set_without_images_is_refused(make_trainer):
    prompt = [{"role": "user", "content": "What is the sum"}]
    trainer = make_trainer(dataset=Dataset.from_list([{"prompt": prompt, "answer": "1"}] * 8))
    with pytest.raises(
        ValueError, match=r"no images: its rows have \['answer', 'prompt'\], expected a column 'images'"
    ):
        trainer.train()


def test_a_data_set_whose_image_column_is_empty_is_refused(make_trainer):
    rows = rows_with_pictures().remove_columns("images")
    prompts = [[{"role": "user", "content": "What"}]] * len(rows)
    rows = Dataset.from_dict({"prompt": prompts, "images": [[]] * len(rows)})
    with pytest.raises(ValueError, match="no images"):
        make_trainer(dataset=rows).train()


@pytest.mark.train
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"per_device_train_batch_size": GROUP, "gradient_accumulation_steps": 2},
        {"per_device_train_batch_size": GROUP, "steps_per_generation": 2},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
        {"per_device_train_batch_size": GROUP, "dynamic_sampling": True, "shuffle_dataset": False},
    ],
    ids=["together", "micro-batches", "old-pass", "split", "dynamic"],
)
def test_text_only_rows_among_others_keep_the_base_advantage(make_trainer, settings):
    seen = []

    class Watched(VGPOTrainer):
        def _get_per_token_logps_and_entropies(self, *args, **kwargs):
            outputs = super()._get_per_token_logps_and_entropies(*args, **kwargs)
            if torch.is_grad_enabled():
                seen.append(self.current)
            return outputs

        def _compute_loss(self, model, inputs):
            self.current = inputs
            return super()._compute_loss(model, inputs)

        def _shape_update(self, scoring):
            super()._shape_update(scoring)
            self.current = scoring.update

    trainer = make_trainer(Watched, dataset=mixed_rows(), reward=alternating, max_steps=4, **settings)
    trainer.train()
    assert trainer.state.global_step == 4
    text_only = torch.cat([batch["row_index"] % 2 == 1 for batch in seen])
    assert text_only.any()
    assert not text_only.all()
    for batch in seen:
        mine = batch["row_index"] % 2 == 1
        assert torch.equal(batch["visual_rows"], ~mine)
        base = batch["scalar_advantages"][mine][:, None].expand(-1, batch["advantages"].shape[1])
        assert torch.equal(batch["advantages"][mine], base)
        assert [bool(prompt.media) for prompt in batch["prompts"]] == (~mine).tolist()


def alternating(completion_ids, **kwargs):
    return [float(i % 2) for i in range(len(completion_ids))]


@pytest.mark.train
def test_rows_whose_images_are_null_are_text_only(make_trainer):
    rows = mixed_rows(4).to_list()
    dataset = Dataset.from_list(
        [{**row, "images": row["images"] or None} for row in rows], features=mixed_rows(1).features
    )
    trainer = make_trainer(dataset=dataset, per_device_train_batch_size=GROUP, max_steps=4, shuffle_dataset=False)
    trainer.train()
    assert trainer.state.global_step == 4


@pytest.mark.train
def test_images_made_by_a_transform_are_believed(make_trainer):
    rows = mixed_rows()
    dataset = Dataset.from_dict({"row": list(range(8))}).with_transform(lambda batch: rows[batch["row"]])
    trainer = make_trainer(dataset=dataset, per_device_train_batch_size=GROUP, max_steps=4)
    trainer.train()
    assert trainer.state.global_step == 4


def test_a_data_set_smaller_than_a_generation_is_refused(make_trainer):
    with pytest.raises(ValueError, match=r"has 1 row\(s\), but one generation takes 2 prompts"):
        make_trainer(dataset=rows_with_pictures(1))


def test_evaluation_is_not_counted_as_training_time(make_trainer):
    trainer = make_trainer(
        trainer_kwargs={"eval_dataset": rows_with_pictures(2)}, per_device_eval_batch_size=GROUP, max_steps=1
    )
    trainer.evaluate()
    assert trainer._timer.flush(1) == {}


@pytest.mark.train
def test_a_second_training_logs_times_of_its_own(make_trainer):
    trainer = make_trainer(max_steps=2)
    for _ in range(2):
        trainer.train()
        lines = [line for line in trainer.state.log_history if "time/update" in line]
        assert len(lines) == 2
        assert all(line["time/update"] > 0 for line in lines)


@pytest.mark.train
def test_the_model_card_names_the_paper(make_trainer, tmp_path):
    make_trainer(save_strategy="steps", save_steps=1, max_steps=1).train()
    card = (tmp_path / "run" / "README.md").read_text()
    assert "2604.09349" in card
    assert "DeepSeekMath" not in card


def test_images_within_messages_are_images():
    def asked(*content):
        return [{"role": "user", "content": list(content)}]

    text, image = {"type": "text", "text": "Why?"}, {"type": "image", "image": Image.new("RGB", (8, 8))}
    assert has_media_column(Dataset.from_list([{"prompt": asked(text)}, {"prompt": asked(image, text)}]))
    assert not has_media_column(Dataset.from_list([{"prompt": asked(text)}]))
    assert not has_media_column(Dataset.from_list([{"prompt": asked(text), "images": []}]))


def test_a_prompt_that_lost_its_image_token_is_named(make_trainer, processor):
    trainer = make_trainer()
    trainer._visual_token_ids = [9999]
    with pytest.raises(ValueError, match=r"Row \d+ has 1 image\(s\), but its prompt holds none.*\[9999\]"):
        trainer.train()


def test_a_text_only_model_is_refused_before_anything_else(make_trainer):
    config = Qwen2Config(
        vocab_size=400, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"model_type 'qwen2'\) names no image token"):
        make_trainer(policy=Qwen2ForCausalLM(config))


def test_a_plain_grpo_config_is_refused(make_trainer, model, processor):
    with pytest.raises(ValueError, match=r"args is NoneType, expected VGPOConfig"):
        VGPOTrainer(model=model, reward_funcs=coin, args=None, train_dataset=rows_with_pictures())


def test_a_sampler_that_mixes_prompts_is_caught(make_trainer):
    trainer = make_trainer()
    with pytest.raises(RuntimeError, match=r"rows \[0, 0, 0, 1\], expected 4 adjacent rollouts of one prompt"):
        trainer._group_ids(torch.tensor([0, 0, 0, 1, 2, 2, 2, 2]))


OURS = {
    "focus/mean", "focus/late_early_ratio", "focus/gate_rate", "shaping/token_factor_spread",
    "shaping/rollout_factor_spread", "focus/rows_without_image", "guard/skipped_steps", "time/generation",
    "time/preparation", "time/reward", "time/update",
}  # fmt: skip


@pytest.mark.train
def test_metrics_of_every_step(make_trainer):
    trainer = make_trainer(max_steps=3)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert len(lines) == 3
    for line in lines:
        assert line.keys() >= OURS
        assert 0 < line["focus/mean"] < 1
        assert line["focus/late_early_ratio"] > 0
        assert line["focus/rows_without_image"] == 0
        assert all(math.isfinite(line[name]) for name in OURS)


@pytest.mark.train
def test_the_baseline_is_measured_too_unless_told_not_to(make_trainer):
    for measured in (True, False):
        trainer = make_trainer(shaping="none", measure_focus=measured, max_steps=1)
        trainer.train()
        assert ("focus/mean" in trainer.state.log_history[0]) == measured
        assert "focus/gate_rate" not in trainer.state.log_history[0]


@pytest.mark.train
@pytest.mark.parametrize("size", [2 * GROUP, 2], ids=["whole", "split"])
def test_rollouts_are_written_with_what_the_shaping_made_of_them(make_trainer, processor, size):
    written = []
    trainer = make_trainer(
        per_device_train_batch_size=size,
        gradient_accumulation_steps=2 * GROUP // size,
        max_steps=4,
        log_rollouts_steps=2,
        trainer_kwargs={"rollout_writer": lambda *given: written.append(given)},
    )
    trainer.train()
    assert [records[0].step for records, _ in written] == [1, 3]
    for record, images in [(record, images) for records, images in written for record in records]:
        assert processor.tokenizer.decode(record.token_ids, skip_special_tokens=True) == record.completion
        assert record.answer == str(record.row)
        assert record.rewards.keys() == {"coin"}
        assert record.correct == (record.rewards["coin"] > 0.5)
        assert images[record.media[0]].size[0] == 56
        assert record.diagnostics.keys() == {"gate", "token_factor", "rollout_factor"}
        assert 0 < record.per_rollout("rollout_factor") < 2
        assert "What is the largest digit" in record.problem
        assert any(record.per_token("gate"))
        # A^V = A_i (1 + psi) (1 + phi) (Eq. 12)
        scale = record.advantage * record.per_rollout("rollout_factor")
        expected = [scale * factor for factor in record.per_token("token_factor")]
        assert record.token_advantages == pytest.approx(expected, rel=1e-5)
    assert any(record.advantage for records, _ in written for record in records)
    assert len(written[0][0]) == min(size, GROUP)


@pytest.mark.train
def test_a_rollout_that_is_cut_off_and_masked_is_stored_with_its_text(make_trainer):
    written = []
    trainer = make_trainer(
        mask_truncated_completions=True,
        max_steps=1,
        log_rollouts_steps=1,
        log_rollouts_groups=2,
        trainer_kwargs={"rollout_writer": lambda records, images: written.extend(records)},
    )
    trainer.train()
    masked = [record for record in written if set(record.focus) == {None}]
    assert masked
    for record in masked:
        assert len(record.tokens) == 6
        assert record.completion
        assert record.token_advantages == record.per_token("gate") == record.per_token("token_factor") == [None] * 6


def test_what_a_tool_says_is_stored_without_measures(processor):
    tokenizer = processor.tokenizer
    padding = tokenizer.pad_token_id
    ids = tokenizer("7 is the largest", add_special_tokens=False)["input_ids"]
    completion = torch.tensor([[*ids, padding, padding]])
    mask = torch.tensor([[i != 1 and i < len(ids) for i in range(len(ids) + 2)]])
    [record], images = rollout_records(
        step=1,
        batch={
            "prompt_ids": torch.tensor([ids]), "prompt_mask": torch.ones(1, len(ids)),
            "completion_ids": completion, "completion_mask": (completion != padding).long(),
            "visual_rows": torch.tensor([True]), "scalar_advantages": torch.tensor([2.0]),
            "advantages": torch.full(mask.shape, 3.0), "rewards": torch.tensor([[0.0, 1.0]]),
            "group_ids": torch.zeros(1), "row_index": torch.zeros(1),
        },
        dataset_rows=[{}],
        reward_names=["format", "coin"],
        accuracy_reward="coin",
        action_mask=mask,
        focus=mask * 0.5,
        diagnostics={"token_factor": mask * 1.5, "rollout_factor": torch.tensor([0.75])},
        tokenizer=tokenizer,
    )  # fmt: skip
    assert "".join(record.tokens) == record.completion == record.problem == "7 is the largest"
    assert record.focus == [0.5, None, *[0.5] * (len(ids) - 2)]
    assert record.token_advantages == [3.0, None, *[3.0] * (len(ids) - 2)]
    assert record.diagnostics == {"token_factor": [1.5, None, *[1.5] * (len(ids) - 2)], "rollout_factor": 0.75}
    assert (record.advantage, record.rewards, record.correct) == (2.0, {"format": 0.0, "coin": 1.0}, True)
    assert record.media == []
    assert images == {}


@pytest.mark.train
def test_rows_are_read_once_a_prompt(make_trainer):
    reads = []
    dataset = rows_with_pictures()

    class Counted(Dataset):
        def __getitem__(self, key):
            if isinstance(key, int):
                reads.append(key)
            return super().__getitem__(key)

    dataset.__class__ = Counted
    trainer = make_trainer(dataset=dataset, max_steps=2)
    reads.clear()
    trainer.train()
    assert len(reads) == 4  # two prompts in each of two generations


def test_a_model_without_a_decoder_is_refused(make_trainer, model, monkeypatch):
    monkeypatch.setattr(type(model), "get_decoder", lambda self: None)
    with pytest.raises(ValueError, match="names no module below the model"):
        make_trainer()


def test_a_decoder_without_layers_is_refused_before_anything_is_generated(make_trainer, model):
    decoder = model.get_decoder()
    decoder.blocks = decoder.layers
    del decoder.layers
    with pytest.raises(ValueError, match="Qwen2_5_VLTextModel has no list of modules named 'layers'"):
        make_trainer(shaping="pepo")
    make_trainer(shaping="vgpo")


@pytest.mark.train
def test_streams_are_rolled_out_in_order(make_trainer):
    dataset = rows_with_pictures().to_iterable_dataset()
    written = []
    trainer = make_trainer(
        dataset=dataset,
        shuffle_dataset=False,
        max_steps=2,
        trainer_kwargs={"rollout_writer": lambda records, images: written.extend(records)},
    )
    trainer.train()
    assert trainer.state.global_step == 2
    assert [record.row for record in written] == [written[0].row] * GROUP
    assert "What is the largest digit" in written[0].problem
    with pytest.raises(ValueError, match="dynamic_sampling draws rows by number"):
        make_trainer(dataset=dataset, dynamic_sampling=True)


@pytest.mark.train
def test_lora(make_trainer):
    from peft import LoraConfig

    trainer = make_trainer(trainer_kwargs={"peft_config": LoraConfig(target_modules=["q_proj", "v_proj"], r=4)})
    trainer.train()
    line = trainer.state.log_history[0]
    assert 0 < line["focus/mean"] < 1
    assert isinstance(trainer.model, nn.Module)


@pytest.mark.train
def test_a_reward_that_asks_for_the_prefix_of_responses_gets_that_of_the_chat_template(make_trainer, processor):
    seen = []

    def reward(completions, response_prefix, **kwargs):
        seen.append(response_prefix)
        return [float(index % 2) for index in range(len(completions))]

    opened = "<|im_start|>assistant\n"
    processor.chat_template = processor.chat_template.replace(opened, f"{opened}<think>\n")
    make_trainer(reward=reward, max_steps=1).train()
    assert seen == ["<think>\n"]
