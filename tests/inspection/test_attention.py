"""Shares of attention against the weights that the model itself tells."""

import pytest
import torch

from tests.families.build import FAMILIES, LoadFamily, picture
from tests.inspection.small import plain_states, read_by, row, rows, small_model
from vgpo.focus import decoder_of, visual_token_ids
from vgpo.inspection.attention import AttentionError, attention_of

pytest_plugins = ["tests.families.fixtures"]


def test_shares_are_sums_of_the_last_layers_weights() -> None:
    model, processor = small_model()
    asked = rows(2)[0]
    responses = [[30, 31, 40, 90], [60, 61]]
    found = read_by(model, processor, asked, responses, attention=True)["rollouts"]
    model.set_attn_implementation("eager")
    for response, rollout in zip(responses, found, strict=True):
        told = []
        last = attention_of(decoder_of(model))
        handle = last.register_forward_hook(lambda *seen, told=told: told.append(seen[2][1][0]))
        ids = []
        noted = model.register_forward_pre_hook(
            lambda module, args, kwargs, ids=ids: ids.append(kwargs["input_ids"][0]), with_kwargs=True
        )
        plain_states(model, processor, asked, response)
        handle.remove()
        noted.remove()
        weights, prompt = told[0].mean(0), len(ids[0]) - len(response)  # mean over heads
        visual = torch.isin(ids[0], torch.tensor(visual_token_ids(model.config)))
        for t in range(len(response)):
            sums = {"image": 0.0, "question": 0.0, "generated": 0.0}
            for key in range(prompt + t + 1):
                source = "generated" if key >= prompt else "image" if visual[key] else "question"
                sums[source] += float(weights[prompt + t, key])
            assert {name: shares[t] for name, shares in rollout["attention"].items()} == pytest.approx(sums, abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_tells_its_attention(family: str, load_family: LoadFamily) -> None:
    model, processor = load_family(family)
    before = decoder_of(model).config._attn_implementation
    asked = row("How many?", [picture(56, 84)])
    plain = read_by(model, processor, asked, [[40, 50, 60]])["rollouts"][0]
    (found,) = read_by(model, processor, asked, [[40, 50, 60]], attention=True)["rollouts"]
    shares = torch.tensor([found["attention"][name] for name in ("image", "question", "generated")])
    assert torch.allclose(shares.sum(0), torch.ones(3), atol=1e-5)
    assert (shares > 0).all()
    assert decoder_of(model).config._attn_implementation == before
    assert found["similarity"] == plain["similarity"]
    assert plain["attention"] is None


def test_a_decoder_without_attention_is_said() -> None:
    decoder = torch.nn.Module()
    decoder.layers = torch.nn.ModuleList([torch.nn.Linear(2, 2)])
    with pytest.raises(AttentionError, match="No layer of Module has a module named 'self_attn'"):
        attention_of(decoder)
