"""Where keys come from that fit nothing: what such a file is, for messages that help."""

import re

XL, SD3, FLUX = "Stable Diffusion XL", "Stable Diffusion 3", "Flux"

ORIGINS = {
    r"custom_diffusion": "Custom Diffusion",
    r"^lllite_unet": "a ControlNet-LLLite",
    r"^control_model\.|controlnet": "a ControlNet",
    r"^image_proj\.|^ip_adapter\.": "an IP-Adapter",
    r"motion_modules": "a motion module of AnimateDiff",
    r"^(model\.diffusion_model|first_stage_model|cond_stage_model|conditioner)\.": (
        "a whole model in one file"
    ),
    r"^(lora|lycoris)_te3_|^text_encoder_3\.|joint_blocks": f"an adapter for {SD3}",
    r"(double|single)_blocks|single_transformer_blocks": f"an adapter for {FLUX}",
    r"^(lora|lycoris)_te2_|^text_encoder_2\.|\.clip_g$": f"an adapter for {XL}",
    r"(input|middle|output)_blocks?_\d|(add|label)_emb|(input|output)_blocks\.": (
        f"an adapter for {XL}"
    ),
    r"^(lora_|lycoris_)?transformer[._]|^diffusion_model\.": (
        f"an adapter for a transformer, such as {FLUX}"
    ),
    r"^(lora|lycoris)_prior_": "an adapter for Wuerstchen or Stable Cascade",
    r"\.oft_(blocks|diag|r|R)(\.|$)|\.boft_": "an OFT adapter (orthogonal fine-tuning)",
    r"\.[ab][12]\.weight$|\.bm\.weight$": "a GLoRA adapter",
    r"\.(lambda_layer|[qp]_layer)(\.|$)": "a T-LoRA adapter",
    r"vera_": "a VeRA adapter",
    r"lora_embedding_[AB]": "a PEFT adapter of an embedding table",
    r"\.bias_(indices|values|size)$": "a sparse difference of biases by LyCORIS",
    r"\.(set_weight|reshape_weight|w1)$": "a patch by ComfyUI",
    r"\.scalar$": "a trained scale by LyCORIS",
}
"""Pattern somewhere in a key -> what the file is; the first that fits counts."""


def likely_origin(key: str) -> str:
    """What a key looks like that fits no adapter known here.

    Args:
        key: as in the file.

    Returns:
        Such as "an adapter for Stable Diffusion XL"; empty where it looks like nothing known.
    """
    return next((what for pattern, what in ORIGINS.items() if re.search(pattern, key)), "")


def looks_like(key: str) -> str:
    """`likely_origin` as the end of a sentence; empty where it looks like nothing known."""
    origin = likely_origin(key)
    return f": it looks like {origin}" if origin else ""
