"""What adapter files call the layers of Stable Diffusion 1.x and 2.x.

From a table of its own, never from a live model: other versions of the libraries name some layers
otherwise, and files outlive them.
"""

from scumble.formats.key_names import KeyNames

UNET_WORDS = (
    "add_embedding",
    "conv_in",
    "conv_norm_out",
    "conv_out",
    "conv_shortcut",
    "down_blocks",
    "linear_1",
    "linear_2",
    "mid_block",
    "proj_in",
    "proj_out",
    "time_emb_proj",
    "time_embedding",
    "to_k",
    "to_out",
    "to_q",
    "to_v",
    "transformer_blocks",
    "up_blocks",
)
TEXT_WORDS = (
    "final_layer_norm",
    "k_proj",
    "layer_norm1",
    "layer_norm2",
    "out_proj",
    "position_embedding",
    "q_proj",
    "self_attn",
    "text_model",
    "token_embedding",
    "v_proj",
)
"""Names of modules that have an underscore themselves."""

KEY_NAMES = KeyNames(
    components=("unet", "text_encoder"),
    levels={"text_encoder": "text_model."},
    tokens={"text_encoder": "string_to_param.*"},
    prefixes={
        "unet": ("lora_unet_", "lycoris_unet_"),
        "text_encoder": ("lora_te_", "lycoris_te_", "lora_te1_"),
    },
    words=UNET_WORDS + TEXT_WORDS,
)
