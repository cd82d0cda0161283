"""What adapter files call the layers of Stable Diffusion 1.x and 2.x.

From tables, never from a live model: other versions of the libraries name some layers
otherwise, and files outlive them.
"""

from scumble.families.numbered_layers import NUMBERED_LAYERS
from scumble.families.original_names import words_of
from scumble.formats.key_names import BaseVersion, KeyNames

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
    words={component: words_of(component) for component in ("unet", "text_encoder")},
    text_layers={
        "unet": ("attn2.to_k", "attn2.to_v"),
        "text_encoder": ("q_proj", "k_proj", "v_proj", "out_proj", "fc1"),
    },
    versions=VERSIONS,
    order=NUMBERED_LAYERS,
)
