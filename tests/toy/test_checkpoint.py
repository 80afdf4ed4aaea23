import json
import re

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from vgpo.toy import TaskSettings, checkpoint_path, draw_question, load_scans, render
from vgpo.toy.model import build_processor, build_tokenizer
from vgpo.toy.warmstart import Encoder

SETTINGS = TaskSettings()


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(checkpoint_path())


@pytest.fixture(scope="module")
def model():
    return AutoModelForImageTextToText.from_pretrained(checkpoint_path())


@pytest.fixture(scope="module")
def questions():
    scans, rng = load_scans("test"), np.random.default_rng(1)
    return scans, [draw_question(rng, scans, SETTINGS) for _ in range(40)]


def processed(processor, scans, questions):
    """Model inputs by the processor alone, from images and chat messages."""
    messages = [
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": q.problem.removeprefix("<image>")}]}]
        for q in questions
    ]
    texts = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    images = [[render(question, scans)] for question in questions]
    return processor(text=texts, images=images, padding=True, return_tensors="pt")


def test_weights_are_small(model):
    assert (checkpoint_path() / "model.safetensors").stat().st_size <= 8_000_000
    assert sum(parameter.numel() for parameter in model.parameters()) <= 3_000_000


def test_checkpoint_is_qwen2_5_vl(model, processor):
    assert type(model).__name__ == "Qwen2_5_VLForConditionalGeneration"
    assert type(processor).__name__ == "Qwen2_5_VLProcessor"
    assert model.generation_config.eos_token_id == processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert model.config.image_token_id == processor.image_token_id


def test_stored_tokenizer_is_the_one_built(processor):
    assert processor.tokenizer.get_vocab() == build_tokenizer().get_vocab()


def test_prompt_has_the_real_turn_format_and_one_token_per_cell(processor, questions):
    scans, drawn = questions
    inputs = processed(processor, scans, drawn[:1])
    text = processor.tokenizer.decode(inputs["input_ids"][0])
    picture = "<|vision_start|>" + "<|image_pad|>" * 9 + "<|vision_end|>"
    problem = drawn[0].problem.removeprefix("<image>")
    assert text == f"<|im_start|>user\n{picture}{problem}<|im_end|>\n<|im_start|>assistant\n"


def test_greedy_answers_have_the_format_and_a_fair_share_are_right(model, processor, questions):
    scans, drawn = questions
    inputs = processed(processor, scans, drawn)
    output = model.generate(**inputs, max_new_tokens=40)
    texts = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    found = [re.fullmatch(r"<think>row .+</think>\\boxed\{(\d+)\}", text) for text in texts]
    assert sum(match is not None for match in found) >= 36
    right = [m is not None and m[1] == q.answer for m, q in zip(found, drawn, strict=True)]
    assert 0.2 <= sum(right) / len(right) <= 0.75  # 30 to 60 % over 400 questions


def test_encoder_gives_what_the_processor_gives(questions):
    scans, drawn = questions
    processor = build_processor()
    expected = processed(processor, scans, drawn[:8])
    inputs, _ = Encoder(processor, scans).encode(drawn[:8])
    assert set(inputs) == set(expected)
    for name, tensor in inputs.items():
        torch.testing.assert_close(tensor, expected[name], check_dtype=False)


def test_log_lies_beside_the_weights():
    log = json.loads((checkpoint_path() / "warmstart.json").read_text(encoding="utf-8"))
    last = log["records"][-1]
    assert last["stage"] == "forget"
    assert 0.3 <= last["accuracy"]["all"] <= 0.6
    assert log["settings"]["num_questions"] >= 400
