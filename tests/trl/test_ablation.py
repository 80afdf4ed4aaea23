"""The same rollouts after ablated prompts, for every family, and in the trainer."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText
from trl.trainer.utils import add_fused_lm_head

from tests.families.build import FAMILIES, draw_weights, encode_prompts, picture
from tests.trl.tiny import GROUP, mixed_rows, rows_with_pictures
from vgpo.focus import banned_token_ids, named_visual_token_ids
from vgpo.policy.ablation import ABLATIONS, BlackPatches, TextOnly, ablate_prompts
from vgpo.policy.prompts import EncodedPrompt, encoded_prompt, prompt_columns
from vgpo.policy.scoring import Rows, score_rows
from vgpo.shaping import Signals, build_shaping
from vgpo.toy.model import build_model
from vgpo.trl import VGPOTrainer

CPU = torch.device("cpu")
SEED = 5


@pytest.fixture(params=FAMILIES)
def family(request):
    """Configuration and processor."""
    return FAMILIES[request.param]()


def encode(processor, images, text="Which one?"):
    [encoded] = encode_prompts(processor, [(text, images)])
    return encoded_prompt(encoded["input_ids"][0].tolist(), len(images), encoded, CPU)


def tiles(pixels, side):
    """Patches of images (..., C, H, W) or of rows (N, C * t * side * side), as (patches, C, pixels)."""
    if pixels.ndim == 2:
        return pixels.view(len(pixels), 3, -1)
    *_, height, width = pixels.shape
    cut = pixels[..., : height // side * side, : width // side * side].unfold(-2, side, side).unfold(-2, side, side)
    return cut.movedim(-5, -3).reshape(-1, 3, side * side)


def test_black_everywhere_is_a_black_picture(family):
    config, processor = family
    photo, night = picture(112, 84), Image.new("RGB", (112, 84))
    view = dataclasses.replace(BlackPatches.of(config, processor, SEED), share=1.0)
    found = view(encode(processor, [photo]), 0).media
    expected = encode(processor, [night]).media
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=0)


def test_half_of_the_patches_are_black_and_the_others_untouched(family):
    config, processor = family
    view = BlackPatches.of(config, processor, SEED)
    shares = []
    for group in range(30):
        prompt = encode(processor, [picture(112, 112, seed=group)])
        before = tiles(prompt.media["pixel_values"], view.side)
        after = tiles(view(prompt, group).media["pixel_values"], view.side)
        black = (after == view.black[:, None]).flatten(1).all(1)
        assert torch.equal(after[~black], before[~black])
        assert len(before) >= 4
        shares.append(black.float().mean())
    assert 0.4 < float(torch.stack(shares).mean()) < 0.6


def test_patches_are_those_of_the_vision_tower(family):
    config, processor = family
    side = config.vision_config.patch_size
    assert BlackPatches.of(config, processor, SEED).side == (side if isinstance(side, int) else side[0])


def test_the_seed_and_the_group_say_which_patches(family):
    config, processor = family
    prompt = encode(processor, [picture(112, 112)])
    pixels = [
        BlackPatches.of(config, processor, seed)(prompt, group).media["pixel_values"]
        for seed, group in [(SEED, 3), (SEED, 3), (SEED, 4), (SEED + 1, 3)]
    ]
    assert torch.equal(pixels[0], pixels[1])
    assert not torch.equal(pixels[0], pixels[2])
    assert not torch.equal(pixels[0], pixels[3])


def test_tiles_that_fill_up_a_prompt_stay_empty():
    config, processor = FAMILIES["idefics3"]()
    pixels = torch.ones(1, 2, 3, 28, 28)
    pixels[0, 1] = 0
    prompt = EncodedPrompt([1], 1, {"pixel_values": pixels}, {})
    found = dataclasses.replace(BlackPatches.of(config, processor, SEED), share=1.0)(prompt, 0).media["pixel_values"]
    assert found[0, 1].eq(0).all()
    assert found[0, 0].eq(-1).all()


def test_pixels_of_an_unknown_form_are_refused():
    view = BlackPatches(side=14, black=torch.zeros(3), seed=0)
    prompt = EncodedPrompt([1], 1, {"pixel_values": torch.ones(1, 16, 588)}, {})
    with pytest.raises(ValueError, match=r"pixel_values have shape \(1, 16, 588\), expected rows of patches"):
        view(prompt, 0)


def test_text_is_the_same_in_every_view(family):
    config, processor = family
    prompt = encode(processor, [])
    for make in ABLATIONS.values():
        view = make(config, processor, SEED, banned_token_ids(config))
        assert vars(view(prompt, 0)) == vars(prompt)


def test_log_probabilities_without_pictures_are_those_of_the_text_alone(family):
    config, processor = family
    torch.manual_seed(0)  # some scales keep their initial value
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    draw_weights(model, seed=0)
    banned = banned_token_ids(config)
    prompts = [
        encode(processor, [picture(56, 56)], "Why?"), encode(processor, [picture(84, 56), picture(56, 28)], "Which?")
    ]  # fmt: skip
    views = ablate_prompts(prompts, torch.tensor([0, 1]), TextOnly(banned))
    size = len(processor.tokenizer)
    responses = torch.randint(size - 256, size, (2, 5), generator=torch.Generator().manual_seed(1))
    expected = []
    for prompt, response in zip(prompts, responses, strict=True):
        text = [token for token in prompt.token_ids if token not in banned]
        assert len(text) < len(prompt.token_ids)
        ids = torch.tensor([[*text, *response.tolist()]])
        # Gemma takes no training row without token types.
        types = {name: torch.zeros_like(ids) for name in prompt.token_types}
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **types).logits[0]
        expected.append(logits[len(text) - 1 : -1].log_softmax(-1).gather(-1, response[:, None])[:, 0])
    columns = prompt_columns(views, processor.tokenizer.pad_token_id, CPU)
    rows = Rows(
        torch.cat([columns["prompt_ids"], responses], dim=1),
        torch.cat([columns["prompt_mask"], torch.ones_like(responses)], dim=1),
        columns["prompt_ids"].shape[1],
        views,
    )
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    with torch.no_grad():
        scores = score_rows(model, rows, named_visual_token_ids(config), share=False, similarity=False)
    torch.testing.assert_close(scores.log_probs, torch.stack(expected), atol=1e-4, rtol=0)


def test_a_view_is_made_once_for_each_group_that_shares_a_prompt():
    one, other = (EncodedPrompt([1, 2], 0, {}, {}) for _ in range(2))
    made = []

    def view(prompt, group):
        made.append((prompt, group))
        return dataclasses.replace(prompt, token_ids=[group])

    views = ablate_prompts([one, one, one, other], torch.tensor([7, 7, 8, 8]), view)
    assert made == [(one, 7), (one, 8), (other, 8)]
    assert views[0] is views[1]
    assert [prompt.token_ids for prompt in views] == [[7], [7], [8], [8]]


class Watched(VGPOTrainer):
    """Keeps what was shaped, and counts passes without a gradient and with one."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen = []
        self.counts = [0, 0]

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        self.counts[torch.is_grad_enabled()] += 1
        return super()._get_per_token_logps_and_entropies(*args, **kwargs)

    def _shape_update(self, scoring):
        super()._shape_update(scoring)
        self.seen.append({**scoring.captured[-1], **scoring.update})

    def _shape_across_processes(self, batch):
        self.seen.append(super()._shape_across_processes(batch))
        return self.seen[-1]


@pytest.mark.train
def test_old_log_probabilities_are_the_old_policys_and_else_the_updates_own(make_trainer):
    trainer = make_trainer(Watched, shaping="pgpo", steps_per_generation=2)
    trainer.train()
    for batch in trainer.seen:
        assert torch.equal(batch["log_probs"], batch["old_per_token_logps"])
    own = make_trainer(Watched, shaping="pgpo")
    own.train()
    for batch in own.seen:
        assert "old_per_token_logps" not in batch
        assert batch["log_probs"].lt(0).any()


@pytest.mark.train
@pytest.mark.parametrize(
    ("shaping", "name"), [("kl_perception", "corrupted_log_probs"), ("pgpo", "text_only_log_probs")]
)
def test_each_rollout_is_scored_behind_the_view_of_its_own_prompt(make_trainer, shaping, name):
    """Row by row, of a policy that learns nothing in between."""
    trainer = make_trainer(Watched, shaping=shaping, steps_per_generation=2, max_steps=1, learning_rate=0.0)
    trainer.train()
    [batch, *_] = trainer.seen
    differences = []
    for i, (prompt, group) in enumerate(zip(batch["prompts"], batch["group_ids"].tolist(), strict=True)):
        view = trainer._ablations[name](prompt, group)
        response = {key: batch[key][i : i + 1] for key in ("completion_ids", "completion_mask")}
        alone = {**response, **prompt_columns([view], 0, CPU), "prompts": [view]}
        [scored] = trainer._score(alone, frozenset({"log_probs"}))["log_probs"]
        mask = batch["completion_mask"][i].bool()
        torch.testing.assert_close(scored[mask], batch[name][i][mask], atol=1e-5, rtol=0)
        differences.append((batch["log_probs"][i] - batch[name][i])[mask].abs().max())
    assert max(differences) > 1e-3


@pytest.mark.train
@pytest.mark.parametrize("shaping", ["entropy", "kl_perception", "pgpo", "pepo"])
def test_advantages_are_those_of_the_shaping_and_the_division_changes_nothing(make_trainer, processor, shaping):
    seen = []
    for size in (2 * GROUP, 2):
        trainer = make_trainer(
            Watched,
            policy=build_model(processor.tokenizer, seed=1),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=2 * GROUP // size,
            shuffle_groups=False,
            max_steps=1,
            shaping=shaping,
            shaping_options={"gradual": False} if shaping == "pepo" else {},
        )
        torch.manual_seed(7)
        trainer.train()
        advantages = [row for batch in trainer.seen for row in batch["advantages"].unbind()]
        seen.append(torch.stack(advantages))
        base = torch.cat([batch["scalar_advantages"] for batch in trainer.seen])
    # Scaling to [0, 1] blows the rounding of small dependencies up.
    torch.testing.assert_close(seen[0], seen[1], atol=1e-3, rtol=0)
    assert not torch.allclose(seen[0], base[:, None].expand_as(seen[0]))


@pytest.mark.train
def test_shaped_advantages_are_the_equations_applied_to_what_was_heard(make_trainer):
    trainer = make_trainer(Watched, shaping="pgpo", shaping_options={"boost": 3.0})
    trainer.train()
    for batch in trainer.seen:
        signals = Signals(
            response_mask=batch["completion_mask"].bool(),
            group_ids=batch["group_ids"],
            visual_rows=batch["visual_rows"],
            log_probs=batch["log_probs"],
            text_only_log_probs=batch["text_only_log_probs"],
        )
        expected = build_shaping("pgpo", {"boost": 3.0}).shape(batch["scalar_advantages"], signals)
        assert torch.equal(batch["advantages"], expected.advantages)


@pytest.mark.train
@pytest.mark.parametrize("shaping", ["kl_perception", "pgpo", "pepo"])
def test_rows_without_a_picture_keep_their_advantage(make_trainer, shaping):
    options = {"gradual": False} if shaping == "pepo" else {}
    trainer = make_trainer(Watched, dataset=mixed_rows(), shaping=shaping, shaping_options=options, max_steps=3)
    trainer.train()
    plain = changed = False
    for batch in trainer.seen:
        base = batch["scalar_advantages"][:, None].expand_as(batch["advantages"])
        text = ~batch["visual_rows"]
        assert torch.equal(batch["advantages"][text], base[text])
        plain |= bool(base[text].ne(0).any())
        changed |= bool((batch["advantages"] != base)[~text].any())
    assert plain
    assert changed


@pytest.mark.train
def test_progress_is_that_of_the_run(make_trainer):
    trainer = make_trainer(shaping="pepo", max_steps=4)
    heard = []
    shape = trainer.shaping.shape
    trainer.shaping.shape = lambda advantages, signals: heard.append(signals.progress) or shape(advantages, signals)
    trainer.train()
    assert [float(progress[0]) for progress in heard] == [0.0, 0.25, 0.5, 0.75]


@pytest.mark.train
def test_signals_that_are_not_declared_are_not_told(make_trainer):
    trainer = make_trainer(shaping="entropy", measure_focus=False, max_steps=1)
    heard = []
    shape = trainer.shaping.shape
    trainer.shaping.shape = lambda advantages, signals: heard.append(signals) or shape(advantages, signals)
    trainer.train()
    told = {field.name for field in dataclasses.fields(Signals) if getattr(heard[0], field.name) is not None}
    assert told == {"response_mask", "group_ids", "visual_rows", "entropy"}


@pytest.mark.train
def test_a_data_set_without_pictures_is_refused(make_trainer):
    rows = rows_with_pictures().remove_columns("images")
    rows = rows.map(lambda row: {"prompt": [{"role": "user", "content": "What"}]})
    with pytest.raises(ValueError, match="The dataset has no images"):
        make_trainer(dataset=rows, shaping="pgpo", measure_focus=False).train()


@pytest.mark.train
def test_dynamic_sampling_scores_the_batch_it_keeps(make_trainer):
    trainer = make_trainer(Watched, shaping="pgpo", dynamic_sampling=True, steps_per_generation=2)
    trainer.train()
    rounds = int(trainer.state.log_history[0]["sampling/rounds"])
    assert trainer.counts == [rounds + 1, 2]  # an old pass for each round, one behind the text alone


def test_random_numbers_of_the_run_are_left_alone():
    config, processor = FAMILIES["qwen2_5_vl"]()
    prompt = encode(processor, [picture(56, 56)])
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    BlackPatches.of(config, processor, SEED)(prompt, 0)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
