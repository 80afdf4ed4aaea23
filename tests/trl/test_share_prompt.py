"""A run that shares prompts is the run that does not, and reads each image once."""

import copy
import logging
from types import SimpleNamespace

import datasets
import PIL.Image
import pytest
import torch
import trl.trainer.grpo_trainer as host
import trl.trainer.utils as heads
from peft import LoraConfig
from transformers import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.trl.tiny import GROUP, coin, mixed_rows, rows_with_pictures
from vgpo.policy.prompts import token_types
from vgpo.policy.scoring import Rows, Scorer, score_rows
from vgpo.shared_prompt import generation
from vgpo.shared_prompt.passes import cache_argument
from vgpo.toy.model import build_model
from vgpo.training.passes import Rollout
from vgpo.trl import VGPOConfig, VGPOTrainer


def fixed_rollouts(prompts, trainer):
    """Tokens that depend on no weights, of which every third one came from elsewhere."""
    encoded = trainer.processing_class.apply_chat_template(
        conversation=prompts, add_generation_prompt=True, tokenize=True, return_dict=True
    )
    generator = torch.Generator().manual_seed(trainer.state.global_step)
    completions = [torch.randint(20, 60, (1 + row % 6,), generator=generator).tolist() for row in range(len(prompts))]
    masks = [[int(place % 3 != 1) for place in range(len(tokens))] for tokens in completions]
    return {
        "prompt_ids": encoded["input_ids"],
        "completion_ids": completions,
        "logprobs": None,
        "env_mask": masks,
    }


def prompts_of_their_own(prompts, trainer):
    """As an environment does that tells each rollout something else."""
    rollouts = fixed_rollouts(prompts, trainer)
    prompt_ids = [[*ids, *[20 + row] * (1 + row % 3)] for row, ids in enumerate(rollouts["prompt_ids"])]
    return {**rollouts, "prompt_ids": prompt_ids}


def lora_without_vision():
    return LoraConfig(r=4, target_modules=r".*language_model.*\.(q_proj|v_proj|down_proj)")


def trained(trainer):
    torch.manual_seed(7)
    trainer.train()
    names = ("loss", "grad_norm", "entropy", "reward", "focus/mean", "kl")
    numbers = [{name: line[name] for name in names if name in line} for line in trainer.state.log_history[:-1]]
    return numbers, {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


def on_and_off(make_trainer, processor, dtype=torch.float32, **settings):
    runs = []
    for share_prompt in ("on", "off"):
        policy = build_model(processor.tokenizer, seed=1).to(dtype)
        torch.manual_seed(3)
        runs.append(trained(make_trainer(policy=policy, share_prompt=share_prompt, **settings)))
    return runs


SETTINGS = {
    "own-forward": {},
    "micro-batches": {"per_device_train_batch_size": GROUP, "gradient_accumulation_steps": 2},
    "several-groups": {"per_device_train_batch_size": 3 * GROUP},
    "old-pass": {"steps_per_generation": 2},
    "reused-with-reference": {"steps_per_generation": 2, "num_iterations": 2, "beta": 0.04},
    "broken-groups": {"per_device_train_batch_size": 6, "gradient_accumulation_steps": 2},
    "micro-batch-of-1": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2 * GROUP},
    "micro-batch-of-2": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": GROUP},
    "micro-batch-of-3": {"per_device_train_batch_size": 3, "gradient_accumulation_steps": GROUP},
    "micro-batch-of-1-checkpointed": {
        "per_device_train_batch_size": 1, "gradient_accumulation_steps": GROUP, "gradient_checkpointing": True,
    },
    "micro-batch-of-2-reused-with-reference": {
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "steps_per_generation": 4,
        "num_iterations": 2, "beta": 0.04,
    },
    "micro-batches-cut-by-generations": {
        "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "steps_per_generation": 3,
    },
    "text-only-rows": {"dataset": mixed_rows()},
    "truncated-rows-masked": {"mask_truncated_completions": True},
    "checkpointed": {"gradient_checkpointing": True},
    "dynamic": {"dynamic_sampling": True, "max_sampling_rounds": 50},
    "tokens-of-tools": {"trainer_kwargs": {"rollout_func": fixed_rollouts}},
    "prompts-of-their-own": {"trainer_kwargs": {"rollout_func": prompts_of_their_own}},
    "lora-with-reference": {
        "trainer_kwargs": {"peft_config": lora_without_vision()},
        "learning_rate": 1e-3,
        "beta": 0.04,
    },
    "lora-with-micro-batches-of-1": {
        "trainer_kwargs": {"peft_config": lora_without_vision()},
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2 * GROUP,
    },
    "padded-to-multiples": {"pad_to_multiple_of": 32},
}  # fmt: skip


EXPERIMENTAL = pytest.mark.filterwarnings("ignore:You are using 'rollout_func':UserWarning")


@pytest.mark.train
@EXPERIMENTAL
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_five_steps_end_where_separate_rows_end(make_trainer, processor, monkeypatch, settings):
    # The reference model is made from a folder's name, which a model built in memory lacks.
    monkeypatch.setattr(host, "create_model_from_path", lambda *a, **k: build_model(processor.tokenizer, seed=2))
    settings = {"max_steps": 5, "learning_rate": 1e-4, **settings}
    (numbers, weights), (base_numbers, base_weights) = on_and_off(make_trainer, processor, **settings)
    assert len(numbers) == 5
    for line, base_line in zip(numbers, base_numbers, strict=True):
        assert line == pytest.approx(base_line, rel=1e-4, abs=1e-4)
    for name, weight in base_weights.items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.train
@EXPERIMENTAL
def test_bf16_weights_are_trained(make_trainer, processor):
    settings = {"trainer_kwargs": {"rollout_func": fixed_rollouts}, "max_steps": 3, "learning_rate": 1e-4}
    (numbers, weights), (base_numbers, base_weights) = on_and_off(make_trainer, processor, torch.bfloat16, **settings)
    for line, base_line in zip(numbers, base_numbers, strict=True):
        assert line == pytest.approx(base_line, rel=0.05, abs=0.05)
    for name, weight in base_weights.items():
        assert weights[name].dtype == torch.bfloat16
        assert weights[name].isfinite().all()
        torch.testing.assert_close(weights[name], weight, rtol=2e-2, atol=2e-3, msg=name)


class Watched(VGPOTrainer):
    """Keeps the rows and the rollouts of every round of generation."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.rounds = []

    def _generate_and_score_completions(self, rows):
        batch = super()._generate_and_score_completions(rows)
        self.rounds.append((rows, batch))
        return batch


@pytest.mark.train
def test_the_same_seed_gives_the_same_rollouts(make_trainer, processor):
    tokens = []
    for share_prompt in ("on", "off"):
        policy = build_model(processor.tokenizer, seed=1)
        trainer = make_trainer(Watched, policy=policy, share_prompt=share_prompt, learning_rate=1e-5)
        trained(trainer)
        tokens.append([batch["completion_ids"] for _, batch in trainer.rounds])
    assert len(tokens[0]) == 2
    assert all(torch.equal(shared, own) for shared, own in zip(*tokens, strict=True))


@pytest.fixture
def reads(monkeypatch, processor):
    """How often a row is read, its images opened with it, and how often an image is turned into pixels."""
    counts = {"rows": 0, "pixels": 0}

    def count(owner, name, key, number):
        method = getattr(owner, name)

        def counted(self, argument, *args, **kwargs):
            counts[key] += number(argument)
            return method(self, argument, *args, **kwargs)

        monkeypatch.setattr(owner, name, counted)

    count(datasets.Dataset, "__getitem__", "rows", lambda key: int(isinstance(key, int)))
    count(type(processor.image_processor), "preprocess", "pixels", num_pictures)
    return counts


def num_pictures(images):
    return sum(map(num_pictures, images)) if isinstance(images, list) else 1


READING = {
    "own-forward": {},
    "old-pass": {"steps_per_generation": 2},
    "broken-groups": {"per_device_train_batch_size": 6, "gradient_accumulation_steps": 2},
    "dynamic": {"dynamic_sampling": True, "max_sampling_rounds": 50},
}


@pytest.mark.train
@pytest.mark.parametrize("share_prompt", ["on", "off"])
@pytest.mark.parametrize("settings", READING.values(), ids=READING)
def test_a_generation_reads_and_encodes_each_prompt_once(make_trainer, reads, settings, share_prompt):
    trainer = make_trainer(Watched, share_prompt=share_prompt, **settings)
    reads.update(rows=0, pixels=0)
    trainer.train()
    prompts = [{row["row_index"] for row in rows} for rows, _ in trainer.rounds]
    assert all(len(rows) == GROUP * len(set_) for (rows, _), set_ in zip(trainer.rounds, prompts, strict=True))
    total = sum(map(len, prompts))
    assert reads == {"rows": total, "pixels": total}


def test_an_evaluation_reads_each_row_for_itself(make_trainer, reads):
    """Rows of an evaluation have no numbers by which they could be known again."""
    numbers = []
    for share_prompt in ("on", "off"):
        trainer = make_trainer(
            share_prompt=share_prompt,
            per_device_eval_batch_size=GROUP,
            trainer_kwargs={"eval_dataset": rows_with_pictures(3)},
        )
        reads.update(pixels=0)
        torch.manual_seed(3)
        numbers.append(trainer.evaluate())
        assert reads["pixels"] == 3 * GROUP
    names = [name for name in numbers[1] if "time" not in name and "per_second" not in name]
    assert "eval_reward" in names
    assert {n: numbers[0][n] for n in names} == pytest.approx({n: numbers[1][n] for n in names}, abs=1e-5)


@pytest.mark.train
def test_pixels_are_stored_once_per_prompt(make_trainer):
    trainer = make_trainer(per_device_train_batch_size=2 * GROUP, steps_per_generation=2)
    trainer.train()
    for batch in trainer._buffered_inputs:
        assert not [name for name in batch if "pixel" in name or "grid" in name or "num_images" in name]
        assert len(batch["prompts"]) == 2 * GROUP
        for i, prompt in enumerate(batch["prompts"]):
            same = batch["group_ids"] == batch["group_ids"][i]
            assert [other is prompt for other in batch["prompts"]] == same.tolist()
            assert len(prompt.media["pixel_values"]) == prompt.media["image_grid_thw"].prod()


@pytest.mark.train
@pytest.mark.parametrize(("settings", "passes"), [({}, 2), ({"steps_per_generation": 2, "max_steps": 2}, 3)])
def test_each_pass_looks_at_each_picture_once(make_trainer, model, settings, passes):
    """Passes over all rollouts: generation, and the update, or the old policy's and the update."""
    trainer = make_trainer(Watched, policy=model, **{"max_steps": 1, **settings})
    seen = []
    model.model.visual.register_forward_pre_hook(lambda tower, args: seen.append(len(args[0])))
    trainer.train()
    [(_, batch)] = trainer.rounds
    patches = sum(len(prompt.media["pixel_values"]) for prompt in set(batch["prompts"]))
    assert sum(seen) == passes * patches


@pytest.mark.train
def test_the_head_reads_no_prompt(make_trainer, monkeypatch):
    """Logits of a full vocabulary are never made where the prompt is."""
    seen = []

    def spy(hidden, *args):
        seen.append(len(hidden))
        return function(hidden, *args)

    function = heads._ChunkedLogProbFunction.apply
    monkeypatch.setattr(heads, "_ChunkedLogProbFunction", SimpleNamespace(apply=spy))
    trainer = make_trainer(steps_per_generation=2)
    trainer.train()
    [width] = {batch["completion_ids"].shape[1] for batch in trainer._buffered_inputs}
    # Two micro-batches, once for the old policy and once for the update: a column of each of two prompts, responses.
    assert seen == [2, 2 * GROUP * width] * 4


@pytest.fixture
def passes(monkeypatch):
    """The rows of each pass over responses, and the prompts of each pass that reads prompts, in order."""
    seen = {"read": [], "respond": []}
    read, respond = Scorer.read, Scorer.respond

    def noted_read(self, prompts, device):
        seen["read"].append(list(prompts))
        return read(self, prompts, device)

    def noted_respond(self, rows, *args):
        seen["respond"].append(rows)
        return respond(self, rows, *args)

    monkeypatch.setattr(Scorer, "read", noted_read)
    monkeypatch.setattr(Scorer, "respond", noted_respond)
    return seen


@pytest.mark.train
@pytest.mark.parametrize("size", [1, 2, GROUP, 2 * GROUP])
def test_an_optimizer_step_reads_each_prompt_once_at_any_micro_batch(make_trainer, passes, size):
    trainer = make_trainer(
        Watched, per_device_train_batch_size=size, gradient_accumulation_steps=2 * GROUP // size, max_steps=1,
        shaping="none", measure_focus=False,
    )  # fmt: skip
    trainer.train()
    [(_, batch)] = trainer.rounds
    unique = {id(prompt) for prompt in batch["prompts"]}
    assert len(unique) == 2
    assert {id(prompt) for prompts in passes["read"] for prompt in prompts} == unique
    assert sum(map(len, passes["read"])) == 2
    assert sum(len(rows.prompts) for rows in passes["respond"]) == 2 * GROUP
    assert len(trainer._open_prompts) == 0


@pytest.mark.train
def test_passes_end_with_the_longest_response(make_trainer, passes):
    trainer = make_trainer(Watched, mask_truncated_completions=True, max_steps=1)
    trainer.train()
    [(_, batch)] = trainer.rounds
    lengths = batch["completion_mask"].sum(1)
    assert (lengths == 0).any()
    longest = [rows.input_ids.shape[1] - rows.prompt_width for rows in passes["respond"]]
    assert max(longest) == max(1, lengths.max())
    assert sum(len(rows.prompts) for rows in passes["respond"]) == 2 * GROUP


@pytest.mark.train
def test_rewards_get_the_pictures_of_their_rows(make_trainer):
    dataset = rows_with_pictures()
    sizes = {row["answer"]: row["images"][0].size for row in dataset}
    seen = []

    def reward(completion_ids, images, answer, **kwargs):
        seen.extend(zip(images, answer, strict=True))
        return coin(completion_ids)

    make_trainer(dataset=dataset, reward=reward, max_steps=1).train()
    assert len(seen) == 2 * GROUP
    for pictures, answer in seen:
        assert [picture.size for picture in pictures] == [sizes[answer]]


@pytest.mark.train
def test_logged_completions_have_an_entry_of_pictures_each(make_trainer, monkeypatch):
    printed = []
    monkeypatch.setattr(host, "print_prompt_completions_sample", lambda *args, **kwargs: printed.append(args))
    trainer = make_trainer(dataset=mixed_rows(), log_completions=True, max_steps=1)
    trainer.train()
    prompts, completions = printed[0][:2]
    images = list(trainer._logs["images"])
    assert len(prompts) == len(completions) == len(images) == 2 * GROUP
    for messages, pictures in zip(prompts, images, strict=True):
        parts = [part for part in messages[0]["content"] if part["type"] == "image"]
        assert len(parts) == len(pictures)


def scored(model, rows, trainer, *, share):
    with torch.no_grad():
        scores = score_rows(model, rows, trainer._visual_token_ids, share=share, similarity=True)
    return scores.log_probs, scores.entropy, scores.similarity


def rows_of(batch):
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    return Rows(ids, mask, batch["prompt_ids"].shape[1], batch["prompts"])


def assert_alike(scores, expected, mask):
    for value, reference in zip(scores, expected, strict=True):
        torch.testing.assert_close(value[mask], reference[mask], rtol=0, atol=1e-5)


@pytest.mark.train
def test_only_shared_passes_have_a_cache(make_trainer, processor, tmp_path):
    """The attention functions of transformers and the saved config are those of a run that does not share prompts."""
    functions, configs, caches = dict(ALL_ATTENTION_FUNCTIONS), {}, {}
    for share_prompt in ("on", "off"):
        policy = build_model(processor.tokenizer, seed=1)
        trainer = make_trainer(policy=policy, share_prompt=share_prompt, gradient_checkpointing=True)
        caches[share_prompt] = seen = []
        name = cache_argument(policy)
        policy.get_decoder().register_forward_pre_hook(
            lambda decoder, args, kwargs, seen=seen, name=name: (
                seen.append(type(kwargs.get(name))) if decoder.training else None
            ),
            with_kwargs=True,
        )
        trainer.train()
        trainer.save_model(str(tmp_path / share_prompt))
        configs[share_prompt] = (tmp_path / share_prompt / "config.json").read_text()
        assert policy.get_decoder().config._attn_implementation == "sdpa"
    assert set(caches["on"]) == {Cache}
    assert set(caches["off"]) == {type(None)}
    assert configs["on"] == configs["off"]
    assert dict(ALL_ATTENTION_FUNCTIONS) == functions


# torch makes one when it compiles TRL's head.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated:DeprecationWarning")
def test_a_compiled_model_shares_prompts(make_trainer):
    trainer = make_trainer(max_steps=1)
    trainer.train()
    rows = rows_of(trainer._buffered_inputs[0])
    compiled = torch.compile(trainer.model, backend="eager")
    response = rows.attention_mask[:, rows.prompt_width :].bool()
    expected = scored(trainer.model, rows, trainer, share=False)
    assert_alike(scored(compiled, rows, trainer, share=True), expected, response)


@pytest.mark.train
def test_pictures_of_tools_belong_to_their_rollout(make_trainer, model):
    """One rollout of a group has got an image from a tool: its prompt is its own, and no score changes by that."""
    trainer = make_trainer(Watched, max_steps=1)
    trainer.train()
    [(dataset_rows, batch)] = trainer.rounds
    before = batch["prompts"]
    given = [[], [PIL.Image.new("RGB", (56, 84), (200, 10, 10))], *[[]] * (len(before) - 2)]
    trainer._pass = Rollout(prompts=list(before), images=[row["images"] for row in dataset_rows])
    trainer._add_tool_images(given)
    after = trainer._pass.prompts
    assert [prompt is old for prompt, old in zip(after, before, strict=True)] == [not pictures for pictures in given]
    assert after[1].token_ids == before[1].token_ids
    own, added = after[1].media["image_grid_thw"]
    assert after[1].num_images == 2
    assert torch.equal(own, before[1].media["image_grid_thw"][0])

    config = model.config
    num_tokens = int(added.prod()) // config.vision_config.spatial_merge_size**2
    tool = [config.vision_start_token_id, *[config.image_token_id] * num_tokens, config.vision_end_token_id, 40, 41]
    rows = rows_of({**batch, **with_response(batch, 1, tool), "prompts": after})
    assert after[1].num_tool_images == 1
    response = rows.attention_mask[:, rows.prompt_width :].bool()
    expected = scored(trainer.model, rows, trainer, share=False)
    assert_alike(scored(trainer.model, rows, trainer, share=True), expected, response)


def test_pictures_of_tools_that_could_be_masked_are_refused(make_trainer):
    trainer = make_trainer(mask_truncated_completions=True)
    trainer._pass = Rollout(prompts=[None], images=[[]])
    trainer._add_tool_images([[]])
    with pytest.raises(
        ValueError, match=r"put an image into a rollout, but mask_truncated_completions.*Set it to False"
    ):
        trainer._add_tool_images([[PIL.Image.new("RGB", (56, 56))]])


@pytest.mark.train
def test_prompts_that_end_in_an_image_token_are_read_row_by_row(make_trainer, passes):
    trainer = make_trainer(max_steps=1)
    trainer.train()
    rows = rows_of(trainer._buffered_inputs[0])
    last = rows.prompts[0].token_ids[-1]
    for tokens, count in (([last + 1], 2), ([last], 0)):
        passes["read"].clear()
        with torch.no_grad():
            score_rows(trainer.model, rows, tokens, share=True, similarity=False)
        assert sum(map(len, passes["read"])) == count


def with_response(batch, row, tokens):
    """Responses of which one has been changed, and their mask."""
    ids, mask = batch["completion_ids"], batch["completion_mask"]
    short = max(0, len(tokens) - ids.shape[1])
    ids, mask = (torch.nn.functional.pad(values, (0, short)) for values in (ids, mask))
    ids[row], mask[row] = 0, 0
    ids[row, : len(tokens)], mask[row, : len(tokens)] = torch.tensor(tokens), 1
    return {"completion_ids": ids, "completion_mask": mask}


@pytest.mark.train
def test_bf16_weights_err_no_more_than_those_of_separate_rows(make_trainer):
    trainer = make_trainer(max_steps=1)
    trainer.train()
    rows = rows_of(trainer._buffered_inputs[0])
    response = rows.attention_mask[:, rows.prompt_width :].bool()
    exact = scored(trainer.model, rows, trainer, share=False)
    trainer.model.bfloat16()
    own, shared = (scored(trainer.model, rows, trainer, share=share) for share in (False, True))
    for reference, separate, value in zip(exact, own, shared, strict=True):
        error, usual = ((other.float() - reference)[response].norm() for other in (value, separate))
        assert error <= 1.5 * usual


def test_a_model_that_cannot_share_is_refused_when_told_to(make_trainer, model):
    model.config.text_config.attention_dropout = 0.1
    with pytest.raises(ValueError, match=r"='on' is not possible: .*attention_dropout=0.1.*'auto' or 'off'"):
        make_trainer(policy=model, share_prompt="on")


@pytest.mark.train
def test_reentrant_checkpointing_loses_the_gradient_of_a_cache(make_trainer, caplog, passes):
    settings = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    with pytest.raises(ValueError, match="='on' is not possible: reentrant gradient checkpointing"):
        make_trainer(share_prompt="on", **settings)
    with caplog.at_level(logging.WARNING, logger="vgpo"):
        make_trainer(max_steps=1, **settings).train()
    assert "reentrant gradient checkpointing" in caplog.text
    assert not passes["read"]


@pytest.mark.train
def test_a_model_that_cannot_share_trains_without_and_says_why(make_trainer, model, caplog, passes):
    model.config.text_config.attention_dropout = 0.1
    with caplog.at_level(logging.WARNING, logger="vgpo"):
        trainer = make_trainer(policy=model)
        trainer.train()
    assert trainer.state.global_step == 2
    [message] = [record.message for record in caplog.records if "share_prompt" in record.message]
    assert "attention_dropout=0.1" in message
    assert not passes["read"]


@pytest.mark.train
@pytest.mark.parametrize(
    ("hook", "reason"),
    [("_CACHE_NAMES", "passes no cache under the names kv_store"), ("_HOOKS", "has no method kv_store")],
    ids=["found in generate", "found before"],
)
def test_an_unknown_version_of_generate_samples_without_sharing_and_says_so_once(
    make_trainer, model, caplog, monkeypatch, hook, reason
):
    weights = copy.deepcopy(model.state_dict())
    plain = trained(make_trainer(policy=model, share_prompt="off"))
    model.load_state_dict(weights)
    monkeypatch.setattr(generation, hook, {"kv_store": ()})
    with caplog.at_level(logging.WARNING, logger="vgpo"):
        numbers, _ = trained(make_trainer(policy=model))
    [message] = [record.message for record in caplog.records if "once per rollout" in record.message]
    assert reason in message
    # Scoring still shares: the same rollouts, up to rounding.
    assert [line["reward"] for line in numbers] == [line["reward"] for line in plain[0]]
    with pytest.raises(ValueError, match=rf"share_prompt=.on. is not possible: .*{reason}[^.]*\. Set share_prompt"):
        make_trainer(policy=model, share_prompt="on").train()


@pytest.mark.parametrize("value", ["yes", "", None, True])
def test_the_switch_has_three_positions(tmp_path, value):
    with pytest.raises(ValueError, match=r"share_prompt is .*expected one of 'auto', 'on', 'off'"):
        VGPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, share_prompt=value)


def test_a_reference_that_cannot_share_is_asked_too(make_trainer, processor, monkeypatch):
    def reference_with_dropout(*args, **kwargs):
        reference = build_model(processor.tokenizer, seed=2)
        reference.config.text_config.attention_dropout = 0.1
        return reference

    monkeypatch.setattr(host, "create_model_from_path", reference_with_dropout)
    with pytest.raises(ValueError, match=r"share_prompt='on' is not possible: .*attention_dropout=0\.1"):
        make_trainer(share_prompt="on", beta=0.04)


def test_different_prompts_of_one_row_number_stay_apart(make_trainer):
    """An evaluation set may bring a column of any name."""
    rows = rows_with_pictures(4)
    trainer = make_trainer(trainer_kwargs={"eval_dataset": rows.add_column("row_index", [0] * 4)})
    trainer.model.eval()
    loader = trainer.get_eval_dataloader()
    batch = trainer._prepare_inputs(next(iter(loader)))
    texts = {tuple(prompt.token_ids) for prompt in batch["prompts"]}
    assert (
        len(texts)
        == len(
            {
                tuple(ids[mask.bool()].tolist())
                for ids, mask in zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)
            }
        )
        > 1
    )


def test_token_types_are_the_processors_own(make_trainer):
    """In prompts; in responses, where images of tools may lie, they are read off the ids."""
    trainer = make_trainer()
    rows = trainer._fetch([0] * GROUP + [1] * GROUP)
    trainer.model.train()
    batch = trainer._generate_and_score_completions(rows)
    types = token_types(
        batch["prompts"], torch.zeros_like(rows_of(batch).input_ids).bool(), batch["prompt_ids"].shape[1]
    )
    for prompt, row in zip(batch["prompts"], types["mm_token_type_ids"], strict=True):
        assert sum(prompt.token_types["mm_token_type_ids"]) > 0
        assert row[batch["prompt_ids"].shape[1] - len(prompt.token_ids) :].tolist() == [
            *prompt.token_types["mm_token_type_ids"], *[0] * batch["completion_ids"].shape[1],
        ]  # fmt: skip
