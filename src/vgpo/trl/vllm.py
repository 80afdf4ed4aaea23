"""What TRL's generation with vLLM cannot do with images."""

from vgpo.trl.config import VGPOConfig


def refuse_colocate(config: VGPOConfig) -> None:
    """To be called where there are images.

    Raises:
        ValueError: vLLM is to generate in the training processes.
    """
    # TRL 1.16 passes prompt ids whose image tokens are expanded; vLLM expands each of these again.
    if config.use_vllm and config.vllm_mode == "colocate":
        raise ValueError(
            "use_vllm=True with vllm_mode='colocate' (TRL's default) cannot take images: this version of TRL gives "
            "vLLM another prompt than the one that is trained on, and training would learn from garbage. Set "
            "use_vllm=False to generate with transformers, or vllm_mode='server'. Data without images can use "
            "colocate."
        )
