"""Rollouts by verl's single-turn agent loop, with what vgpo adds: no image tokens, and truncated responses masked."""

from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

from vgpo.vllm.prompts import BANNED_BIAS


class VGPOAgentLoop(SingleTurnAgentLoop):
    """One response to one prompt.

    The configuration's section `vgpo` says which tokens no response may hold, and whether truncated responses are
    trained on.
    """

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput:
        banned = list(self.config.vgpo.banned_token_ids)
        output = await super().run({**sampling_params, "logit_bias": dict.fromkeys(banned, BANNED_BIAS)}, **kwargs)
        if self.config.vgpo.recipe.mask_truncated_completions and self._is_truncated(output.response_ids):
            output.response_mask = [0] * len(output.response_mask)
        return output

    def _is_truncated(self, response_ids: list[int]) -> bool:
        return not response_ids or response_ids[-1] not in self.config.vgpo.end_token_ids
