"""What adapter files call the layers of Stable Diffusion 1.x and 2.x.

From a table of its own, never from a live model: other versions of the libraries name some layers
otherwise, and files outlive them.
"""

from scumble.families.numbered_layers import NUMBERED_LAYERS
from scumble.formats.key_names import BaseVersion, KeyNames

UNET_WORDS = (
    "attentions",
    "attn1",
    "attn2",
    "conv",
    "conv1",
    "conv2",
    "conv_in",
    "conv_norm_out",
    "conv_out",
    "conv_shortcut",
    "down_blocks",
    "downsamplers",
    "ff",
    "linear_1",
    "linear_2",
    "mid_block",
    "net",
    "norm",
    "norm1",
    "norm2",
    "norm3",
    "proj",
    "proj_in",
    "proj_out",
    "resnets",
    "time_emb_proj",
    "time_embedding",
    "to_k",
    "to_out",
    "to_q",
    "to_v",
    "transformer_blocks",
    "up_blocks",
    "upsamplers",
)
TEXT_WORDS = (
    "embeddings",
    "encoder",
    "fc1",
    "fc2",
    "final_layer_norm",
    "k_proj",
    "layer_norm1",
    "layer_norm2",
    "layers",
    "mlp",
    "out_proj",
    "position_embedding",
    "q_proj",
    "self_attn",
    "text_model",
    "token_embedding",
    "v_proj",
)
"""Every part of the modules' names that is no number."""

FIRST = {"ss_v2": "False"}
SECOND = {"ss_v2": "True"}

VERSIONS = {
    768: {
        "": BaseVersion(
            "SD1", FIRST | {"ss_base_model_version": "sd_v1"}, "stable-diffusion-v1", 512
        ),
        "v_prediction": BaseVersion(
            "SD1", FIRST | {"ss_base_model_version": "sd_v1_v"}, "stable-diffusion-v1", 512
        ),
    },
    1024: {
        "": BaseVersion("SD2", SECOND | {"ss_base_model_version": "sd_v2"}),
        "epsilon": BaseVersion(
            "SD2", SECOND | {"ss_base_model_version": "sd_v2"}, "stable-diffusion-v2-512", 512
        ),
        "v_prediction": BaseVersion(
            "SD2", SECOND | {"ss_base_model_version": "sd_v2_v"}, "stable-diffusion-v2-768-v", 768
        ),
    },
}
"""Width of the text -> what the base predicts -> the version, in the words of other programs."""

KEY_NAMES = KeyNames(
    components=("unet", "text_encoder"),
    levels={"text_encoder": "text_model."},
    tokens={"text_encoder": "string_to_param.*"},
    prefixes={
        "unet": ("lora_unet_", "lycoris_unet_", "lycoris_"),
        "text_encoder": ("lora_te_", "lora_te1_", "lycoris_te_", "lycoris_te1_", "lycoris_"),
    },
    words={"unet": UNET_WORDS, "text_encoder": TEXT_WORDS},
    text_layers={
        "unet": ("attn2.to_k", "attn2.to_v"),
        "text_encoder": ("q_proj", "k_proj", "v_proj", "out_proj", "fc1"),
    },
    versions=VERSIONS,
    order=NUMBERED_LAYERS,
)
