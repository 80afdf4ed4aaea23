"""Shared prompts of every family against one model call per row without padding, on the CPU and on CUDA."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BatchFeature, PreTrainedModel
from trl.trainer.utils import add_fused_lm_head

from tests.devices import on_cuda
from tests.families.build import LoadFamily, encode_prompts, picture
from vgpo.focus import visual_token_ids
from vgpo.policy.prompts import EncodedPrompt, encoded_prompt
from vgpo.policy.scoring import Rows, score_rows
from vgpo.shared_prompt import PROVEN, why_not_shared
from vgpo.shared_prompt.families import structural_obstacle

pytest_plugins = ["tests.families.fixtures"]

# Two images; one image alone, in tiles where the family has them; none.
PROMPTS = [
    ("How many are there now?", [picture(56, 84, seed=1), picture(28, 56, seed=2)]),
    ("What is it", [picture(112, 56, seed=3)]),
    ("Why?", []),
]
# Rows of a group need not be adjacent.
PROMPT_OF_ROW = [0, 1, 0, 2, 1, 0, 2]
# Response tokens of each row. One row has a single token, one none, as where a truncated rollout is masked.
LENGTHS = [7, 4, 1, 3, 0, 5, 6]
WIDTH = 8
ROWS = range(len(LENGTHS))
# The padding of prompts: a byte like any other.
POISON = 256
# Tokens that the policy did not sample, such as a tool's output: row and first column.
TOOL_TAIL = (5, 3)


class Limits(NamedTuple):
    """How far float32 may be from separate rows: outputs by their largest difference, gradients by their norm."""

    outputs: float
    gradients: float


# CUDA's kernels sum in other orders for other shapes, and its exponential is approximate.
LIMITS = {"cpu": Limits(1e-5, 1e-4), "cuda": Limits(5e-5, 5e-4)}
# The chunked rule of linear attention rounds more, in separate padded rows as well: test_float64.py shows what it is.
LINEAR = Limits(1e-4, 2e-3)
# bf16 rounds to 8 bits in every layer, whose errors differ by chance: shared prompts may err this many times as much
# as separate rows do. A token that attends to a wrong one errs ten times as much.
BF16_EXCESS = 2


@dataclass(frozen=True)
class Outputs:
    """Of each response token, (B, T), 0 where masked: log-probability, entropy and similarity to the images."""

    logprobs: Tensor
    entropy: Tensor
    similarity: Tensor
    predicting: Tensor


@dataclass(frozen=True)
class Case:
    """A model, a micro-batch of ragged groups, and what separate rows give.

    Args:
        encoded: the prompts.
        responses: (B, T) token ids, with tokens that must not matter where `mask` is False.
        mask: bool (B, T).
        weights: (B, T), of the log-probabilities in the scalar that is differentiated.
        expected: the outputs of separate rows.
        gradients: that scalar's gradient by parameter, out of separate rows.
        positions: the position ids of each separate row, (..., L).
    """

    model: PreTrainedModel
    encoded: list[EncodedPrompt]
    responses: Tensor
    mask: Tensor
    weights: Tensor
    expected: Outputs
    gradients: dict[str, Tensor]
    positions: list[Tensor]


def separate_row(model: PreTrainedModel, prompt: BatchFeature, response: Tensor) -> tuple[Tensor, ...]:
    """The `Outputs` of each token of `response` (T,) after one prompt."""
    inputs = {**prompt, "input_ids": torch.cat([prompt["input_ids"][0], response])[None]}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if "mm_token_type_ids" in prompt:
        inputs["mm_token_type_ids"] = F.pad(prompt["mm_token_type_ids"], (0, len(response)))
    states = []
    handle = model.get_decoder().register_forward_hook(lambda *call: states.append(call[-1].last_hidden_state[0]))
    logits = model(**inputs, use_cache=False).logits[0]
    handle.remove()

    start = prompt["input_ids"].shape[1]
    distribution = logits[start - 1 : -1].float().log_softmax(-1)
    logprobs = distribution.gather(-1, response[:, None])[:, 0]
    entropy = -(distribution.exp() * distribution).sum(-1)
    visual = prompt["input_ids"][0] == model.config.image_token_id
    if not visual.any():
        return logprobs, entropy, torch.zeros_like(logprobs), torch.zeros_like(logprobs)
    hidden = states[0].float()
    similarity = F.cosine_similarity(hidden[start - 1 :], hidden[:start][visual].mean(0), dim=-1)
    return logprobs, entropy, similarity[1:], similarity[:-1]


def record_positions(model: PreTrainedModel) -> tuple[list[Tensor], Any]:
    """Position ids that reach the rotary embedding of the text decoder, call by call, and the hook's handle."""
    calls: list[Tensor] = []

    def note(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(kwargs["position_ids"] if "position_ids" in kwargs else args[1])

    return calls, model.get_decoder().rotary_emb.register_forward_pre_hook(note, with_kwargs=True)


def gradients_of(model: PreTrainedModel) -> dict[str, Tensor]:
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return gradients


def separate_rows(
    model: PreTrainedModel, prompts: list[BatchFeature], responses: Tensor, mask: Tensor, weights: Tensor
) -> tuple[Outputs, dict[str, Tensor], list[Tensor]]:
    """Outputs, gradients and position ids of one model call per row."""
    positions, handle = record_positions(model)
    outputs = torch.zeros(4, *responses.shape, device=responses.device)
    for row, prompt in enumerate(PROMPT_OF_ROW):
        values = separate_row(model, prompts[prompt], responses[row, mask[row]])
        if mask[row].any():
            (values[0] * weights[row, mask[row]]).sum().backward()
            outputs[:, row, mask[row]] = torch.stack(values).detach()
    handle.remove()
    per_row = len(positions) // len(PROMPT_OF_ROW)  # Gemma 3 has several rotary embeddings
    return Outputs(*outputs), gradients_of(model), positions[::per_row]


def build_case(load_family: LoadFamily, family: str, device: torch.device, dtype: torch.dtype) -> Case:
    model, processor = load_family(family)
    model.to(device, dtype)
    prompts = [cast(prompt, dtype) for prompt in encode_prompts(processor, PROMPTS)]
    encoded = [encoded_prompt(prompt["input_ids"][0].tolist(), None, prompt, device) for prompt in prompts]
    generator = torch.Generator().manual_seed(5)
    # Bytes come last in the vocabulary: no token of a response stands for an image.
    size = len(processor.tokenizer)
    responses = torch.randint(size - 256, size, (len(ROWS), WIDTH), generator=generator)
    mask = torch.arange(WIDTH) < torch.tensor(LENGTHS)[:, None]
    weights = torch.randn(mask.shape, generator=generator) * mask
    weights[TOOL_TAIL[0], TOOL_TAIL[1] :] = 0
    responses, mask, weights = (tensor.to(device) for tensor in (responses, mask, weights))
    reference = separate_rows(model, [prompt.to(device) for prompt in prompts], responses, mask, weights)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    return Case(model, encoded, responses, mask, weights, *reference)


def cast(prompt: BatchFeature, dtype: torch.dtype) -> BatchFeature:
    """A prompt whose pixels have the model's precision, which not all models give them."""
    return BatchFeature(
        {name: value.to(dtype) if value.is_floating_point() else value for name, value in prompt.items()}
    )


@pytest.fixture(
    scope="module",
    params=[
        *(pytest.param((family, torch.device("cpu")), id=family) for family in PROVEN),
        *(on_cuda((family, torch.device("cuda")), id=f"{family}-cuda") for family in PROVEN),
    ],
)
def case(request: pytest.FixtureRequest, load_family: LoadFamily) -> Case:
    return build_case(load_family, *request.param, torch.float32)


def padded(case: Case, responses: Tensor, rows: Sequence[int]) -> Rows:
    """Some rows as a trainer has them: prompts padded on the left, responses on the right."""
    prompts = [case.encoded[PROMPT_OF_ROW[row]] for row in rows]
    width = max(len(prompt.token_ids) for prompt in prompts)
    shorts = [width - len(prompt.token_ids) for prompt in prompts]
    ids = torch.tensor([[POISON] * short + prompt.token_ids for prompt, short in zip(prompts, shorts, strict=True)])
    in_prompt = torch.arange(width) >= torch.tensor(shorts)[:, None]
    ids, in_prompt = ids.to(responses.device), in_prompt.to(responses.device)
    input_ids = torch.cat([ids, responses[list(rows)]], dim=1)
    return Rows(input_ids, torch.cat([in_prompt, case.mask[list(rows)]], dim=1).long(), width, prompts)


def shared_rows(case: Case, responses: Tensor, rows: Sequence[int] = ROWS) -> Outputs:
    """The outputs of some rows out of one call in which they share their prompts."""
    token_ids = visual_token_ids(case.model.config)
    scores = score_rows(case.model, padded(case, responses, rows), token_ids, share=True, similarity=True)
    masked = ~case.mask[list(rows)]
    similarities = (scores.similarity, scores.predicting_similarity)
    return Outputs(scores.log_probs, scores.entropy, *(values.masked_fill(masked, 0.0) for values in similarities))


def limits_of(model: PreTrainedModel) -> Limits:
    return LINEAR if model.config.model_type.startswith("qwen3_5") else LIMITS[model.device.type]


def assert_outputs(case: Case, outputs: Outputs, expected: Outputs, rows: Sequence[int] = ROWS) -> None:
    atol = limits_of(case.model).outputs
    for name, value in vars(outputs).items():
        torch.testing.assert_close(value, getattr(expected, name)[list(rows)], rtol=0, atol=atol, msg=name)


def test_outputs_are_those_of_separate_rows(case: Case) -> None:
    outputs = shared_rows(case, case.responses)
    assert_outputs(case, outputs, case.expected)


@pytest.mark.parametrize("prompt", range(len(PROMPTS)))
def test_a_group_alone_gives_the_same(case: Case, prompt: int) -> None:
    rows = [row for row in ROWS if PROMPT_OF_ROW[row] == prompt]
    outputs = shared_rows(case, case.responses, rows)
    assert_outputs(case, outputs, case.expected, rows)


@pytest.fixture(params=[False, True], ids=["stored", "checkpointed"])
def checkpointing(request: pytest.FixtureRequest, case: Case) -> Iterator[None]:
    """Activations of the decoder and the vision tower are stored, or computed again on the way back."""
    if request.param:
        case.model.gradient_checkpointing_enable({"use_reentrant": False})
        case.model.train()
    yield
    case.model.gradient_checkpointing_disable()
    case.model.eval()


@pytest.mark.usefixtures("checkpointing")
def test_every_gradient_is_that_of_separate_rows(case: Case) -> None:
    outputs = shared_rows(case, case.responses)
    (outputs.logprobs * case.weights).sum().backward()
    gradients = gradients_of(case.model)
    assert gradients.keys() == case.gradients.keys()
    assert any("vis" in name for name in gradients)
    # A key bias of a vision tower with learnt positions has no gradient but rounding: softmax does not feel it.
    errors = {
        name: float((gradients[name] - expected).norm() / expected.norm().clamp(min=1e-2))
        for name, expected in case.gradients.items()
    }
    limit = limits_of(case.model).gradients
    worst = max(errors, key=errors.__getitem__)
    assert errors[worst] <= limit, (worst, errors[worst])


@pytest.mark.parametrize("family", PROVEN)
def test_bf16_errs_no_more_than_separate_rows(family: str, device: torch.device, load_family: LoadFamily) -> None:
    exact, half = (build_case(load_family, family, device, dtype) for dtype in (torch.float32, torch.bfloat16))
    outputs = shared_rows(half, half.responses)
    (outputs.logprobs * half.weights).sum().backward()
    gradients = gradients_of(half.model)
    for name, value in vars(outputs).items():
        reference, separate = getattr(exact.expected, name), getattr(half.expected, name)
        assert (value - reference).norm() <= BF16_EXCESS * (separate - reference).norm(), name
    assert gradients.keys() == exact.gradients.keys()
    for name, reference in exact.gradients.items():
        usual = (half.gradients[name] - reference).norm() + 1e-2 * reference.norm().clamp(min=1)
        assert (gradients[name] - reference).norm() <= BF16_EXCESS * usual, name


def test_positions_are_those_of_separate_rows(case: Case) -> None:
    calls, handle = record_positions(case.model)
    shared_rows(case, case.responses)
    handle.remove()
    prompts, responses = axes(calls[0]), axes(calls[-1])
    for number, prompt in enumerate(case.encoded):
        expected = axes(case.positions[PROMPT_OF_ROW.index(number)])[:, 0]
        length = len(prompt.token_ids) - 1
        found = prompts[:, number if prompts.shape[1] > 1 else 0, prompts.shape[-1] - length :]
        # Rotary positions are relative: where a decoder counts columns, padding shifts all of a row.
        shift = found[0, 0] - expected[0, 0]
        assert torch.equal(found - shift, expected[:, :length].expand(len(found), -1))
        for row in (row for row in ROWS if PROMPT_OF_ROW[row] == number):
            expected = axes(case.positions[row])[:, 0]
            found = responses[:, row, : 1 + LENGTHS[row]]
            assert torch.equal(found - shift, expected[:, length:].expand(len(found), -1))


def axes(positions: Tensor) -> Tensor:
    """Position ids as (A, n, L): one axis, or those of time, height and width."""
    return positions.view(-1, positions.shape[-2], positions.shape[-1])


@pytest.mark.parametrize("changed", [0, 3, 5])
def test_a_row_feels_nothing_of_its_siblings(case: Case, changed: int) -> None:
    responses = case.responses.clone()
    responses[changed] = responses[changed].flip(0)
    with torch.no_grad():
        before = shared_rows(case, case.responses)
        after = shared_rows(case, responses)
    others = [row for row in ROWS if row != changed]
    for name, value in vars(after).items():
        assert torch.equal(value[others], getattr(before, name)[others]), name
    assert not torch.equal(after.logprobs[changed], before.logprobs[changed])


@pytest.mark.parametrize("family", PROVEN)
def test_proven_families_are_taken(family: str, load_family: LoadFamily) -> None:
    assert why_not_shared(load_family(family)[0]) is None


def test_an_unknown_family_is_refused(load_family: LoadFamily) -> None:
    model, _ = load_family("qwen2_vl")
    model.config.model_type = "surprise"
    reason = why_not_shared(model)
    assert "'surprise'" in reason
    assert "qwen2_vl" in reason


@pytest.mark.parametrize(
    ("setting", "value", "reason"),
    [
        ("layer_types", ["full_attention", "chunked_attention", "full_attention"], "chunked_attention"),
        ("attention_dropout", 0.25, "attention_dropout=0.25"),
    ],
)
def test_what_would_change_the_result_is_refused(
    setting: str, value: Any, reason: str, load_family: LoadFamily
) -> None:
    model, _ = load_family("qwen2_vl")
    setattr(model.config.get_text_config(decoder=True), setting, value)
    assert reason in why_not_shared(model)


def test_a_decoder_without_a_list_of_layers_is_refused(load_family: LoadFamily) -> None:
    model, _ = load_family("qwen2_vl")
    decoder = model.get_decoder()
    decoder.blocks = decoder._modules.pop("layers")
    assert "no list of modules named 'layers'" in why_not_shared(model)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ({"sliding_window": 8}, None),
        ({"layer_types": ["linear_attention", "sliding_attention", "full_attention"]}, None),
        ({"layer_types": ["chunked_attention", "full_attention"]}, "layers of the kinds chunked_attention"),
        ({"attn_logit_softcapping": 50.0}, None),
        ({"attention_dropout": 0.1}, "attention_dropout=0.1"),
    ],
)
def test_structure_alone_refuses_what_sharing_cannot_compute(text: dict[str, object], reason: str | None) -> None:
    found = structural_obstacle(text)
    assert (found is None) == (reason is None)
    assert reason is None or reason in found
