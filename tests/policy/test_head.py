"""Scores of the head are those of a softmax over all logits, and those of TRL's fused head."""

import math

import pytest
import torch
from trl.trainer.utils import add_fused_lm_head

from vgpo.policy.head import scoring_head, token_scores, use_own_head
from vgpo.toy.model import build_model, build_processor


def naive(logits, targets, temperature):
    """One token and one word at a time."""
    found = []
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        weights = [math.exp(value / temperature) for value in row]
        shares = [weight / sum(weights) for weight in weights]
        found.append((math.log(shares[target]), -sum(share * math.log(share) for share in shares)))
    return found


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.3])
def test_scores_are_those_of_the_softmax(temperature):
    torch.manual_seed(0)
    logits, targets = torch.randn(5, 11), torch.randint(11, (5,))
    log_probs, entropy = token_scores(logits, targets, temperature)
    for i, (log_prob, nats) in enumerate(naive(logits, targets, temperature)):
        assert log_probs[i].item() == pytest.approx(log_prob, abs=1e-5)
        assert entropy[i].item() == pytest.approx(nats, abs=1e-5)


def test_a_word_without_any_chance_adds_nothing_to_the_entropy():
    log_probs, entropy = token_scores(torch.tensor([[0.0, 1e4]]), torch.tensor([1]), 1.0)
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


def test_gradients_are_those_of_trls_head():
    torch.manual_seed(0)
    tokenizer = build_processor().tokenizer
    gradients = []
    for own in (True, False):
        model = build_model(tokenizer, seed=1).eval()
        add_fused_lm_head(model, temperature=0.7, outputs=("log_probs", "entropy"))
        if own:
            use_own_head(model, 0.7)
        ids = torch.arange(20, 38).view(2, 9)
        labels = ids.masked_fill(torch.arange(9) < 4, -100)
        model(input_ids=ids, labels=labels, fused_lm_head=True).log_probs.sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    own, fused = gradients
    assert own.keys() == fused.keys()
    for name, gradient in fused.items():
        torch.testing.assert_close(own[name], gradient, atol=1e-4, rtol=1e-4, msg=name)


def test_the_own_head_scores_what_a_model_does_with_its_logits():
    """A head that the text config does not know of: TRL's leaves it out."""
    torch.manual_seed(0)
    model = build_model(build_processor().tokenizer, seed=1).eval()
    ids = torch.arange(20, 38).view(2, 9)
    model.lm_head.register_forward_hook(lambda module, args, logits: 3 * torch.tanh(logits))
    expected = model(input_ids=ids).logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    use_own_head(model)
    found = model(input_ids=ids, labels=ids, fused_lm_head=True)
    torch.testing.assert_close(found.log_probs, expected, atol=1e-5, rtol=0)
