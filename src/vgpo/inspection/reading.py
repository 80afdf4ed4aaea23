"""One forward pass over prompts and responses: the similarity of each response token to the visual tokens."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from vgpo.equations import FocusState, visual_prototype, visual_similarity
from vgpo.focus import decoder_of, last_hidden_state, visual_token_ids
from vgpo.policy.generation import Responses, evaluation_mode
from vgpo.policy.prompts import joined_media
from vgpo.policy.scoring import ModelInput, padded_input


@dataclass(frozen=True)
class ForwardStates:
    """Hidden states and similarities for B prompts and their responses.

    Attributes:
        responses: The inputs of the pass.
        states: Hidden states after the final norm; (B, P + T, D).
        visual: Visual tokens of the prompts; bool (B, P).
        columns: Cosine with the mean of the prompt's visual tokens (Eq. 3) of the last prompt token, then of each
            response token; (B, 1 + T).
    """

    responses: Responses
    states: Tensor
    visual: Tensor
    columns: Tensor

    @classmethod
    def of(cls, model: PreTrainedModel, responses: Responses) -> "ForwardStates":
        inputs = padded_input(responses.rows, visual_token_ids(model.config), model.config.model_type)
        states, visual = last_states(model, inputs), inputs.visual_prompt
        width = visual.shape[1]
        columns = visual_similarity(states[:, width - 1 :], visual_prototype(states[:, :width], visual))
        return cls(responses, states, visual, columns)

    @property
    def similarity(self) -> Tensor:
        """Similarity of the state after reading each response token; (B, T)."""
        return self.columns[:, 1:]

    def similarity_of(self, focus_state: FocusState) -> Tensor:
        """Similarity of the state that defines the focus of each response token: its own, or that of the token before;
        (B, T)."""
        return self.similarity if focus_state == "reading" else self.columns[:, :-1]

    def cosines(self, row: int) -> Tensor:
        """Cosine of each token of a response with each visual token of its prompt; (T, V), float32."""
        visual, mask = self.visual[row], self.responses.mask[row]
        width = len(visual)
        states = normalize(self.states[row].float(), dim=-1)
        return states[width:][mask] @ states[:width][visual].T


def forward(model: PreTrainedModel, inputs: ModelInput) -> None:
    """Run the model on rows to trigger hooks; only the last logits are computed."""
    model(
        input_ids=inputs.input_ids,
        attention_mask=inputs.attention_mask,
        logits_to_keep=1,
        use_cache=False,
        **inputs.token_types,
        **joined_media(inputs.prompts),
    )


def last_states(model: PreTrainedModel, inputs: ModelInput) -> Tensor:
    """Hidden states after the final norm, from which the visual prototype (Eq. 2) is computed; (B, P + T, D)."""
    states: list[Tensor] = []
    listener = decoder_of(model).register_forward_hook(
        lambda decoder, args, output: states.append(last_hidden_state(output))
    )
    try:
        with evaluation_mode(model):
            forward(model, inputs)
    finally:
        listener.remove()
    return states[0]
