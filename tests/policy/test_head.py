"""Scores of the head are those of a softmax over all logits, and those of TRL's fused head."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from trl.trainer.utils import add_fused_lm_head

from vgpo.policy.head import logit_scale, scoring_head, token_scores
from vgpo.toy.model import build_model, build_processor


def naive(states, head, targets, temperature, scale, cap):
    """One token and one word at a time."""
    found = []
    for state, target in zip(states, targets.tolist(), strict=True):
        logits = [scale * float(word @ state) for word in head.weight]
        logits = [value if cap is None else cap * math.tanh(value / cap) for value in logits]
        weights = [math.exp(value / temperature) for value in logits]
        shares = [weight / sum(weights) for weight in weights]
        found.append((math.log(shares[target]), -sum(share * math.log(share) for share in shares)))
    return found


@torch.no_grad()
@pytest.mark.parametrize(("temperature", "scale", "cap"), [(1.0, 1.0, None), (0.5, 0.25, None), (1.3, 2.0, 1.5)])
def test_scores_are_those_of_the_softmax(temperature, scale, cap):
    torch.manual_seed(0)
    head, states, targets = nn.Linear(8, 11, bias=False), torch.randn(5, 8), torch.randint(11, (5,))
    log_probs, entropy = token_scores(states, head, targets, temperature=temperature, scale=scale, cap=cap)
    for i, (log_prob, nats) in enumerate(naive(states, head, targets, temperature, scale, cap)):
        assert log_probs[i].item() == pytest.approx(log_prob, abs=1e-5)
        assert entropy[i].item() == pytest.approx(nats, abs=1e-5)


def test_a_word_without_any_chance_adds_nothing_to_the_entropy():
    head = nn.Linear(1, 2, bias=False)
    head.weight.data = torch.tensor([[0.0], [1e4]])
    log_probs, entropy = token_scores(torch.ones(1, 1), head, torch.tensor([1]), temperature=1.0)
    assert log_probs.item() == entropy.item() == 0


@torch.no_grad()
def test_a_model_gives_what_trls_head_gives_and_is_itself_again():
    torch.manual_seed(0)
    tokenizer = build_processor().tokenizer
    model, other = build_model(tokenizer, seed=1).eval(), build_model(tokenizer, seed=1).eval()
    add_fused_lm_head(other, temperature=0.7, outputs=("log_probs", "entropy"))
    ids = torch.randint(20, 60, (3, 9))
    labels = ids.clone()
    labels[:, :4], labels[1, 7:] = -100, -100
    with scoring_head(model, temperature=0.7):
        found = model(input_ids=ids, labels=labels, fused_lm_head=True)
        inside = model(input_ids=ids).logits
    expected = other(input_ids=ids, labels=labels, fused_lm_head=True)
    torch.testing.assert_close(found.log_probs, expected.log_probs, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.entropy, expected.entropy, atol=1e-5, rtol=0)
    assert torch.equal(inside, model(input_ids=ids).logits)
    assert "forward" not in vars(model)


@pytest.mark.parametrize(
    ("fields", "factor"),
    [({}, 1.0), ({"logit_scale": 0.0}, 0.0), ({"logits_scaling": 4.0}, 0.25), ({"lm_head_multiplier": 3.0}, 3.0)],
)
def test_the_factor_on_logits_is_the_configs(fields, factor):
    text = SimpleNamespace(to_dict=lambda: fields)
    assert logit_scale(SimpleNamespace(get_text_config=lambda: text)) == factor
