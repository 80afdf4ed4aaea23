"""The probe: other images, where a response ends, and means over responses."""

from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from PIL import Image

from vgpo.evaluation.accuracy import evaluate
from vgpo.evaluation.grounding import (
    measure_grounding,
    sample_and_score,
    summarize_responses,
    with_blank_images,
    with_other_images,
)
from vgpo.focus import decoder_of, visual_token_ids
from vgpo.policy.generation import response_mask, sampled_decoding
from vgpo.toy.model import build_model, build_processor


def questions(*counts: int) -> list[dict]:
    """Questions with so many images each; image i of question n has the shade 10 n + i."""
    rows = []
    for n, count in enumerate(counts):
        text = "What is the largest digit" + " in the picture" * n
        content = [*[{"type": "image"}] * count, {"type": "text", "text": text}]
        pictures = [Image.new("L", (28 * (1 + n % 2), 28), 10 * n + i).convert("RGB") for i in range(count)]
        prompt = [{"role": "user", "content": content}]
        rows.append({"prompt": prompt, "images": pictures, "problem": text, "answer": "7"})
    return rows


def shades(rows: list[dict]) -> list[list[int]]:
    return [[picture.getpixel((0, 0))[0] for picture in row["images"]] for row in rows]


def test_blank_pictures_keep_their_sizes() -> None:
    rows = questions(1, 0, 2, 1)
    blank = with_blank_images(rows, [0, 2, 3])
    found = [blank[i] for i in range(len(blank))]
    assert [row["problem"] for row in found] == [rows[i]["problem"] for i in (0, 2, 3)]
    assert shades(found) == [[0], [0, 0], [0]]
    assert [row["images"][0].size for row in found] == [(28, 28), (28, 28), (56, 28)]


def test_other_pictures_are_those_of_the_next_question_with_as_many() -> None:
    other = with_other_images(questions(1, 2, 1, 0, 2, 3, 1))
    found = [other[i] for i in range(len(other))]
    # The only question with three images, and the one with none, are left out.
    assert shades(found) == [[20], [40, 41], [60], [10, 11], [0]]


def test_other_pictures_are_never_the_same_ones() -> None:
    rows = questions(1, 1, 1, 2)
    rows[1]["images"] = rows[0]["images"]  # two questions about one image
    other = with_other_images(rows)
    assert shades([other[i] for i in range(len(other))]) == [[20], [20], [0]]
    rows[2]["images"] = rows[0]["images"]
    assert len(with_other_images(rows)) == 0


def test_a_response_ends_with_its_first_end_token() -> None:
    responses = torch.tensor([[5, 9, 9, 4], [5, 6, 7, 4], [9, 5, 5, 8]])
    expected = [[True, True, False, False], [True] * 4, [True, False, False, False]]
    assert response_mask(responses, [9, 8]).tolist() == expected


def test_means_over_responses_by_hand() -> None:
    parts = [
        {"focus": torch.tensor([0.5, 0.7]), "entropy": torch.tensor([1.0, 0.0]), "visual": True},
        {"focus": torch.tensor([0.8, 0.4, 0.4, 0.2]), "entropy": torch.tensor([0.5, 0.5, 0.5, 0.5]), "visual": True},
    ]
    found = summarize_responses(parts)
    assert found.num_responses == 2
    assert found.length == 3.0
    assert found.entropy == pytest.approx(3.0 / 6)
    assert found.focus == pytest.approx(3.0 / 6)
    # (0.7 / 0.5 + 0.3 / 0.6) / 2
    assert found.late_early_ratio == pytest.approx(0.95)
    # Token i of T is in tenth 10 i // T: 0 and 5; 0, 2, 5 and 7.
    assert found.deciles == pytest.approx([0.65, None, 0.4, None, None, 0.55, None, 0.2, None, None])


def test_no_response_has_no_means() -> None:
    found = summarize_responses([])
    assert (found.num_responses, found.length, found.late_early_ratio) == (0, None, None)
    assert found.deciles == [None] * 10


def test_scores_are_those_of_a_plain_forward() -> None:
    processor = build_processor()
    model = build_model(processor.tokenizer, seed=3)
    from trl.trainer.utils import add_fused_lm_head

    add_fused_lm_head(model, temperature=0.5, outputs=("log_probs", "entropy"))
    rows = questions(1, 1)
    decoding = sampled_decoding(model, processor, max_new_tokens=6, temperature=0.5)
    options = {"seed": 1, "chat_template_kwargs": {}}
    both = sample_and_score(model, processor, rows, decoding, **options)
    again = sample_and_score(model, processor, rows, decoding, **options)
    assert all(torch.equal(a["focus"], b["focus"]) for a, b in zip(both, again, strict=True))

    # One row by itself, from hidden states and logits.
    (one,) = sample_and_score(model, processor, rows[:1], decoding, **options)
    content = [{"type": "image", "image": rows[0]["images"][0]}, rows[0]["prompt"][0]["content"][1]]
    inputs = processor.apply_chat_template(
        [[{"role": "user", "content": content}]], add_generation_prompt=True, tokenize=True, return_dict=True,
        return_tensors="pt",
    )  # fmt: skip
    torch.manual_seed(1)
    sequence = model.generate(**inputs, generation_config=decoding)
    width = inputs["input_ids"].shape[1]
    hidden: list[torch.Tensor] = []
    handle = decoder_of(model).register_forward_hook(lambda *args: hidden.append(args[2].last_hidden_state[0]))
    fields = {name: inputs[name] for name in ("pixel_values", "image_grid_thw")}
    with torch.no_grad():
        logits = model(input_ids=sequence, attention_mask=torch.ones_like(sequence), **fields).logits[0]
    handle.remove()
    visual = torch.isin(sequence[0], torch.tensor(visual_token_ids(model.config)))
    cosine = torch.cosine_similarity(hidden[0][width:], hidden[0][visual].mean(0)[None])
    length = len(one["focus"])
    assert one["focus"] == pytest.approx(((cosine + 1) / 2)[:length], abs=1e-5)
    log_probs = torch.log_softmax(logits[width - 1 : -1] / 0.5, -1)
    assert one["entropy"] == pytest.approx(-(log_probs.exp() * log_probs).sum(-1)[:length], abs=1e-4)
    assert one["visual"]


def test_a_probe_of_a_set_with_and_without_pictures() -> None:
    processor = build_processor()
    model = build_model(processor.tokenizer, seed=3)
    rows = Dataset.from_list(questions(1, 0, 1, 2))
    true = evaluate(model, processor, rows, max_new_tokens=4, progress=False)
    # Of the questions that have other images, the first is right.
    graded = [{**row, "correct": number in (0, 1, 3)} for number, row in enumerate(true.answers)]
    found = measure_grounding(model, processor, rows, replace(true, answers=graded), batch_size=2, max_new_tokens=4)
    assert {name: scores["num_questions"] for name, scores in found["accuracy"].items()} == {
        "true": 2, "blank": 2, "other": 2
    }  # fmt: skip
    assert found["accuracy"]["true"]["accuracy"] == 0.5
    responses = found["responses"]
    assert responses["all"]["num_responses"] == 4
    assert responses["correct"]["num_responses"] + responses["wrong"]["num_responses"] == 4
    text_only = measure_grounding(
        model, processor, Dataset.from_list(questions(0)), true, batch_size=2, max_new_tokens=4
    )
    assert text_only["accuracy"] == {"true": None, "blank": None, "other": None}
    assert text_only["responses"]["all"]["deciles"] == [None] * 10
