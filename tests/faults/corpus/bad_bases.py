"""Base models that are none, or not whole."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from corpus import LFS_POINTER, WEB_PAGE, Case, Harmful, Place, picture, replaced
from safetensors.torch import load_file, save_file

UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
WEIGHTS = {"unet": UNET, "vae": VAE, "text_encoder": TEXT}


DEAR = ("without text_encoder/config.json", "text_encoder/config configuration is of no settings")
"""What makes transformers build a text encoder of full size."""


def trained_on(name: str, spoil: Callable[[Path], object], *says: str) -> Case:
    """A copy of the built-in base that is spoilt."""

    def make(place: Place) -> list[str]:
        base = place.base()
        spoil(base)
        return place.train(pretrained_model_name_or_path=base)

    return Case(f"base: {name}", make, ("my_base", *says), dear=name in DEAR)


def with_json(file: str, **entries: object) -> Callable[[Path], object]:
    """Other entries in one of its files; None takes an entry out."""

    def spoil(base: Path) -> None:
        content = json.loads((base / file).read_text("utf-8")) | entries
        kept = {key: value for key, value in content.items() if value is not None}
        replaced(base / file, json.dumps(kept))

    return spoil


def with_file(file: str, content: bytes | str) -> Callable[[Path], object]:
    return lambda base: replaced(base / file, content)


def without(file: str) -> Callable[[Path], object]:
    def spoil(base: Path) -> None:
        path = base / file
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return spoil


def cut(file: str, share: float) -> Callable[[Path], object]:
    def spoil(base: Path) -> None:
        content = (base / file).read_bytes()
        replaced(base / file, content[: int(len(content) * share)])

    return spoil


def with_tensors(
    file: str, change: Callable[[dict[str, torch.Tensor]], object]
) -> Callable[[Path], object]:
    def spoil(base: Path) -> None:
        tensors = load_file(base / file)
        change(tensors)
        (base / file).unlink()
        save_file(tensors, base / file, {"format": "pt"})

    return spoil


def first(tensors: dict[str, torch.Tensor]) -> str:
    return min(name for name, tensor in tensors.items() if tensor.ndim > 1)


def not_numbers(value: float) -> Callable[[dict[str, torch.Tensor]], object]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[first(tensors)].view(-1)[3] = value

    return change


def of_another_shape(tensors: dict[str, torch.Tensor]) -> None:
    name = first(tensors)
    tensors[name] = torch.zeros(3, *tensors[name].shape[1:])


def shards(base: Path) -> None:
    """Part the denoiser among two files, as big models are, and spoil the second."""
    tensors = load_file(base / UNET)
    names = sorted(tensors)
    (base / UNET).unlink()
    stem = "diffusion_pytorch_model"
    parts = {f"{stem}-0000{n + 1}-of-00002.safetensors": names[n::2] for n in range(2)}
    for file, keys in parts.items():
        save_file({key: tensors[key] for key in keys}, base / "unet" / file, {"format": "pt"})
    table = {"metadata": {}, "weight_map": {key: f for f, keys in parts.items() for key in keys}}
    (base / "unet" / f"{stem}.safetensors.index.json").write_text(json.dumps(table))
    second = base / "unet" / f"{stem}-00002-of-00002.safetensors"
    second.write_bytes(second.read_bytes()[:-1000])


def shard_gone(base: Path) -> None:
    shards(base)
    (base / "unet" / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()


def pickled(file: str, new: str, content: object) -> Callable[[Path], object]:
    def spoil(base: Path) -> None:
        (base / file).unlink()
        torch.save(content, base / new)

    return spoil


def of_class(name: str) -> Callable[[Path], object]:
    return with_json("model_index.json", _class_name=name)


FOLDERS = [
    *(
        trained_on(f"without {part}", without(part), part.partition("/")[0])
        for part in (
            *("unet", "vae", "text_encoder", "tokenizer", "scheduler", "model_index.json"),
            *("unet/config.json", "vae/config.json", "text_encoder/config.json"),
            *("scheduler/scheduler_config.json", "tokenizer/vocab.json", *WEIGHTS.values()),
        )
        if part != "tokenizer/vocab.json"
    ),
    *(
        trained_on(f"{part} cut at {share:.0%}", cut(file, share), part)
        for part, file in WEIGHTS.items()
        for share in (0.0, 0.01, 0.5, 0.999)
    ),
    *(
        trained_on(f"{part} is {what}", with_file(file, content), part)
        for part, file in WEIGHTS.items()
        for what, content in (
            ("an LFS pointer", LFS_POINTER),
            ("a web page", WEB_PAGE),
            ("a picture", picture()),
        )
    ),
    *(
        trained_on(f"{part} {what}", with_tensors(file, change), part)
        for part, file in WEIGHTS.items()
        for what, change in (
            ("lacks a tensor", lambda tensors: tensors.pop(first(tensors))),
            ("has a tensor of another shape", of_another_shape),
            ("holds NaN", not_numbers(float("nan"))),
            ("holds infinity", not_numbers(float("inf"))),
        )
    ),
    *(
        trained_on(f"of another family: {name}", of_class(name), name)
        for name in (
            "StableDiffusionXLPipeline",
            "FluxPipeline",
            "StableDiffusion3Pipeline",
            "StableDiffusionInpaintPipeline",
            "KandinskyPipeline",
        )
    ),
    trained_on("class of nothing", of_class(""), "model_index.json"),
    trained_on("class is a list", with_json("model_index.json", _class_name=["a"]), "model_index"),
    trained_on("index without a class", with_json("model_index.json", _class_name=None), "index"),
    trained_on("index is a web page", with_file("model_index.json", WEB_PAGE), "model_index.json"),
    trained_on("index is a list", with_file("model_index.json", "[]"), "model_index.json"),
    trained_on("index nests without end", with_file("model_index.json", "[" * 99_999), "index"),
    trained_on("index is binary", with_file("model_index.json", bytes(range(256))), "index"),
    *(
        trained_on(
            f"{part} configuration is {what}",
            with_file(f"{part}.json", content),
            part.split("/")[0],
        )
        for part in (
            "unet/config",
            "vae/config",
            "text_encoder/config",
            "scheduler/scheduler_config",
        )
        for what, content in (
            ("empty", ""),
            ("a list", "[]"),
            ("of no settings", "{}"),
            ("a web page", WEB_PAGE),
        )
    ),
    trained_on(
        "unet of another width", with_json("unet/config.json", cross_attention_dim=7), "unet"
    ),
    trained_on(
        "unet of no size", with_json("unet/config.json", sample_size=0), "unet", "sample_size"
    ),
    trained_on("unet of a size in words", with_json("unet/config.json", sample_size="big"), "unet"),
    trained_on(
        "unet of unknown blocks", with_json("unet/config.json", down_block_types=["X"] * 3), "unet"
    ),
    trained_on("vae of other latents", with_json("vae/config.json", latent_channels=5)),
    trained_on(
        "schedule that is not known",
        with_json("scheduler/scheduler_config.json", beta_schedule="x"),
        "'x'",
    ),
    trained_on(
        "prediction that is not known",
        with_json("scheduler/scheduler_config.json", prediction_type="sample"),
        "'sample'",
    ),
    trained_on(
        "no timesteps",
        with_json("scheduler/scheduler_config.json", num_train_timesteps=0),
        "scheduler",
    ),
    trained_on(
        "timesteps in words",
        with_json("scheduler/scheduler_config.json", num_train_timesteps="many"),
        "scheduler",
    ),
    trained_on(
        "no vocabulary",
        lambda base: [
            p.unlink() for p in (base / "tokenizer").glob("[vtm]*") if "config" not in p.name
        ],
        "tokenizer",
    ),
    trained_on(
        "vocabulary is a web page",
        lambda base: [
            replaced(p, WEB_PAGE)
            for p in (base / "tokenizer").glob("[vtm]*")
            if "config" not in p.name
        ],
        "tokenizer",
    ),
    trained_on("second shard cut", shards, "unet"),
    trained_on("second shard gone", shard_gone, "unet"),
    trained_on(
        "unet pickled with code",
        pickled(UNET, "unet/diffusion_pytorch_model.bin", Harmful()),
        "unet",
    ),
    trained_on(
        "vae pickled with code",
        pickled(VAE, "vae/diffusion_pytorch_model.bin", {"a": Harmful()}),
        "vae",
    ),
    trained_on(
        "text encoder pickled with code",
        pickled(TEXT, "text_encoder/pytorch_model.bin", Harmful()),
        "text_encoder",
    ),
]


NAMES = [
    Case(
        f"base: named {name[:40]!r}",
        lambda place, name=name: place.train(pretrained_model_name_or_path=name),
        says,
    )
    for name, says in {
        "scumble-tinny": ("scumble-tinny", "scumble-tiny"),
        "nowhere": ("nowhere", "scumble-tiny"),
        "user/model": ("user/model", "Hub"),
        "user/model@": ("user/model@",),
        "user/model/unet": ("user/model/unet",),
        "../../etc": ("../../etc",),
        "https://example.org/model": ("https://example.org/model",),
        "x" * 300: ("xxx", "too long"),
        "~nobody-of-that-name/model": ("~nobody-of-that-name",),
        "with\x1b[2Jescapes": ("\\u001b",),
        " ": ("base model",),
    }.items()
]


def drawn_with(name: str, spoil: Callable[[Path], object], *says: str) -> Case:
    def make(place: Place) -> list[str]:
        base = place.base()
        spoil(base)
        return place.generate(pretrained_model_name_or_path=base)

    return Case(f"base: drawing, {name}", make, ("my_base", *says))


DRAWN = [
    drawn_with("unet gone", without(UNET), "unet"),
    drawn_with("vae cut", cut(VAE, 0.5), "vae"),
    drawn_with(
        "text encoder holds NaN", with_tensors(TEXT, not_numbers(float("nan"))), "text_encoder"
    ),
    drawn_with(
        "of another family", of_class("StableDiffusionXLPipeline"), "StableDiffusionXLPipeline"
    ),
    drawn_with("scheduler is empty", with_file("scheduler/scheduler_config.json", ""), "scheduler"),
]

CASES = [*FOLDERS, *NAMES, *DRAWN]
