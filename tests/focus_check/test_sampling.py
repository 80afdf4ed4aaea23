"""Groups that are drawn: their states, their order, and what is refused."""

import pytest
import torch
from datasets import Dataset

from tests.evaluation.test_grounding import questions
from vgpo.focus import decoder_of, visual_token_ids
from vgpo.focus_check.records import FocusCheckError
from vgpo.focus_check.sampling import Samples, Sampling, sample_groups, similarities, strata_of
from vgpo.policy.generation import respond, sampled_decoding
from vgpo.policy.head import scoring_head
from vgpo.policy.prompts import encode
from vgpo.toy.model import build_model, build_processor


@pytest.fixture(scope="module")
def small() -> tuple:
    processor = build_processor()
    return build_model(processor.tokenizer, seed=3), processor


def sampling(**changed: object) -> Sampling:
    return Sampling(**{"samples": 3, "max_new_tokens": 5, "batch_size": 4, "chat_template_kwargs": {}, **changed})


def draw(small: tuple, rows: list[dict], **changed: object) -> Samples:
    return sample_groups(*small, Dataset.from_list(rows), sampling(**changed), progress=False)


@pytest.mark.parametrize("number", [1, 10])  # a prompt of two images, padded; the widest prompt, scored later
def test_states_are_those_of_a_plain_forward(small: tuple, number: int) -> None:
    model, processor = small
    prompts = [encode(processor, row, {}, model.device) for row in questions(1, 2, *[1] * 9)]
    responses = respond(model, prompts, sampled_decoding(model, processor, 6, 1.0), seed=1)
    with scoring_head(model):
        reading, predicting = similarities(model, responses.rows)
    kept = responses.rows.attention_mask[number].bool()
    ids, own = responses.rows.input_ids[number][kept], responses.mask[number]
    visual = torch.isin(ids, torch.tensor(visual_token_ids(model.config)))
    hidden: list[torch.Tensor] = []
    handle = decoder_of(model).register_forward_hook(lambda *args: hidden.append(args[2].last_hidden_state[0]))
    with torch.no_grad():
        model(input_ids=ids[None], mm_token_type_ids=visual[None].long(), **prompts[number].media)
    handle.remove()
    cosine = torch.cosine_similarity(hidden[0], hidden[0][visual].mean(0)[None])
    width = len(prompts[number].token_ids)
    assert reading[number][own] == pytest.approx(cosine[width:], abs=1e-5)
    assert predicting[number][own] == pytest.approx(cosine[width - 1 : -1], abs=1e-5)


def test_groups_are_in_order_whatever_the_batch(small: tuple) -> None:
    found = draw(small, questions(1, 0, 2, 1))
    assert found.rows == (0, 2, 3)
    assert found.without_image == 1
    assert found.question.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert found.mask.shape == found.similarity["reading"].shape == found.similarity["predicting"].shape
    assert found.mask[:, 0].all()
    assert found.blind_correct.shape == (3, 2)
    assert len(found.correct) == len(found.truncated) == 9


def test_a_seed_draws_the_same_again(small: tuple) -> None:
    rows = questions(1, 1)
    first, again, other = (draw(small, rows, seed=seed) for seed in (4, 4, 5))
    assert torch.equal(first.similarity["reading"], again.similarity["reading"])
    assert not (
        first.mask.shape == other.mask.shape and torch.equal(first.similarity["reading"], other.similarity["reading"])
    )


def test_a_response_at_the_limit_is_truncated(small: tuple) -> None:
    found = draw(small, questions(1, 1, 1), max_new_tokens=1)
    ends = found.truncated.logical_not()
    assert found.mask.shape == (9, 1)
    assert ends.sum() < 9  # of one random token hardly any is the end


def test_a_set_without_images_is_refused(small: tuple) -> None:
    with pytest.raises(FocusCheckError, match=r"none of the 2 rows has an image.*--limit"):
        draw(small, questions(0, 0))


def test_a_prompt_that_fills_the_context_is_named(small: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small[0].config.get_text_config(), "max_position_embeddings", 8)
    with pytest.raises(FocusCheckError, match=r"row 0 has a prompt of .* fewer than the 8 .*max-pixels"):
        draw(small, questions(1))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"samples": 1}, "--samples 1.*expected 2 or more"),
        ({"blind_samples": 0}, "--blind-samples 0: expected 1 or more"),
        ({"temperature": 0.0}, "--temperature 0.0: expected a number above 0"),
        ({"temperature": float("nan")}, "--temperature nan: expected a number above 0"),
    ],
)
def test_bad_settings_are_refused(changed: dict, message: str) -> None:
    with pytest.raises(FocusCheckError, match=message):
        sampling(**changed)


def test_strata_are_columns_or_fields_of_meta() -> None:
    rows = Dataset.from_dict(
        {"problem": ["a", "b"], "answer": ["1", "2"], "id": ["x", "y"], "meta": [{"level": 3}, {"level": None}]}
    )
    assert strata_of(rows, "id") == ["x", "y"]
    with pytest.raises(FocusCheckError, match="stratum_column='level': row 1 has no value"):
        strata_of(rows, "level")
    assert strata_of(rows.select([0]), "level") == ["3"]
    with pytest.raises(
        FocusCheckError, match=r"'levl' is not a column of the dataset .did you mean 'level'.*'id', 'meta', 'level'"
    ):
        strata_of(rows, "levl")
