"""What the rollout engine of the tests samples, without verl and Ray."""

import io

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

from tests.verl.sampling import Request, Response, respond
from vgpo.toy import checkpoint_path, write_datasets

Prompt = tuple[list[int], Image.Image]
PLAIN = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0, "logprobs": True}


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return AutoModelForImageTextToText.from_pretrained(checkpoint_path(), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def processor() -> ProcessorMixin:
    return AutoProcessor.from_pretrained(checkpoint_path())


@pytest.fixture(scope="module")
def prompts(processor: ProcessorMixin, tmp_path_factory: pytest.TempPathFactory) -> list[Prompt]:
    """Token ids and image of three questions."""
    train, _ = write_datasets(tmp_path_factory.mktemp("toy"), num_train=3, num_test=1, progress=False)
    prompts = []
    for row in pq.read_table(train).to_pylist():
        image = Image.open(io.BytesIO(row["images"][0]["bytes"]))
        text = row["problem"].removeprefix("<image>")
        content = [{"type": "image", "image": image}, {"type": "text", "text": text}]
        fields = processor.apply_chat_template(
            [[{"role": "user", "content": content}]], add_generation_prompt=True, tokenize=True, return_dict=True
        )
        prompts.append((fields["input_ids"][0], image))
    return prompts


def request(prompt: Prompt, max_tokens: int = 40, **sampling: object) -> Request:
    return Request(prompt[0], [prompt[1]], {}, {**PLAIN, **sampling}, max_tokens)


def scored(model: PreTrainedModel, processor: ProcessorMixin, prompt: Prompt, response: Response) -> torch.Tensor:
    """Log-probabilities of a response's tokens by one forward pass over prompt and response, at temperature 0.7."""
    ids = torch.tensor([[*prompt[0], *response.token_ids]])
    media = processor.image_processor(images=[prompt[1]], return_tensors="pt")
    types = (ids == model.config.image_token_id).long()
    with torch.no_grad():
        logits = model(input_ids=ids, mm_token_type_ids=types, **media).logits[0, len(prompt[0]) - 1 : -1]
    return (logits / 0.7).log_softmax(-1).gather(-1, ids[0, len(prompt[0]) :, None])[:, 0]


def test_log_probabilities_are_those_of_the_whole_distribution_at_the_temperature(model, processor, prompts) -> None:
    torch.manual_seed(0)
    asked = [prompts[0]] * 3 + [prompts[1]] * 3 + [prompts[2]]
    responses = respond(model, processor, [request(p, temperature=0.7, top_p=0.8) for p in asked])
    for prompt, response in zip(asked, responses, strict=True):
        expected = scored(model, processor, prompt, response)
        assert torch.tensor(response.log_probs) == pytest.approx(expected, abs=1e-5)


def test_a_response_ends_with_its_end_token_or_at_its_limit(model, processor, prompts) -> None:
    end = processor.tokenizer.eos_token_id
    torch.manual_seed(0)
    wholes = respond(model, processor, [request(prompt) for prompt in prompts])
    assert len({len(whole.token_ids) for whole in wholes}) > 1
    for whole in wholes:
        assert whole.token_ids.index(end) == len(whole.token_ids) - 1 == len(whole.log_probs) - 1
    (cut,) = respond(model, processor, [request(prompts[0], max_tokens=3)])
    assert len(cut.token_ids) == len(cut.log_probs) == 3


def test_the_order_in_which_requests_arrive_changes_nothing(model, processor, prompts) -> None:
    requests = [request(prompt) for prompt in prompts for _ in range(2)]
    torch.manual_seed(1)
    first = respond(model, processor, requests)
    torch.manual_seed(1)
    backwards = respond(model, processor, requests[::-1])
    assert [{*map(tuple, (r.token_ids for r in first[i : i + 2]))} for i in (0, 2, 4)] == [
        {*map(tuple, (r.token_ids for r in backwards[::-1][i : i + 2]))} for i in (0, 2, 4)
    ]


def test_rollouts_of_a_prompt_encode_its_image_once(model, processor, prompts) -> None:
    num_patches = []
    hook = model.model.visual.register_forward_pre_hook(lambda module, args: num_patches.append(len(args[0])))
    try:
        respond(model, processor, [request(prompts[0])] * 4)
    finally:
        hook.remove()
    assert num_patches == [36]  # 84 x 84 pixels in patches of 14


def test_temperature_0_takes_the_likeliest_token_for_every_copy(model, processor, prompts) -> None:
    torch.manual_seed(0)
    first, second = respond(model, processor, [request(prompts[1], temperature=0)] * 2)
    torch.manual_seed(5)
    (third,) = respond(model, processor, [request(prompts[1], temperature=0)])
    assert first == second == third


def test_a_biased_token_is_never_drawn_and_keeps_its_part_of_the_distribution(model, processor, prompts) -> None:
    (greedy,) = respond(model, processor, [request(prompts[0], temperature=0)])
    banned = greedy.token_ids[0]
    torch.manual_seed(0)
    responses = respond(model, processor, [request(prompts[0], logit_bias={banned: -100.0})] * 20)
    assert all(banned not in response.token_ids for response in responses)
    assert all(response.log_probs[0] < -1 for response in responses)  # the banned token is the likely one


def test_images_that_do_not_fill_the_image_tokens_are_refused(model, processor, prompts) -> None:
    ids, image = prompts[0]
    larger = image.resize((112, 112))
    with pytest.raises(ValueError, match="has 9 image tokens, expected 16 for its 1 image"):
        respond(model, processor, [Request(ids, [larger], {}, PLAIN, 4)])
    with pytest.raises(ValueError, match="has 9 image tokens, expected 0 for its 0 image"):
        respond(model, processor, [Request(ids, [], {}, PLAIN, 4)])


def test_processor_arguments_change_the_size_of_an_image(model, processor, prompts) -> None:
    ids, image = prompts[0]
    kwargs = {"size": {"longest_edge": 56 * 56, "shortest_edge": 784}}
    with pytest.raises(ValueError, match="has 9 image tokens, expected 4 for its 1 image"):
        respond(model, processor, [Request(ids, [image], kwargs, PLAIN, 4)])


def test_an_unknown_sampling_parameter_is_refused(model, processor, prompts) -> None:
    with pytest.raises(ValueError, match=r"\['min_p'\] are not implemented"):
        respond(model, processor, [request(prompts[0], min_p=0.1)])
