"""PEFT's settings lie beside its own file, and say nothing of any other in the folder."""

import json

import pytest
import torch
from safetensors.torch import save_file

from scumble.families import FAMILIES
from scumble.formats import AdapterWeights, ModuleWeights, read_adapter, write_adapter

NAMES = FAMILIES["stable_diffusion"].key_names
ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


def lora() -> ModuleWeights:
    torch.manual_seed(0)
    return ModuleWeights("lora", {"down": torch.randn(4, 6), "up": torch.randn(10, 4)}, 4.0)


FOREIGN = {"r": 8, "lora_alpha": 32, "init_lora_weights": "pissa"}


@pytest.mark.parametrize("format", ["peft", "attn_procs", "kohya"])
def test_settings_of_another_file_in_the_folder_mean_nothing(format, tmp_path):
    whole = {part: lora() for part in ("to_q", "to_k", "to_v", "to_out.0")}
    stem = ATTENTION.removesuffix("to_q")
    wanted = AdapterWeights({"unet": {stem + part: entry for part, entry in whole.items()}})
    path = tmp_path / "a.safetensors"
    for content in (json.dumps(FOREIGN), "no JSON", None):
        with (tmp_path / "adapter_config.json").open("w") as file:
            file.write(content or "")
            file.truncate(None if content else 2**34)
        write_adapter(wanted, path, NAMES, format)
        read = read_adapter(path, NAMES)
        assert {entry.alpha for entry in read.components["unet"].values()} == {4.0}
        assert "adapter_config.json" not in read.metadata


def test_settings_beside_a_file_of_pefts_own_are_its(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 32}))
    tensors = lora().tensors
    keys = {"down": "lora_A", "up": "lora_B"}
    own = {f"base_model.model.{ATTENTION}.{keys[n]}.weight": t for n, t in tensors.items()}
    save_file(own, tmp_path / "adapter_model.safetensors")
    assert read_adapter(tmp_path, NAMES).components["unet"][ATTENTION].alpha == 32
