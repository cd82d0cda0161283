"""Single files in the place of a base model that are none."""

import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from corpus import LFS_POINTER, TINY, WEB_PAGE, Case, Harmful, Place, picture
from safetensors.torch import save_file

UNET = "unet/diffusion_pytorch_model.safetensors"


def checkpoint(name: str, content: Callable[[Path], object] | bytes | str, *says: str) -> Case:
    """One file in the place of a base."""

    def make(place: Place) -> list[str]:
        path = place.root / name
        if callable(content):
            content(path)
        else:
            place.write(name, content)
        return place.train(pretrained_model_name_or_path=path)

    return Case(f"base: file {name}", make, (name, *says))


def tensors_of(*names: str) -> Callable[[Path], object]:
    return lambda path: save_file({name: torch.ones(4, 4) for name in names}, path)


def header(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(Harmful()))
        file.writestr("../../outside", "x")


SD1 = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
CASES = [
    checkpoint(
        "lora.safetensors", tensors_of("lora_unet_a.lora_up.weight", "lora_unet_a.alpha"), "LoRA"
    ),
    checkpoint("vae.safetensors", tensors_of("first_stage_model.a", "first_stage_model.b"), "VAE"),
    checkpoint(
        "sdxl.safetensors",
        tensors_of("conditioner.embedders.1.model.ln_final.weight"),
        "1.x or 2.x",
    ),
    checkpoint("flux.safetensors", tensors_of("double_blocks.0.img_attn.qkv.weight"), "1.x or 2.x"),
    checkpoint("pruned.safetensors", tensors_of(SD1), "lacks"),
    checkpoint("cut.safetensors", (TINY / UNET).read_bytes()[:5000]),
    checkpoint("empty.safetensors", b""),
    checkpoint("short.safetensors", b"\x08\0\0"),
    checkpoint("page.safetensors", WEB_PAGE, "web page"),
    checkpoint("pointer.safetensors", LFS_POINTER, "LFS"),
    checkpoint("zeros.safetensors", bytes(4096)),
    checkpoint("bomb.safetensors", struct.pack("<Q", 2**62) + b"{}"),
    checkpoint("list.safetensors", header("[]")),
    checkpoint("nested.safetensors", header("[" * 100_000)),
    checkpoint("no_tensors.safetensors", header("{}"), "1.x or 2.x"),
    checkpoint("picture.safetensors", picture()),
    checkpoint("code.ckpt", lambda path: torch.save({"state_dict": Harmful()}, path), "run code"),
    checkpoint(
        "old_code.ckpt",
        lambda path: torch.save(Harmful(), path, _use_new_zipfile_serialization=False),
        "run code",
    ),
    checkpoint("archive.ckpt", archive),
    checkpoint("list.ckpt", lambda path: torch.save([torch.ones(3)], path)),
    checkpoint("tensor.ckpt", lambda path: torch.save(torch.ones(3), path)),
    checkpoint("state_is_a_list.ckpt", lambda path: torch.save({"state_dict": [1]}, path)),
    checkpoint("keys_are_numbers.ckpt", lambda path: torch.save({1: torch.ones(3)}, path)),
    checkpoint("values_are_numbers.ckpt", lambda path: torch.save({SD1: 1}, path)),
    checkpoint("empty.ckpt", b""),
    checkpoint("page.ckpt", WEB_PAGE),
    checkpoint("pointer.ckpt", LFS_POINTER),
    checkpoint("model.gguf", b"GGUF" + bytes(60), ".safetensors"),
    checkpoint("model.zip", b"PK\x03\x04" + bytes(60), ".safetensors"),
    checkpoint("loop.safetensors", lambda path: path.symlink_to(path)),
    checkpoint("folder.safetensors", Path.mkdir, "model_index.json"),
]
