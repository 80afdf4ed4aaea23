"""The recorder agrees with hidden states that are computed apart, under everything that may wrap a model."""

import gc

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch import nn

from vgpo.focus import decoder_of, record_similarity, visual_token_ids, visual_token_mask
from vgpo.toy.model import build_model, build_processor

RESPONSE = 5


@pytest.fixture(scope="module")
def processor():
    return build_processor()


@pytest.fixture
def model(processor):
    return build_model(processor.tokenizer, seed=3)


@pytest.fixture(scope="module")
def inputs(processor):
    """Two rows of different prompt length and image size, left-padded, each with five more tokens."""
    texts, pictures = [], []
    for i, question in enumerate(["What", "What is the largest digit"]):
        content = [{"type": "image"}, {"type": "text", "text": question}]
        texts.append(processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True))
        pictures.append([Image.new("RGB", (56, 28 * (i + 1)), (200 * i, 50, 90))])
    batch = processor(text=texts, images=pictures, padding=True, return_tensors="pt")
    response = torch.randint(10, 40, (2, RESPONSE), generator=torch.Generator().manual_seed(0))
    batch["input_ids"] = torch.cat([batch["input_ids"], response], dim=1)
    batch["attention_mask"] = torch.cat([batch["attention_mask"], torch.ones_like(response)], dim=1)
    batch["mm_token_type_ids"] = torch.cat([batch["mm_token_type_ids"], torch.zeros_like(response)], dim=1)
    return dict(batch)


def visual_mask_of(model, inputs):
    prompt = inputs["input_ids"][:, :-RESPONSE]
    return visual_token_mask(prompt, visual_token_ids(model.config))


def naive_similarity(model, inputs):
    """Loops over the public hidden states of a second forward pass."""
    with torch.no_grad():
        hidden = model(**inputs, output_hidden_states=True).hidden_states[-1].double()
    image_id = model.config.image_token_id
    rows = []
    for ids, states in zip(inputs["input_ids"], hidden, strict=True):
        picture = [h for token, h in zip(ids[:-RESPONSE].tolist(), states, strict=False) if token == image_id]
        mean = sum(picture) / len(picture)
        rows.append([float(h @ mean / (h.norm() * mean.norm())) for h in states[-RESPONSE:]])
    return torch.tensor(rows)


def naive_predicting(model, inputs):
    """The same of the states that predict the response: one row at a time, without padding, one token earlier."""
    rows = []
    for i, kept in enumerate(inputs["attention_mask"].bool()):
        row = processor_row(inputs, i)
        row |= {name: row[name][:, kept] for name in ("input_ids", "attention_mask", "mm_token_type_ids")}
        with torch.no_grad():
            states = model(**row, output_hidden_states=True).hidden_states[-1][0].double()
        mean = states[row["input_ids"][0] == model.config.image_token_id].mean(0)
        rows.append([float(h @ mean / (h.norm() * mean.norm())) for h in states[-RESPONSE - 1 : -1]])
    return torch.tensor(rows)


def recorded(model, inputs, forward=None):
    with record_similarity(model, visual_mask_of(model, inputs)) as recorder:
        (forward or model)(**inputs)
    return recorder.similarity


def test_agrees_with_loops_over_output_hidden_states(model, inputs):
    torch.testing.assert_close(recorded(model, inputs), naive_similarity(model, inputs), atol=1e-5, rtol=0)


def test_predicting_states_are_those_of_the_token_before_from_the_last_of_the_prompt_on(model, inputs):
    assert not inputs["attention_mask"].all(), "a padded prompt"
    with record_similarity(model, visual_mask_of(model, inputs)) as recorder:
        model(**inputs)
    predicting = recorder.predicting_similarity
    torch.testing.assert_close(predicting, naive_predicting(model, inputs), atol=1e-5, rtol=0)
    assert torch.equal(predicting[:, 1:], recorder.similarity[:, :-1])


def test_chunks_of_rows_join(model, processor, inputs):
    single = [processor_row(inputs, i) for i in range(2)]
    with record_similarity(model, visual_mask_of(model, inputs)) as recorder:
        for row in single:
            model(**row)
    torch.testing.assert_close(recorder.similarity, recorded(model, inputs), atol=1e-5, rtol=0)


def processor_row(inputs, i):
    """Row i alone, with its own pixels."""
    patches = inputs["image_grid_thw"].prod(-1).tolist()
    start = sum(patches[:i])
    pixels = {"pixel_values": inputs["pixel_values"][start : start + patches[i]]}
    return {name: value[i : i + 1] for name, value in inputs.items() if name != "pixel_values"} | pixels


def test_under_gradient_checkpointing_and_backward(model, inputs):
    plain = recorded(model, inputs)
    model.train()
    model.gradient_checkpointing_enable()
    with record_similarity(model, visual_mask_of(model, inputs)) as recorder:
        loss = model(**inputs, use_cache=False).logits.float().square().mean()
    loss.backward()
    torch.testing.assert_close(recorder.similarity, plain, atol=1e-5, rtol=0)
    torch.testing.assert_close(recorder.predicting_similarity, naive_predicting(model, inputs), atol=1e-5, rtol=0)
    assert not recorder.columns.requires_grad
    assert any(p.grad is not None for p in model.parameters())


def test_under_peft(model, inputs):
    plain = recorded(model, inputs)
    peft_model = get_peft_model(model, LoraConfig(target_modules=["q_proj"], r=2))
    torch.testing.assert_close(recorded(peft_model, inputs), plain, atol=1e-5, rtol=0)


def test_under_autocast_stays_float32(model, inputs, device):
    model.to(device)
    inputs = {name: value.to(device) for name, value in inputs.items()}
    with torch.autocast(device.type, dtype=torch.bfloat16):
        similarity = recorded(model, inputs)
    assert similarity.dtype == torch.float32
    torch.testing.assert_close(similarity.cpu(), naive_similarity(model, inputs), atol=0.03, rtol=0)


@pytest.mark.filterwarnings("ignore")  # the compiler warns about what it touches itself
@pytest.mark.parametrize("in_place", [True, False])
def test_with_a_compiled_decoder(model, inputs, in_place, device):
    model.to(device)
    inputs = {name: value.to(device) for name, value in inputs.items()}
    plain = recorded(model, inputs)
    # On a CPU without a C++ compiler inductor cannot run; on CUDA its fused kernels round in other places.
    backend, atol = ("eager", 1e-5) if device.type == "cpu" else ("inductor", 1e-4)
    if in_place:
        model.get_decoder().compile(backend=backend)
    else:
        model.model.language_model = torch.compile(model.get_decoder(), backend=backend)
    torch.testing.assert_close(recorded(model, inputs), plain, atol=atol, rtol=0)


def test_nothing_of_hidden_size_stays_alive_and_the_hook_is_gone(model, inputs):
    with torch.no_grad(), record_similarity(model, visual_mask_of(model, inputs)) as recorder:
        model(**inputs)
        gc.collect()
        size = inputs["input_ids"].shape[1] * 128
        parameters = {id(p) for p in [*model.parameters(), *model.buffers()]}
        alive = [
            t.shape for t in gc.get_objects()
            if type(t) is torch.Tensor and id(t) not in parameters
            and t.is_floating_point() and t.numel() >= size and t.shape[-1] == 128
        ]  # fmt: skip
    assert alive == []
    assert recorder.similarity.shape == (2, RESPONSE)
    assert not decoder_of(model)._forward_hooks


def test_rows_that_never_came_are_an_error(model, inputs):
    with record_similarity(model, visual_mask_of(model, inputs)) as recorder:
        model(**processor_row(inputs, 0))
    with pytest.raises(RuntimeError, match="ran on 1 of 2 rows"):
        _ = recorder.similarity


def test_rows_that_nobody_announced_are_an_error(model, inputs):
    with (
        pytest.raises(RuntimeError, match="more rows than the 1"),
        record_similarity(model, visual_mask_of(model, inputs)[:1]),
    ):
        model(**inputs)


def test_a_model_without_a_decoder_is_refused():
    with pytest.raises(ValueError, match=r"Linear has no get_decoder\(\)"):
        decoder_of(nn.Linear(2, 2))
