"""Numbers of an inspection against naive loops, and what they must not depend on."""

import base64
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from datasets import Dataset
from PIL import Image

from tests.equations import naive
from tests.inspection.small import inspected, plain_states, read_by, rows, small_model
from vgpo.equations import VGPOSettings
from vgpo.evaluation.accuracy import evaluate
from vgpo.evaluation.grounding import with_blank_images, with_other_images
from vgpo.focus import decoder_of
from vgpo.inspection import Inspection, compute
from vgpo.inspection.compute import Inspector, Options, inspect, kind_of
from vgpo.inspection.patches import LAYOUTS
from vgpo.inspection.questions import Question, Stored
from vgpo.rewards import grade

RESPONSES = [[30, 31, 40, 90, 91, 7, 100], [60, 61, 62], [33, 200, 210, 40, 41]]


def patch_map(rollout: dict[str, Any]) -> torch.Tensor:
    """The map as its file describes it; (T, V)."""
    patches = rollout["patches"]
    levels = torch.frombuffer(bytearray(base64.b64decode(patches["data"])), dtype=torch.uint8)
    values = patches["low"] + (patches["high"] - patches["low"]) * levels.double() / 255
    return values.view(-1, patches["columns"])


@pytest.mark.parametrize(
    "settings", [VGPOSettings(), VGPOSettings(strength=2, gate_ratio=0.5, schedule="exponential")]
)
def test_numbers_are_those_of_naive_loops(settings: VGPOSettings) -> None:
    model, processor = small_model()
    (asked,) = rows(2)
    found = read_by(model, processor, asked, RESPONSES, settings=settings)["rollouts"]
    width = max(map(len, RESPONSES))
    similarity = torch.zeros(3, width, dtype=torch.float64)
    mask = torch.zeros(3, width, dtype=torch.bool)
    for i, response in enumerate(RESPONSES):
        visual, states = plain_states(model, processor, asked, response)
        everywhere = torch.ones(1, len(visual), dtype=torch.bool)
        prototype = naive.visual_prototype(visual[None].double(), everywhere)
        similarity[i, : len(response)] = naive.visual_similarity(states[None].double(), prototype)[0]
        mask[i, : len(response)] = True
        cosines = [[float(torch.cosine_similarity(state, patch, dim=0)) for patch in visual] for state in states]
        step = (found[i]["patches"]["high"] - found[i]["patches"]["low"]) / 255
        assert torch.allclose(patch_map(found[i]), torch.tensor(cosines).double(), atol=0.51 * step + 1e-5)
    advantages = torch.tensor([0.0, 1.0, 2.0])
    truth = naive.reweight_advantages(advantages, similarity, mask, torch.zeros(3, dtype=torch.long), settings)
    for i, (response, rollout) in enumerate(zip(RESPONSES, found, strict=True)):
        length = len(response)
        assert rollout["similarity"] == pytest.approx(similarity[i, :length].tolist(), abs=1e-5)
        assert rollout["focus"] == pytest.approx(truth.focus[i, :length].tolist(), abs=1e-5)
        assert rollout["gate"] == truth.gate[i, :length].tolist()
        weight = naive.compensated_weight(rollout["focus"], rollout["gate"], settings)
        assert rollout["weight"] == pytest.approx(weight, abs=1e-5)
        assert rollout["token_factor"] == pytest.approx(truth.token_factor[i, :length].tolist(), abs=1e-4)
        assert rollout["advantage"] == pytest.approx(truth.advantages[i, :length].tolist(), abs=1e-4)
        assert rollout["rollout_factor"] == pytest.approx(float(truth.rollout_factor[i]), abs=1e-4)
        early, late = rollout["focus"][: length // 2], rollout["focus"][length // 2 :]
        if length % 2:  # the token in the middle counts as late
            assert len(late) == len(early) + 1
        assert rollout["late_early_ratio"] == pytest.approx(
            sum(late) / len(late) / (sum(early) / len(early)), abs=1e-4
        )
        assert (rollout["model"], rollout["sample"]) == (0, i)


def test_weights_are_those_of_the_state_that_the_settings_name() -> None:
    model, processor = small_model()
    (asked,) = rows(1)
    settings = VGPOSettings(focus_state="predicting")
    reading = read_by(model, processor, asked, RESPONSES)["rollouts"]
    predicting = read_by(model, processor, asked, RESPONSES, settings=settings)["rollouts"]
    for one, other in zip(reading, predicting, strict=True):
        assert (one["similarity"], one["focus"]) == (other["similarity"], other["focus"])
        # Each token has the focus of the one before it; compensation is at least 0 and at most beta.
        for weight, focus in zip(other["weight"][1:], one["focus"], strict=False):
            assert focus - 1e-5 <= weight <= (1 + settings.strength) * focus + 1e-5
        plain = [i for i in range(1, len(other["gate"])) if not other["gate"][i]]
        assert plain
        assert [other["weight"][i] for i in plain] == pytest.approx([one["focus"][i - 1] for i in plain], abs=1e-5)


def test_a_response_alone_has_no_group() -> None:
    model, processor = small_model()
    (asked,) = rows(1)
    (alone,) = read_by(model, processor, asked, RESPONSES[:1])["rollouts"]
    among = read_by(model, processor, asked, RESPONSES)["rollouts"][0]
    assert alone["advantage"] is alone["rollout_factor"] is None
    assert among["advantage"] is not None
    for name in ("similarity", "focus", "gate", "weight", "token_factor", "late_early_ratio"):
        assert alone[name] == pytest.approx(among[name], abs=2e-5), name


def test_focus_is_the_papers_whatever_the_preset() -> None:
    model, processor = small_model()
    (asked,) = rows(1)
    paper, released = (
        read_by(model, processor, asked, RESPONSES, settings=VGPOSettings(preset=preset))["rollouts"]
        for preset in ("paper", "released")
    )
    for one, other in zip(paper, released, strict=True):
        assert other["focus"] == pytest.approx([(s + 1) / 2 for s in other["similarity"]], abs=1e-6)
        assert (one["focus"], one["late_early_ratio"]) == (other["focus"], other["late_early_ratio"])
        assert one["weight"] != other["weight"]


@pytest.mark.parametrize("responses", [[[], RESPONSES[0]], [RESPONSES[1], [], []], [[]], [[], []]])
def test_a_response_without_a_token_has_no_map(responses: list[list[int]]) -> None:
    model, processor = small_model()
    (asked,) = rows(1)
    found = read_by(model, processor, asked, responses, attention=True)
    for response, rollout in zip(responses, found["rollouts"], strict=True):
        assert (rollout["patches"] is None) == (response == [])
        for name in ("similarity", "focus", "gate", "weight", "token_factor"):
            assert len(rollout[name] or ()) == len(response)
        assert [len(shares) for shares in rollout["attention"].values()] == [len(response)] * 3
        if not response:
            assert rollout["late_early_ratio"] is rollout["predicted"] is None
    whole = Inspection({**Inspector(model, processor, Options()).head("small", "small"), "questions": [found]})
    assert len(whole.to_dataframe()) == sum(map(len, responses))
    assert "<html" in whole.to_html()


def test_a_large_grid_of_an_empty_response_is_no_map() -> None:
    model, processor = small_model()
    (asked,) = rows(1, sizes=((28 * 17, 56),))
    first, second = read_by(model, processor, asked, [[], RESPONSES[0]])["rollouts"]
    assert first["patches"] is None
    assert second["patches"]["columns"] == 9 * 2


def overflow(length: int) -> torch.Tensor:
    """Of the last position but three; (L, 1)."""
    return torch.where(torch.arange(length) == length - 4, math.inf, 1.0)[:, None]


def test_states_that_are_not_finite_are_told(caplog: pytest.LogCaptureFixture) -> None:
    model, processor = small_model()
    asked = rows(1, 1)
    # The fourth of 7 tokens, and what pads the 3 of the other response.
    decoder_of(model).norm.register_forward_hook(lambda norm, args, states: states * overflow(states.shape[1]))
    inspector = Inspector(model, processor, Options())
    stored = [Stored(ids, float(n)) for n, ids in enumerate(RESPONSES[:2])]
    questions = [Question(n, row, stored=stored) for n, row in enumerate(asked)]
    found = list(inspector.inspect(iter(questions), 2, progress=False))
    assert "2 of 4 responses have hidden states that are not finite (in torch.float32)" in caplog.text
    broken, whole = found[0]["rollouts"]
    assert broken["patches"] is broken["late_early_ratio"] is None
    assert [value is None for value in broken["similarity"]] == [place == 3 for place in range(7)]
    assert None not in whole["similarity"]
    assert whole["patches"] is not None
    told = Inspection({**inspector.head("small", "small"), "questions": found})
    assert "<html" in told.to_html()
    assert told.to_dataframe()["focus"].isna().sum() == 2


def test_a_question_without_a_picture_has_no_focus() -> None:
    model, processor = small_model()
    with_picture, without = inspected(model, processor, rows(1, 0), without=True, attention=True)
    (rollout,) = without["rollouts"]
    assert without["images"] == without["grids"] == []
    for name in ("similarity", "focus", "gate", "weight", "token_factor", "advantage", "late_early_ratio"):
        assert rollout[name] is None, name
    assert rollout["patches"] is rollout["without"] is None
    assert rollout["tokens"]
    assert sum(rollout["attention"]["image"]) == 0
    assert with_picture["rollouts"][0]["patches"]["columns"] == 6


def test_greedy_answers_are_those_of_the_evaluation() -> None:
    model, processor = small_model()
    asked = rows(1, 1, 2, 1)
    found = inspected(model, processor, asked, without=True)
    views = {
        "true": (asked, range(4)),
        "blank": (with_blank_images(asked, [0, 1, 2, 3]), range(4)),
        "other": (with_other_images(asked), [0, 1, 3]),
    }
    for name, (view, places) in views.items():
        answers = evaluate(model, processor, view, max_new_tokens=6, progress=False).answers
        for place, answer in zip(places, answers, strict=True):
            (rollout,) = found[place]["rollouts"]
            mine = rollout if name == "true" else rollout["without"][name]
            assert mine["text"] == answer["completion"]
            assert (mine["predicted"], mine["correct"]) == (answer["predicted"], answer["correct"])
    assert found[2]["rollouts"][0]["without"]["other"] is None
    assert all(rollout["truncated"] for question in found for rollout in question["rollouts"])


def test_batches_change_no_greedy_number() -> None:
    model, processor = small_model()
    asked = rows(1, 2, 0, 1)
    whole, ones = inspected(model, processor, asked), inspected(model, processor, asked, batch_size=1)
    for together, apart in zip(whole, ones, strict=True):
        assert {**together, "rollouts": 0} == {**apart, "rollouts": 0}
        a, b = together["rollouts"][0], apart["rollouts"][0]
        assert a["tokens"] == b["tokens"]
        if a["patches"] is None:
            assert b["patches"] is None
            continue
        assert a["similarity"] == pytest.approx(b["similarity"], abs=1e-5)
        assert torch.allclose(patch_map(a), patch_map(b), atol=0.01)


def test_samples_are_drawn_with_the_seed() -> None:
    model, processor = small_model()
    asked = rows(1, 1)
    first, again = (inspected(model, processor, asked, samples=3, seed=5) for _ in range(2))
    other = inspected(model, processor, asked, samples=3, seed=6)
    assert first == again
    texts = [[rollout["text"] for question in found for rollout in question["rollouts"]] for found in (first, other)]
    assert texts[0] != texts[1]
    assert len(set(texts[0])) == 6
    assert [rollout["sample"] for rollout in first[1]["rollouts"]] == [0, 1, 2]


def test_sampled_answers_are_drawn_again_with_the_same_picture() -> None:
    model, processor = small_model()
    asked = rows(1, 1)
    sampled = inspected(model, processor, asked, samples=4, without=True)
    again = [[one["without"]["again"]["text"] for one in question["rollouts"]] for question in sampled]
    first = [[one["text"] for one in question["rollouts"]] for question in sampled]
    assert all(one not in mine for texts, mine in zip(again, first, strict=True) for one in texts)
    (greedy,) = inspected(model, processor, asked[:1], without=True)
    assert set(greedy["rollouts"][0]["without"]) == {"blank", "other"}


def test_every_picture_has_draws_of_its_own() -> None:
    # With the draws of the true image, answers that do not depend on it would agree, below the floor.
    model, processor = small_model()
    blind = [{**row, "images": [Image.new("RGB", (56, 56))]} for row in rows(1)]
    (question,) = inspected(model, processor, blind, samples=4, without=True)
    first = [one["text"] for one in question["rollouts"]]
    assert first != [one["without"]["blank"]["text"] for one in question["rollouts"]]


def test_questions_stream() -> None:
    model, processor = small_model()
    taken = []

    def asked() -> Iterator[Question]:
        for number, row in enumerate(rows(1, 1, 1, 1, 1)):
            taken.append(number)
            yield Question(number, row, stored=[Stored([30, 31], 0.0)])

    inspector = Inspector(model, processor, Options(batch_size=2))
    for place, question in enumerate(inspector.inspect(asked(), 5, progress=False)):
        assert question["row"] == place
        assert len(taken) <= place + 3  # the current batch, and the first of the next


def test_a_family_without_a_layout_has_no_maps(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, processor = small_model()
    monkeypatch.delitem(LAYOUTS, "qwen2_5_vl")
    found = inspected(model, processor, rows(1, 1))
    assert caplog.text.count("visual tokens in images are unknown for the family 'qwen2_5_vl'") == 1
    assert [question["grids"] for question in found] == [[], []]
    assert found[0]["rollouts"][0]["patches"] is None
    assert found[0]["rollouts"][0]["focus"] is not None


def test_inspect_leaves_the_model_as_it_was() -> None:
    model, processor = small_model()
    model.train()
    found = inspect(model, processor, Dataset.from_list(rows(1, 2)), numbers=[4, 9], max_new_tokens=4, progress=False)
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
    assert [question["row"] for question in found.questions] == [4, 9]
    assert found.data["models"] == [{"name": "", "path": "", "family": "qwen2_5_vl"}]
    assert found.data["responses"] == {"from": "answers", "temperature": 0.0, "seed": 0, "max_new_tokens": 4}
    with pytest.raises(ValueError, match="found 2 rows and 1 numbers"):
        inspect(model, processor, rows(1, 2), numbers=[4])
    with pytest.raises(ValueError, match="samples is 0"):
        inspect(model, processor, rows(1), samples=0)


def test_correct_is_what_the_grader_says() -> None:
    model, processor = small_model()
    tokenizer = processor.tokenizer
    texts = ["\\boxed{7}<|im_end|>", "\\boxed{8}<|im_end|>", "7"]
    responses = [tokenizer(text)["input_ids"] for text in texts]
    (asked,) = rows(1)
    found = read_by(model, processor, asked, responses)["rollouts"]
    assert (
        [rollout["correct"] for rollout in found]
        == grade([r["text"] for r in found], ["7"] * 3)
        == [True, False, False]
    )
    assert [rollout["predicted"] for rollout in found] == ["7", "8", None]
    assert [rollout["truncated"] for rollout in found] == [False, False, True]
    assert "".join(found[0]["tokens"]) == texts[0]


def test_other_pictures_are_graded_by_their_own_question(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = small_model()
    asked = [{**row, "answer": str(n)} for n, row in enumerate(rows(1, 1, 2, 1))]
    monkeypatch.setattr(compute, "grade", lambda texts, golds: [gold in ("1", "3") for gold in golds])
    for question in inspected(model, processor, asked, samples=2, without=True):
        for rollout in question["rollouts"]:
            verdicts = [rollout["correct"], *(again["correct"] for again in rollout["without"].values() if again)]
            assert set(verdicts) == {question["answer"] in ("1", "3")}


def test_kinds_are_those_that_the_data_set_names() -> None:
    assert kind_of({"meta": {"source": "x", "category": "geometry", "grade": None}}) == "geometry"
    assert kind_of({"meta": {"category": None, "other": 1}}) is None
    assert kind_of({"meta": None}) is kind_of({}) is None
