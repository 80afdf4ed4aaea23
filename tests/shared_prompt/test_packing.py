"""Packed rows against a plan that is written token by token, over random ragged groups."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from vgpo.shared_prompt import Packing, pack_prompts

PICTURE = 7  # a token that stands for a picture, never the last one of a prompt
LEFT, RIGHT = 900, 901  # what stands where rows are padded


@dataclass(frozen=True)
class Batch:
    """Ragged rows, and the same rows padded.

    Args:
        prompt_of_row: the number of each row's prompt.
        prompts: token ids of each row's prompt; equal for rows of one number.
        responses: token ids of each row's response, no two of them equal in the whole batch.
        input_ids: (B, P + T).
        attention_mask: (B, P + T).
        width: P.
    """

    prompt_of_row: list[int]
    prompts: list[list[int]]
    responses: list[list[int]]
    input_ids: Tensor
    attention_mask: Tensor
    width: int

    def packing(self) -> Packing:
        return pack_prompts(self.attention_mask, self.width, self.prompt_of_row)


def batch_of(prompt_of_row: list[int], prompt_lengths: list[int], response_lengths: list[int]) -> Batch:
    """Rows with tokens that can be told apart; every second token of a prompt stands for a picture."""
    prompts = [
        [100 * (1 + number) + place if (length - place) % 2 else PICTURE for place in range(length)]
        for number, length in enumerate(prompt_lengths)
    ]
    of_rows = [prompts[number] for number in prompt_of_row]
    responses = [[1000 * (1 + row) + i for i in range(length)] for row, length in enumerate(response_lengths)]
    P, T = max(map(len, of_rows)), max(map(len, responses)) + 1
    ids, mask = [], []
    for prompt, response in zip(of_rows, responses, strict=True):
        left, right = P - len(prompt), T - len(response)
        ids.append([LEFT] * left + prompt + response + [RIGHT] * right)
        mask.append([0] * left + [1] * (len(prompt) + len(response)) + [0] * right)
    return Batch(prompt_of_row, of_rows, responses, torch.tensor(ids), torch.tensor(mask), P)


def random_batch(seed: int) -> Batch:
    """One to nine rows of up to four prompts, in any order; some responses have one token or none."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int, count: int) -> list[int]:
        return torch.randint(low, high, (count,), generator=generator).tolist()

    [num_prompts], [num_rows] = draw(1, 5, 1), draw(1, 10, 1)
    return batch_of(draw(0, num_prompts, num_rows), draw(1, 8, num_prompts), draw(0, 6, num_rows))


BATCHES = {
    **{f"random-{seed}": random_batch(seed) for seed in range(20)},
    "apart": batch_of([0, 1, 0, 1, 0], [5, 3], [2, 4, 1, 3, 5]),
    "one-group": batch_of([0, 0, 0], [4], [3, 1, 2]),
    "one-row": batch_of([0], [4], [3]),
    "sizes": batch_of([1, 0, 0, 0, 2, 2], [2, 7, 4], [1, 2, 3, 4, 5, 6]),
    "one-token-prompts": batch_of([0, 0, 1], [1, 1], [2, 3, 1]),
    "one-token-responses": batch_of([0, 0, 1, 1], [3, 5], [1, 1, 1, 1]),
    "no-responses": batch_of([0, 0, 1, 1], [3, 5], [0, 2, 0, 0]),
}


@pytest.fixture(params=BATCHES.values(), ids=BATCHES)
def batch(request: pytest.FixtureRequest) -> Batch:
    return request.param


def naive_rows(batch: Batch) -> dict[int, list[int]]:
    """Tokens of each packed row, by the number of its prompt."""
    packed: dict[int, list[int]] = {}
    for number, prompt, response in zip(batch.prompt_of_row, batch.prompts, batch.responses, strict=True):
        packed.setdefault(number, prompt[:-1]).extend([prompt[-1], *response])
    return packed


def test_packed_rows_hold_the_prompt_once_and_then_every_response(batch: Batch) -> None:
    packing = batch.packing()
    packed = packing.pack(batch.input_ids)
    expected = naive_rows(batch)
    assert packing.layout.length == packed.shape[1] == max(map(len, expected.values()))
    for tokens, mask, row in zip(packed.tolist(), packing.attention_mask.tolist(), expected.values(), strict=True):
        assert tokens[: len(row)] == row
        assert mask == [1] * len(row) + [0] * (len(mask) - len(row))


def test_owners_have_the_prompts_of_their_rows(batch: Batch) -> None:
    first = {number: batch.prompt_of_row.index(number) for number in dict.fromkeys(batch.prompt_of_row)}
    assert batch.packing().representative_rows == list(first.values())


def test_unpacking_finds_every_token_of_every_response(batch: Batch) -> None:
    packing = batch.packing()
    packed = packing.pack(batch.input_ids)
    rows, responses = packing.unpack(packed), packing.responses_of(packed)
    assert rows.shape == (len(batch.responses), 1 + batch.input_ids.shape[1] - batch.width)
    assert torch.equal(responses, rows[:, 1:])
    for found, prompt, response in zip(rows.tolist(), batch.prompts, batch.responses, strict=True):
        assert found[: 1 + len(response)] == [prompt[-1], *response]


def test_unpacking_keeps_features_together(batch: Batch) -> None:
    packing = batch.packing()
    packed = packing.pack(batch.input_ids)
    features = torch.stack([packed, -packed, 2 * packed], dim=-1)
    rows = packing.unpack(packed)
    assert torch.equal(packing.unpack(features), torch.stack([rows, -rows, 2 * rows], dim=-1))


def test_padding_never_holds_a_picture(batch: Batch) -> None:
    packing = batch.packing()
    padding = packing.attention_mask == 0
    tokens = packing.pack(batch.input_ids)[padding]
    assert not torch.isin(tokens, torch.tensor([PICTURE, LEFT, RIGHT])).any()
    # It belongs to the response of the row, not to the part in front of it.
    assert (packing.pack(batch.attention_mask)[padding] == 1).all()


def test_positions_without_elder_tokens_are_those_of_separate_rows(batch: Batch) -> None:
    packing = batch.packing()
    of_rows = (batch.attention_mask.cumsum(1) - 1).clamp(min=0)
    positions = torch.arange(packing.layout.length) - packing.tokens_of_earlier_responses
    tokens = packing.attention_mask.bool()
    assert torch.equal(positions[tokens], packing.pack(of_rows)[tokens])
    assert (packing.tokens_of_earlier_responses[~tokens] == 0).all()


def test_the_layout_counts_the_same_tokens(batch: Batch) -> None:
    layout = batch.packing().layout
    numbers = list(dict.fromkeys(batch.prompt_of_row))
    lengths = {number: len(prompt) - 1 for number, prompt in zip(batch.prompt_of_row, batch.prompts, strict=True)}
    stretches = {number: [] for number in numbers}
    for number, response in zip(batch.prompt_of_row, batch.responses, strict=True):
        stretches[number].append(1 + len(response))
    assert layout.prompt_lengths == tuple(lengths[number] for number in numbers)
    assert layout.response_lengths == tuple(tuple(stretches[number]) for number in numbers)


def test_names_of_prompts_do_not_matter(batch: Batch) -> None:
    renamed = [10**12 - 7 * number for number in batch.prompt_of_row]
    other = pack_prompts(batch.attention_mask, batch.width, renamed)
    packing = batch.packing()
    assert torch.equal(other.source, packing.source)
    assert torch.equal(other.responses, packing.responses)
    assert other.layout == packing.layout


def test_the_lengths_are_read_in_one_go(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reading makes a GPU wait."""
    reads = []
    for name in ("tolist", "item", "__bool__", "__int__", "__float__", "__index__", "nonzero"):
        method = getattr(Tensor, name)
        monkeypatch.setattr(
            Tensor,
            name,
            lambda tensor, *args, name=name, method=method: (reads.append(name), method(tensor, *args))[1],
        )
    packing = batch.packing()
    assert reads == ["tolist"]
    packed = packing.pack(batch.input_ids)
    packing.unpack(packed)
    packing.pack_inputs(nn.Identity(), (), {})
    assert reads == ["tolist"]
