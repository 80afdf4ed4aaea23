"""Greedy evaluation: counts, intervals, and that nothing but the answers comes out of it."""

import math
from dataclasses import asdict

import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from vgpo.evaluation import evaluate, wilson_interval
from vgpo.evaluation.accuracy import Evaluation, evaluate_answers, grade_answers
from vgpo.evaluation.completions import Completion, oversized
from vgpo.policy.generation import greedy_decoding
from vgpo.toy.model import build_model, build_processor


@pytest.fixture(scope="module")
def processor() -> Qwen2_5_VLProcessor:
    return build_processor()


@pytest.fixture
def model(processor: Qwen2_5_VLProcessor) -> Qwen2_5_VLForConditionalGeneration:
    return build_model(processor.tokenizer, seed=3)


@pytest.fixture(scope="module")
def questions() -> Dataset:
    """Five questions of different lengths, on images of different sizes."""
    rows = []
    for i in range(5):
        picture = Image.new("RGB", (28 * (1 + i % 3), 28 * (1 + i % 2)), (50 * i, 200, 90))
        text = "What is the largest digit" + " in the picture" * i
        content = [{"type": "image"}, {"type": "text", "text": text}]
        prompt = [{"role": "user", "content": content}]
        rows.append({"prompt": prompt, "images": [picture], "problem": text, "answer": "7"})
    return Dataset.from_list(rows)


def row(completion: str, *, truncated: bool = False, predicted: str | None = None) -> dict:
    return {"problem": "?", "answer": "7", "completion": completion, "predicted": predicted, "truncated": truncated}


def test_wilson_interval_by_hand() -> None:
    # n = 4, k = 3, z = 2: centre (0.75 + 0.5) / 2 = 0.625, margin sqrt(0.1875 x 1 + 0.25) / 2 = 0.330719
    assert wilson_interval(3, 4, z=2.0) == pytest.approx((0.294281, 0.955719), abs=1e-6)
    # k = 0: from 0 to (z^2/n) / (1 + z^2/n) = 1 / 2; k = n is its mirror image
    assert wilson_interval(0, 4, z=2.0) == pytest.approx((0.0, 0.5))
    assert wilson_interval(4, 4, z=2.0) == pytest.approx((0.5, 1.0))
    # 95 %, n = 100, k = 50: 0.5 +- sqrt(0.25 x 0.0384146 + 0.0384146^2 / 4) / 1.0384146
    assert wilson_interval(50, 100) == pytest.approx((0.403831, 0.596169), abs=1e-6)


def test_the_interval_covers_the_share_and_narrows() -> None:
    for correct in range(41):
        low, high = wilson_interval(correct, 40)
        assert 0 <= low <= correct / 40 <= high <= 1
        wide, narrow = high - low, math.dist(*([x] for x in wilson_interval(10 * correct, 400)))
        assert narrow < wide


def test_no_question_leaves_the_denominator() -> None:
    rows = [row(r"\boxed{7}", predicted="7"), row(r"\boxed{8}", predicted="8"), row("seven"), row("", truncated=True)]
    scores = grade_answers(rows)
    assert (scores.num_questions, scores.num_correct, scores.accuracy) == (4, 1, 0.25)
    assert (scores.num_unanswered, scores.num_truncated) == (2, 1)
    assert [answer["correct"] for answer in scores.answers] == [True, False, False, False]
    assert (scores.low, scores.high) == wilson_interval(1, 4)
    assert "25.0% correct (1 of 4" in str(scores)


def test_questions_that_do_not_fit_are_counted_and_named(questions: Dataset) -> None:
    def answer(rows: list[dict]) -> list[Completion]:
        return [oversized(9000), *[Completion("seven", 5, 2, truncated=False)] * (len(rows) - 1)]

    scores = evaluate_answers(answer, questions, batch_size=5, progress=False)
    assert (scores.num_questions, scores.num_oversized, scores.num_unanswered) == (5, 1, 4)
    assert [answer["oversized"] for answer in scores.answers] == [True, False, False, False, False]
    assert str(scores).endswith("4 without an answer, 0 truncated, 1 not asked (too long for the context)")


def test_the_text_is_silent_where_every_question_was_asked() -> None:
    assert str(grade_answers([row("")])).endswith("1 without an answer, 0 truncated")


def test_scores_of_older_versions_have_no_oversized_questions() -> None:
    known = asdict(grade_answers([row("")]))
    del known["num_oversized"]
    assert Evaluation(**known).num_oversized == 0


def test_answers_do_not_depend_on_batch_mates_or_on_chance(
    model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor, questions: Dataset
) -> None:
    alone = evaluate(model, processor, questions, batch_size=1, max_new_tokens=6, progress=False)
    torch.manual_seed(1)
    together = evaluate(model, processor, questions, batch_size=3, max_new_tokens=6, progress=False)
    assert together == alone
    assert [answer["problem"] for answer in alone.answers] == questions["problem"]


def test_the_model_is_left_as_it_was(
    model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor, questions: Dataset
) -> None:
    model.train()
    model.model.visual.eval()  # a frozen tower
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    settings = model.generation_config.to_dict()
    modes = [module.training for module in model.modules()]
    evaluate(model, processor, questions.select([0]), max_new_tokens=2, progress=False)
    assert [module.training for module in model.modules()] == modes
    assert model.generation_config.to_dict() == settings
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert torch.is_grad_enabled()


def test_sampling_settings_of_the_checkpoint_do_not_leak_in(
    model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor, questions: Dataset
) -> None:
    plain = evaluate(model, processor, questions, max_new_tokens=8, progress=False)
    model.generation_config.update(do_sample=True, repetition_penalty=3.0, temperature=1.7, top_k=2)
    assert evaluate(model, processor, questions, max_new_tokens=8, progress=False) == plain


def test_picture_tokens_are_never_answered(
    model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor, questions: Dataset
) -> None:
    wanted = model.config.image_token_id
    rows, _ = model.get_output_embeddings().weight.shape
    bias = torch.zeros(rows).index_fill(0, torch.tensor([wanted]), 1e4)
    hook = model.get_output_embeddings().register_forward_hook(lambda module, args, out: out + bias)
    try:
        scores = evaluate(model, processor, questions.select([0]), max_new_tokens=4, progress=False)
    finally:
        hook.remove()
    assert scores.num_truncated == 1
    decoding = greedy_decoding(model, processor, 4)
    assert {wanted, model.config.video_token_id, model.config.vision_start_token_id} <= {*decoding.suppress_tokens}
    assert "<|image_pad|>" not in processor.decode(processor.tokenizer(scores.answers[0]["completion"]).input_ids)


def test_a_response_that_ends_is_not_truncated(
    model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor, questions: Dataset
) -> None:
    end = processor.tokenizer.eos_token_id
    rows, _ = model.get_output_embeddings().weight.shape
    bias = torch.zeros(rows).index_fill(0, torch.tensor([end]), 1e4)
    hook = model.get_output_embeddings().register_forward_hook(lambda module, args, out: out + bias)
    try:
        scores = evaluate(model, processor, questions, max_new_tokens=4, progress=False)
    finally:
        hook.remove()
    assert (scores.num_truncated, scores.num_unanswered) == (0, 5)


def test_an_empty_set_is_an_error(
    model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor, questions: Dataset
) -> None:
    with pytest.raises(ValueError, match="empty"):
        evaluate(model, processor, questions.select([]))
