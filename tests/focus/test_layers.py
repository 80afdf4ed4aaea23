"""Visual similarity layer by layer, against all hidden states of a plain forward pass."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForImageTextToText
from trl.trainer.utils import add_fused_lm_head

import vgpo.equations
from tests.families.build import FAMILIES, draw_weights, encode_prompts, picture
from vgpo.equations import mean_visual_cosine, mean_visual_direction
from vgpo.focus import ALL_LAYERS, named_visual_token_ids, record_similarity
from vgpo.policy.prompts import encoded_prompt, prompt_columns
from vgpo.policy.scoring import Rows, score_rows
from vgpo.shared_prompt import why_not_shared

NAN = float("nan")
LENGTHS = (5, 3, 4)  # of responses; the first two share a prompt


def test_mean_cosine_by_hand():
    # Cosines of (1, 1) with (2, 0) and (0, 3): both 1 / sqrt 2. Of (1, 0): 1 and 0.
    hidden = torch.tensor([[[1.0, 1.0], [1.0, 0.0]]])
    prompt = torch.tensor([[[2.0, 0.0], [NAN, NAN], [0.0, 3.0]]])
    found = mean_visual_cosine(hidden, mean_visual_direction(prompt, torch.tensor([[True, False, True]])))
    torch.testing.assert_close(found, torch.tensor([[0.5**0.5, 0.5]]))
    nothing = mean_visual_direction(prompt, torch.zeros(1, 3, dtype=torch.bool))
    assert mean_visual_cosine(hidden, nothing).eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("block_elements", [1, 500, 2**21])
def test_mean_cosine_against_loops_in_blocks(dtype, block_elements, monkeypatch):
    monkeypatch.setattr(vgpo.equations, "_BLOCK_ELEMENTS_CPU", block_elements)
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(3, 20, 33, generator=generator, dtype=torch.float64).to(dtype) + 0.3
    visual = torch.rand(3, 11, generator=generator) < 0.6
    visual[1] = False
    prompt, hidden = states[:, :11], states[:, 11:]
    expected = torch.zeros(3, 9, dtype=torch.float64)
    for row in (0, 2):
        seen = prompt[row, visual[row]].double()
        expected[row] = F.cosine_similarity(hidden[row].double()[:, None], seen[None], dim=-1).mean(1)
    prompt[~visual] = NAN
    found = mean_visual_cosine(hidden, mean_visual_direction(prompt, visual))
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=0)


class LargestTensor(TorchDispatchMode):
    """Bytes of the largest tensor that is made inside the block."""

    num_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {value.untyped_storage().data_ptr() for value in args if isinstance(value, torch.Tensor)}
        if isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() not in given:
            self.num_bytes = max(self.num_bytes, out.untyped_storage().nbytes())
        return out


def test_hidden_states_are_copied_a_block_at_a_time(monkeypatch):
    monkeypatch.setattr(vgpo.equations, "_BLOCK_ELEMENTS_CPU", 2**10)
    states = torch.ones(2, 400, 64, dtype=torch.bfloat16)
    with LargestTensor() as largest:
        mean_visual_cosine(
            states[:, 200:], mean_visual_direction(states[:, :200], torch.ones(2, 200, dtype=torch.bool))
        )
    assert 0 < largest.num_bytes <= 2**10 * 4  # a block in float32


def plain_similarity(model, prompt, response):
    """VS of each token of one response (T,), from the states after every layer, in loops."""
    ids = torch.tensor([[*prompt.token_ids, *response.tolist()]])
    types = {name: F.pad(torch.tensor([row]), (0, len(response))) for name, row in prompt.token_types.items()}
    with torch.no_grad():
        states = model(
            input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True, use_cache=False,
            **types, **prompt.media,
        ).hidden_states[1:]  # fmt: skip
    visual = [i for i, token in enumerate(prompt.token_ids) if token in named_visual_token_ids(model.config)]
    start = len(prompt.token_ids)
    return torch.stack(
        [
            torch.stack(
                [F.cosine_similarity(layer[0, t], layer[0, v], dim=0) for layer in states for v in visual]
            ).mean()
            for t in range(start, start + len(response))
        ]
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_tells_the_mean_over_all_layers(name):
    config, processor = FAMILIES[name]()
    torch.manual_seed(0)  # some scales keep their initial value
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    draw_weights(model, seed=0)
    prompts = [
        encoded_prompt(encoded["input_ids"][0].tolist(), 1, encoded, torch.device("cpu"))
        for encoded in encode_prompts(processor, [("Why?", [picture(56, 56)]), ("Which one?", [picture(28, 56)])])
    ]
    rows = [prompts[0], prompts[0], prompts[1]]
    size = len(processor.tokenizer)
    responses = torch.randint(size - 256, size, (3, max(LENGTHS)), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    expected = [plain_similarity(model, p, r[m]) for p, r, m in zip(rows, responses, mask, strict=True)]

    shares = why_not_shared(model) is None
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    columns = prompt_columns(rows, processor.tokenizer.pad_token_id, torch.device("cpu"))
    batch = Rows(
        torch.cat([columns["prompt_ids"], responses], dim=1),
        torch.cat([columns["prompt_mask"], mask.long()], dim=1),
        columns["prompt_ids"].shape[1],
        rows,
    )
    for share in {False, shares}:
        with torch.no_grad():
            scores = score_rows(
                model, batch, named_visual_token_ids(config),
                share=share, similarity=True, layer_similarity=True, batch_size=2,
            )  # fmt: skip
        for found, values, counted in zip(scores.layer_similarity, expected, mask, strict=True):
            torch.testing.assert_close(found[counted], values, atol=1e-5, rtol=0)
        assert not torch.allclose(scores.layer_similarity[mask], scores.similarity[mask], atol=1e-3)


def test_a_decoder_without_a_list_of_layers_is_refused():
    class Decoderless(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Linear(2, 2)

        def get_decoder(self):
            return self.inner

    with (
        pytest.raises(ValueError, match="Linear has no list of modules named 'layers'"),
        record_similarity(Decoderless(), torch.ones(1, 1, dtype=torch.bool), ALL_LAYERS),
    ):
        pass
