"""The same rollouts after ablated prompts: images with black patches, or no images.

A shaping that compares a policy with and without its images declares one of `ABLATIONS` among its signals. For each,
the trainer runs one pass without gradients per generation batch.

Patches are blackened in the processor's output, after its resize: no image is decoded or resized a second time, the
number of tokens is unchanged, and a black patch is exactly one aligned patch of the model's vision tower (14 pixels
for Qwen2.5-VL, 16 for Qwen3-VL), for every family. The black patches are sampled from the run's seed and the group
number: a resumed run samples the same ones, independent of how its batch is split. The rollouts of a group are
compared with the same black patches, so that they share the prompt; Algorithm 1 of arXiv 2510.09285 draws patches for
each rollout.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig

from vgpo.policy.prompts import EncodedPrompt

BLACK_SHARE = 0.5  # of the patches, arXiv 2510.09285
InputAblation = Callable[[EncodedPrompt, int], EncodedPrompt]


@dataclass(frozen=True)
class BlackPatches:
    """Blackens patches of preprocessed images.

    Args:
        side: pixels along a patch.
        black: a black pixel after the processor's normalisation, (3,).
        seed: seed of the run.
        share: probability that a patch is black.
    """

    side: int
    black: Tensor
    seed: int
    share: float = BLACK_SHARE

    @classmethod
    def of(cls, config: PretrainedConfig, processor: Any, seed: int) -> "BlackPatches":
        """Create the ablation for a model config and its processor.

        Raises:
            ValueError: if the vision tower has no patches.
        """
        side = config.to_dict().get("vision_config", {}).get("patch_size")
        if side is None:
            raise ValueError(
                f"The configuration of this model (model_type {config.model_type!r}) has no vision_config.patch_size, "
                "so that no patches of its images can be blackened. Choose a shaping without corrupted images."
            )
        return cls(side if isinstance(side, int) else side[0], black_pixel(processor.image_processor), seed)

    def __call__(self, prompt: EncodedPrompt, group: int) -> EncodedPrompt:
        """The prompt with random patches of its images black."""
        if "pixel_values" not in prompt.media:
            return prompt
        draw = np.random.default_rng([self.seed, group])
        pixels = self._blackened(prompt.media["pixel_values"], draw)
        return replace(prompt, media={**prompt.media, "pixel_values": pixels})

    def _blackened(self, pixels: Tensor, draw: np.random.Generator) -> Tensor:
        black = self.black.to(pixels)
        if pixels.ndim == 2:  # a row is a patch: concatenated channels, each (time, height, width)
            is_black = self._draw(draw, (len(pixels), 1), pixels.device)
            return torch.where(is_black, black.repeat_interleave(pixels.shape[1] // len(black)), pixels)
        if pixels.ndim < 4 or pixels.shape[-3] != len(black):
            raise ValueError(
                f"pixel_values have shape {tuple(pixels.shape)}, expected rows of patches (N, D), or images that "
                f"end in ({len(black)}, height, width): patches cannot be blackened in another format. Choose a "
                "shaping without corrupted images."
            )
        *rest, _, height, width = pixels.shape
        patches = (*rest, 1, -(-height // self.side), -(-width // self.side))
        is_black = self._draw(draw, patches, pixels.device)
        is_black = is_black.repeat_interleave(self.side, -2).repeat_interleave(self.side, -1)[..., :height, :width]
        # A tile of zeros pads a prompt with fewer tiles; models recognise padding by its zeros.
        is_image = pixels.ne(0).any(-1, keepdim=True).any(-2, keepdim=True).any(-3, keepdim=True)
        return torch.where(is_black & is_image, black[:, None, None], pixels)

    def _draw(self, draw: np.random.Generator, shape: Sequence[int], device: torch.device) -> Tensor:
        return torch.from_numpy(draw.random(shape) < self.share).to(device)


def black_pixel(image_processor: Any) -> Tensor:
    """A black pixel (0, 0, 0) after an image processor's normalisation; (3,)."""
    if not image_processor.do_normalize:
        return torch.zeros(3)
    return -torch.tensor(image_processor.image_mean) / torch.tensor(image_processor.image_std)


@dataclass(frozen=True)
class TextOnly:
    """Removes image tokens and images from a prompt.

    Args:
        token_ids: image placeholders, and tokens that open an image.
    """

    token_ids: Sequence[int]

    def __call__(self, prompt: EncodedPrompt, group: int) -> EncodedPrompt:
        del group
        stays = [token not in self.token_ids for token in prompt.token_ids]

        def kept(values: list[int]) -> list[int]:
            return [value for value, stay in zip(values, stays, strict=True) if stay]

        types = {name: kept(values) for name, values in prompt.token_types.items()}
        return EncodedPrompt(kept(prompt.token_ids), num_images=0, media={}, token_types=types)


# Signals of `vgpo.shaping.Signals`, and the ablation of their prompts.
ABLATIONS: Mapping[str, Callable[..., InputAblation]] = {
    "corrupted_log_probs": lambda config, processor, seed, banned: BlackPatches.of(config, processor, seed),
    "text_only_log_probs": lambda config, processor, seed, banned: TextOnly(banned),
}


def build_ablations(
    signals: Collection[str], config: PretrainedConfig, processor: Any, seed: int, banned_token_ids: Sequence[int]
) -> dict[str, InputAblation]:
    """The prompt ablation of each of `signals` that has one.

    Raises:
        ValueError: an ablation is not possible for this model.
    """
    return {
        name: build(config, processor, seed, banned_token_ids) for name, build in ABLATIONS.items() if name in signals
    }


def ablate_prompts(
    prompts: Sequence[EncodedPrompt], group_ids: Tensor, ablation: InputAblation
) -> list[EncodedPrompt]:
    """The ablated prompts of rollouts; rollouts of a group that share a prompt also share the ablated one.

    Args:
        prompts: of B rollouts.
        group_ids: int64 (B,).
        ablation: applied once to each prompt of a group.
    """
    keys = [(id(prompt), group) for prompt, group in zip(prompts, group_ids.tolist(), strict=True)]
    ablated = {key: ablation(prompt, key[1]) for key, prompt in dict(zip(keys, prompts, strict=True)).items()}
    return [ablated[key] for key in keys]
