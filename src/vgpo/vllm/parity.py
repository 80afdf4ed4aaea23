"""The engine's side of the parity check: prompts and log-probabilities of vLLM against the trainer's."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from vgpo.policy.generation import as_responses
from vgpo.policy.measurement import MAX_TOKENS, STOP, TOLERANCES, Gap, Host
from vgpo.policy.parity import Parity, refuse
from vgpo.policy.prompts import EncodedPrompt, row_with_images_in_prompt
from vgpo.policy.scoring import score_rows
from vgpo.policy.undisturbed import undisturbed

NUM_PROMPTS = 4  # with a response each


def with_engine(parity: Parity, host: Host, trainer: Any) -> Parity:
    """What was measured, and the line of the engine.

    Args:
        parity: Of the trainer.
        host: The same.
        trainer: One that generates with vLLM.

    Raises:
        ParityError: vLLM computes something else.
        EngineError: It read another prompt.
    """
    rows = map(row_with_images_in_prompt, islice(trainer.train_dataset, NUM_PROMPTS))
    gap = engine_gap(host, trainer.vllm_generation, [trainer._encode(row["prompt"], 0) for row in rows])
    refuse([gap], strict=False)
    return replace(parity, gaps=(*parity.gaps, gap))


def engine_gap(host: Host, generation: Any, encoded: Sequence[tuple[EncodedPrompt, list[Any]]]) -> Gap:
    """Sample a response to each prompt with vLLM, and score it as an update does.

    Args:
        host: The policy as it scores.
        generation: `vgpo.vllm.generation.EngineGeneration`; it gets the policy's weights.
        encoded: Prompts and their images.

    Raises:
        EngineError: vLLM read another prompt than the trainer's.
    """
    prompts = [prompt for prompt, _ in encoded]
    generation.sync_weights()
    images = [own or None for _, own in encoded]
    generation.engine_prompts = [prompt.placeholder_ids or prompt.token_ids for prompt in prompts]
    longest, generation.max_completion_length = generation.max_completion_length, MAX_TOKENS
    try:
        given = [prompt.token_ids for prompt in prompts]
        _, token_ids, log_probs, _ = generation.generate(given, images if any(images) else None, 1)
    finally:
        generation.max_completion_length = longest
    sampled = [torch.tensor([float(chosen[0]) for chosen in row], device=host.device) for row in log_probs]
    responses = as_responses(prompts, token_ids, host.pad_token_id, host.device)
    with undisturbed(host.model), torch.no_grad(), host.autocast():
        scores = score_rows(host.model, responses.rows, host.visual_token_ids, share=False, similarity=False)
    difference = (scores.log_probs.float() - pad_sequence(sampled, batch_first=True)).abs()[responses.mask]
    mean, largest = host.largest(torch.stack([difference.mean(), difference.max()])).tolist()
    computed = {host.dtype, getattr(torch, generation.computes_in, host.dtype)}
    tolerance = max(TOLERANCES[dtype].log_probs for dtype in computed)
    return Gap("log-probs, vLLM", mean, largest, tolerance, STOP, note=f"{sum(map(len, token_ids))} sampled tokens")
