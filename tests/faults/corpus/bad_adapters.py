"""Adapter files that are none, are damaged, or belong on another base."""

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path

import torch
from corpus import LFS_POINTER, TINY, WEB_PAGE, Case, Harmful, Place, picture
from safetensors.torch import save_file

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
WIDTH = 128
"""Of that layer of the built-in base."""

STEM = f"lora_unet_{LAYER.replace('.', '_')}"
PEFT = f"unet.{LAYER}"


def kohya(rank: int = 2, width: int = WIDTH, **more: torch.Tensor) -> dict[str, torch.Tensor]:
    """A small LoRA of one layer."""
    tensors = {
        "lora_down.weight": torch.full((rank, width), 0.01),
        "lora_up.weight": torch.full((width, rank), 0.01),
        "alpha": torch.tensor(float(rank)),
    }
    return {f"{STEM}.{key}": tensor for key, tensor in (tensors | more).items()}


def saved(tensors: dict[str, torch.Tensor], **metadata: str) -> Callable[[Path], object]:
    return lambda path: save_file(tensors, path, metadata)


def with_key(name: str, tensor: torch.Tensor) -> Callable[[Path], object]:
    return saved({**kohya(), name: tensor})


def with_value(key: str, tensor: torch.Tensor) -> Callable[[Path], object]:
    return saved(kohya(**{key: tensor}))


def as_pickle(path: Path) -> None:
    torch.save(kohya(), path)


def two_inside(path: Path) -> None:
    path.mkdir()
    for name in ("a", "b"):
        save_file(kohya(), path / f"{name}.safetensors")


def model_inside(path: Path) -> None:
    path.mkdir()
    (path / "model_index.json").write_text("{}")


def unfinished_run(path: Path) -> None:
    (path / "checkpoint-500").mkdir(parents=True)


def header(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


NAN, NOTHING = float("nan"), torch.zeros(0)

SPOILT: dict[str, tuple[Callable[[Path], object] | bytes | str, tuple[str, ...]]] = {
    "nan.safetensors": (with_value("lora_up.weight", torch.full((WIDTH, 2), NAN)), ("NaN",)),
    "one_nan.safetensors": (
        with_value("lora_down.weight", torch.eye(2, WIDTH).index_fill(1, torch.tensor(3), NAN)),
        ("NaN",),
    ),
    "infinite.safetensors": (
        with_value("lora_up.weight", torch.full((WIDTH, 2), float("inf"))),
        ("infinite",),
    ),
    "alpha_nan.safetensors": (with_value("alpha", torch.tensor(NAN)), ("alpha",)),
    "rank_0.safetensors": (saved(kohya(rank=0)), (LAYER.split(".")[0],)),
    "ranks_differ.safetensors": (with_value("lora_up.weight", torch.ones(WIDTH, 3)), ("rank",)),
    "whole_numbers.safetensors": (
        with_value("lora_up.weight", torch.ones(WIDTH, 2, dtype=torch.int64)),
        (),
    ),
    "up_alone.safetensors": (saved({f"{STEM}.lora_up.weight": torch.ones(WIDTH, 2)}), ("lora",)),
    "unknown_key.safetensors": (with_key("model.extra", torch.ones(3)), ("model.extra",)),
    "base_unet.safetensors": ((TINY / "unet/diffusion_pytorch_model.safetensors").read_bytes(), ()),
    "base_text.safetensors": ((TINY / "text_encoder/model.safetensors").read_bytes(), ()),
    "checkpoint.safetensors": (
        saved({"model.diffusion_model.out.2.weight": torch.ones(4, 8, 3, 3)}),
        (),
    ),
    "no_tensors.safetensors": (header("{}"), ()),
    "no_numbers.safetensors": (with_value("lora_up.weight", NOTHING), ()),
    "pointer.safetensors": (LFS_POINTER, ("LFS",)),
    "page.safetensors": (WEB_PAGE, ("web page",)),
    "empty.safetensors": (b"", ()),
    "picture.safetensors": (picture(), ()),
    "bomb.safetensors": (struct.pack("<Q", 2**62) + b"{}", ()),
    "nested.safetensors": (header("[" * 100_000), ()),
    "pickled.safetensors": (as_pickle, ("pickle",)),
    "pickled.bin": (as_pickle, ("pickle",)),
    "several": (two_inside, ("several", "Name the adapter file")),
    "a_model": (model_inside, ("whole model",)),
    "a_run": (unfinished_run, ("checkpoint-500",)),
    "nothing_in_it": (Path.mkdir, ("no .safetensors",)),
    "link.safetensors": (lambda path: path.symlink_to(path), ()),
    "device.safetensors": (lambda path: path.symlink_to("/dev/zero"), ()),
    "absent.safetensors": (lambda _: None, ("no adapter",)),
}
"""Name of a file or folder -> what is there, and what is said besides its name."""

MISFITS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "too_wide.safetensors": (saved(kohya(width=320)), ("320",)),
    "of_sdxl.safetensors": (
        saved({key.replace("_0_attn1", "_9_attn1"): tensor for key, tensor in kohya().items()}),
        (),
    ),
    "of_flux.safetensors": (
        saved(
            {
                "transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": torch.ones(2, 8),
                "transformer.single_transformer_blocks.0.attn.to_q.lora_B.weight": torch.ones(8, 2),
            }
        ),
        (),
    ),
}
"""Sound files that belong on another base."""


def put(place: Place, name: str, content: Callable[[Path], object] | bytes | str) -> Path:
    path = place.root / name
    if callable(content):
        content(path)
    else:
        place.write(name, content)
    return path


def commands(place: Place, path: Path) -> dict[str, list[str]]:
    output = ["--output", str(place.out / "new.safetensors")]
    return {
        "generate": place.generate(adapter=path, pretrained_model_name_or_path="scumble-tiny"),
        "inspect": ["inspect", str(path), "--norms"],
        "convert": ["convert", str(path), "--format", "peft", *output],
        "merge": ["merge", f"{path}:0.5", "--base", "scumble-tiny", "--output", str(place.out)],
    }


def used(verb: str, name: str) -> Case:
    content, says = (SPOILT | MISFITS)[name]
    return Case(
        f"adapter: {verb} {name}",
        lambda place: commands(place, put(place, name, content))[verb],
        (name.partition(".")[0], *says),
    )


def strength(text: str, *says: str) -> Case:
    def make(place: Place) -> list[str]:
        put(place, "good.safetensors", saved(kohya()))
        adapter = f"{place.root / 'good.safetensors'}:{text}"
        return place.generate(adapter=adapter, pretrained_model_name_or_path="scumble-tiny")

    return Case(f"adapter: strength {text!r}", make, (text, *says))


def resumed(name: str, make_it: Callable[[Place], object], *says: str, **changes: object) -> Case:
    def make(place: Place) -> list[str]:
        found = make_it(place)
        return place.train(**{"resume_from_checkpoint": found or "latest", **changes})

    return Case(f"checkpoint: {name}", make, says)


def manifest(text: str) -> Callable[[Place], object]:
    return lambda place: place.write("checkpoint-1/manifest.json", text).parent


def harmful_state(place: Place) -> Path:
    """A checkpoint whose state is code, and whose manifest vouches for it."""
    state = place.write("checkpoint-1/training_state.pt", b"")
    torch.save(Harmful(), state)
    digest = hashlib.sha256(state.read_bytes()).hexdigest()
    about = {state.name: {"bytes": state.stat().st_size, "sha256": digest}}
    facts = {"step": 1, "settings": {}, "data_digest": "", "files": about}
    return place.write("checkpoint-1/manifest.json", json.dumps(facts)).parent


CHECKPOINTS = [
    resumed("not there", lambda _: "checkpoint-7", "checkpoint-7", "none"),
    resumed("a file", lambda place: place.write("checkpoint-7", "x"), "checkpoint-7"),
    resumed("an empty folder", lambda place: place.pictures, "pictures", "checkpoint"),
    resumed("state that is code", harmful_state, "checkpoint-1"),
    resumed("manifest is empty", manifest(""), "checkpoint-1"),
    resumed("manifest is a list", manifest("[]"), "checkpoint-1"),
    resumed("manifest nests without end", manifest("[" * 100_000), "checkpoint-1"),
    resumed("manifest of other things", manifest('{"step": 1}'), "checkpoint-1"),
    resumed(
        "manifest without files",
        manifest('{"step": 1, "settings": {}, "data_digest": "", "files": {}}'),
        "checkpoint-1",
    ),
    resumed(
        "manifest of files that are gone",
        manifest('{"step": 1, "settings": {}, "data_digest": "", "files": {"a": {"bytes": 1}}}'),
        "checkpoint-1",
    ),
    resumed(
        "manifest that leads outside",
        manifest('{"step": 1, "settings": {}, "data_digest": "", "files": {"../x": {}}}'),
        "checkpoint-1",
    ),
]

CASES = [
    *(used(verb, name) for name in SPOILT for verb in ("generate", "convert")),
    *(
        used("inspect", name)
        for name in (
            "pointer.safetensors",
            "page.safetensors",
            "device.safetensors",
            "rank_0.safetensors",
            "one_nan.safetensors",
        )
    ),
    *(used(verb, name) for name in MISFITS for verb in ("generate", "merge")),
    *(strength(text, "no adapter") for text in ("x", "nan", "inf", "1e400")),
    *CHECKPOINTS,
]
