"""Every parser of the package, with sound input to begin from."""

import io
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

import torch
from PIL import Image, features
from safetensors.torch import save, save_file

from scumble import TrainConfig
from scumble.adapters.inject import Target as LayerTarget
from scumble.adapters.inject import matches
from scumble.config import METHOD_GROUPS
from scumble.config.files import read_settings
from scumble.config.generate import GenerateConfig
from scumble.data.cache import TensorStore, content_key
from scumble.data.captions import caption_for
from scumble.data.pictures import BadPictureError, decode, decode_mask
from scumble.data.scan import ScanReport, scan
from scumble.data.sources import image_folder
from scumble.errors import UserError
from scumble.families import FAMILIES, Components, family_of, locate
from scumble.formats import read_adapter
from scumble.formats.sidecars import read_notes
from scumble.formats.streaming import open_streamed
from scumble.hub.card import card_for_hub
from scumble.hub.licence import licence_of
from scumble.hub.parcel import _settings
from scumble.hub.pull import hub_name
from scumble.inference.base_of import base_of
from scumble.inference.generator import parse_adapter
from scumble.randomness import generator
from scumble.runs.listing import read_run
from scumble.runs.log import follow, read_tail, recent_steps
from scumble.runs.queue import Queue
from scumble.tools.base_parts import component_names
from scumble.tools.convert import convert_adapter
from scumble.tools.inspect import inspect_adapter
from scumble.training.checkpoints import STATE, CheckpointWriter, open_checkpoint
from scumble.training.class_pictures import _drawn
from scumble.training.counts import _path as count_path
from scumble.training.counts import remember, remembered
from scumble.training.journal import Journal
from scumble.training.record import is_finished
from scumble.ui.folders import Folders, plain_name
from scumble.ui.space_folder import _run_settings, _shown_prompts

NAMES = FAMILIES["stable_diffusion"].key_names
KEY = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora.{}.weight"


@dataclass(frozen=True)
class Target:
    """A parser.

    Args:
        name: of the target.
        seeds: sound input.
        read: parses input; gets a folder of its own as well, which stays from one to the next.
        refusals: how it may refuse, beside a `UserError`.
        share: of the usual number of attempts; less for what is slow.
    """

    name: str
    seeds: Sequence[bytes]
    read: Callable[[bytes, Path], object]
    refusals: tuple[type[Exception], ...] = field(default=())
    share: float = 1.0


def text(content: object) -> bytes:
    return json.dumps(content).encode()


def at(folder: Path, name: str, raw: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw)
    return path


# Settings

TYPES = {n: h for g in METHOD_GROUPS["text_to_image"] for n, h in get_type_hints(g).items()}
SETTINGS = {"pretrained_model_name_or_path": "x", "train_data_dir": "y", "rank": 8, "report_to": []}
SETTINGS |= {"learning_rate": 1e-4, "target_modules": ["to_q:8", "to_v"], "center_crop": True}
TOML = b'rank = 8\nlearning_rate = 1e-4\n[data]\ntrain_data_dir = "y"\ntarget_modules = ["to_q"]\n'
LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{f'*a{n - 1}, ' * 9}]\n" for n in range(1, 10))
"""Some lines of YAML that are a billion words once they are written out."""
YAML = b"rank: 8\nlearning_rate: 1e-4\ndata:\n  train_data_dir: y\n  target_modules: [to_q, a]\n"


def settings(suffix: str) -> Callable[[bytes, Path], object]:
    def read(raw: bytes, folder: Path) -> object:
        given = read_settings(at(folder, f"settings.{suffix}", raw), TYPES)
        return TrainConfig(**{"pretrained_model_name_or_path": "x", "train_data_dir": "y"} | given)

    return read


# Data


def encoded(format: str, mode: str = "RGB", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image = Image.linear_gradient("L").resize((24, 16)).convert(mode)
    image.save(buffer, format, **options)
    return buffer.getvalue()


def pictures() -> list[bytes]:
    """One of every format that is read."""
    exif = Image.Exif()
    exif[0x0112] = 6
    found = [encoded("JPEG", exif=exif), encoded("JPEG", "CMYK"), encoded("PNG", "I;16")]
    found += [encoded("PNG", "RGBA"), encoded("PNG", "P", transparency=3), encoded("GIF", "P")]
    found += [encoded("BMP"), encoded("TIFF"), encoded("TIFF", compression="tiff_lzw")]
    found += [encoded("WEBP")] if features.check("webp") else []
    found += [encoded("AVIF")] if features.check("avif") else []
    found += [encoded("JPEG2000")] if features.check("jpg_2000") else []
    return found


def captions(name: str) -> Callable[[bytes, Path], object]:
    def read(raw: bytes, folder: Path) -> object:
        at(folder, "a.png", PNG)
        at(folder, name, raw)
        options = {"on_bad_image": "error", "on_missing_caption": "empty"}
        found = list(scan(image_folder(folder), ScanReport(), **options))
        draw = generator(0, "caption", 0, 0)
        return [
            caption_for(p.captions, draw, dropout=0.0, shuffle=True, keep_tokens=1) for p in found
        ]

    return read


PNG = encoded("PNG")

# Bases


def base_file(name: str, *parts: str) -> Callable[[bytes, Path], object]:
    """Reads a copy of the built-in base with one file changed."""

    def read(raw: bytes, folder: Path) -> object:
        base = folder / "base"
        if not base.is_dir():
            shutil.copytree(TINY, base)
        kept = (TINY / name).read_bytes()
        at(base, name, raw)
        try:
            model = locate(str(base))
            family = family_of(model)
            family.geometry(model)
            family.objective(model)
            component_names(base)
            licence_of(model)
            components = Components(model)
            if parts:
                family.load(components, parts, torch.float32)
            return components
        finally:
            at(base, name, kept)

    return read


TINY = Path(locate("scumble-tiny").location)


def of_base(name: str, *parts: str, share: float = 0.3) -> Target:
    return Target(f"base {name}", [(TINY / name).read_bytes()], base_file(name, *parts), (), share)


def pickled(raw: bytes, folder: Path) -> object:
    with open_streamed([at(folder, "a.ckpt", raw)]) as weights:
        return [weights.tensor(key) for key in weights.entries]


def torch_files() -> list[bytes]:
    found = []
    for is_zip in (True, False):
        buffer = io.BytesIO()
        content = {"state_dict": {"a": torch.ones(2, 3), "b": torch.zeros(4).half()}}
        torch.save(content, buffer, _use_new_zipfile_serialization=is_zip)
        found.append(buffer.getvalue())
    return found


# Adapters

PAIR = {KEY.format("down"): torch.ones(2, 4), KEY.format("up"): torch.ones(4, 2)}
TOLD = {
    "ss_tag_frequency": json.dumps({"1_cat": {"a cat": 3}}),
    "ss_bucket_info": json.dumps({"buckets": {"0": {"resolution": [64, 64], "count": 3}}}),
    "ss_dataset_dirs": json.dumps({"1_cat": {"n_repeats": 1, "img_count": 3}}),
    "ss_network_args": json.dumps({"conv_dim": 4}),
    "ss_training_started_at": "1700000000.5",
    "ss_learning_rate": "0.0001",
    "modelspec.date": "2024-01-01T00:00:00",
    "training": json.dumps({"steps": 4, "epochs": 2, "folders": {}, "tags": {}, "date": 1.0}),
    "base_model": "user/name",
    "tokens": json.dumps({"<a>": 1}),
}


def told(raw: bytes, folder: Path) -> object:
    """Metadata of an adapter, as a file holds it: text by key."""
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict):
        return None
    metadata = {k: v if isinstance(v, str) else json.dumps(v) for k, v in content.items()}
    metadata = {k.encode("utf-8", "replace").decode(): v for k, v in metadata.items()}
    metadata = {k: v.encode("utf-8", "replace").decode() for k, v in metadata.items()}
    path = folder / "a.safetensors"
    save_file(PAIR, path, metadata)
    found = inspect_adapter(path, hashes=True)
    convert_adapter(path, folder / "b.safetensors", "kohya", force=True)
    return found.text(), found.to_dict(), base_of(path)


def told_inside(raw: bytes, folder: Path) -> object:
    """The same, where one value is what was damaged."""
    value = raw.decode("utf-8", "replace")
    for name in ("ss_tag_frequency", "ss_bucket_info", "ss_network_args", "training"):
        content = text(TOLD | {name: value})
        _ended(lambda content=content: told(content, folder))  # type: ignore[misc]
    return None


PEFT = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["to_q"], "bias": "none"}
PEFT |= {"rank_pattern": {"to_q": 2}, "alpha_pattern": {"^x.to_q": 4}, "use_dora": False}


def peft_settings(raw: bytes, folder: Path) -> object:
    own = {key.replace("unet.", "base_model.model."): tensor for key, tensor in PAIR.items()}
    save_file(own, folder / "adapter_model.safetensors")
    at(folder, "adapter_config.json", raw)
    return read_adapter(folder, NAMES)


# Runs and their checkpoints


def config_of(folder: Path) -> TrainConfig:
    places = {"train_data_dir": str(folder / "set"), "output_dir": str(folder / "run")}
    return TrainConfig(pretrained_model_name_or_path="scumble-tiny", **places)


RECORD = {"status": "finished", "started": 1.0, "total_steps": 4, "peak_memory_mib": 3.5}
RECORD |= {"process": {"pid": 4, "started": 1.5, "host": "x"}, "result": "a.safetensors"}
RECORD |= {"settings": {"method": "text_to_image", "rank": 8, "hub_model_id": "a/b"}, "base": "x"}
STEPS = [{"step": n, "loss": 0.5, "elapsed_s": n * 2.0, "samples_per_s": 1.5} for n in range(1, 5)]
LOG = b"".join(text(entry) + b"\n" for entry in [*STEPS, {"step": 4, "held_out_loss": 0.25}])


def record(raw: bytes, folder: Path) -> object:
    run = folder / "run"
    path = at(run, "run.json", raw)
    at(run, "log.jsonl", LOG)
    at(run, "a.safetensors", save(PAIR))
    found = [is_finished(config_of(folder)), _settings(path), _run_settings(run / "a.safetensors")]
    view = _ended(lambda: read_run(run))
    return [*found, view and view.to_dict(), base_of(run / "a.safetensors")]


def _ended(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except UserError:
        return None


def log(raw: bytes, folder: Path) -> object:
    run = folder / "run"
    at(run, "run.json", text(RECORD | {"status": "running"}))
    at(run, "log.jsonl", raw)
    found = [follow(run), recent_steps(read_tail(run)), read_run(run).to_dict()]
    runtime = SimpleNamespace(device=torch.device("cpu"), is_main=True, dtype=torch.float32)
    journal = Journal(runtime, run, 2, 4)  # type: ignore[arg-type]
    journal.close()
    assert sum(journal.losses) == sum(journal.losses), "a loss that is no number was kept"
    return found


def checkpoint(folder: Path) -> Path:
    if not (folder / "run" / "checkpoint-1").is_dir():
        state = {"parameters": {"a": torch.ones(2)}, "update": {}, "average": {}, "choice": {}}
        state |= {"phase": "x"}
        CheckpointWriter(config_of(folder), "digest").write(1, lambda _: None, state)
    return folder / "run" / "checkpoint-1"


def manifest(raw: bytes, folder: Path) -> object:
    place = checkpoint(folder)
    at(place, "manifest.json", raw)
    found = open_checkpoint(place)
    return found.differences(config_of(folder)), found.training_state()


def state(raw: bytes, folder: Path) -> object:
    place = checkpoint(folder)
    found = open_checkpoint(place)
    kept = (place / STATE).read_bytes()
    at(place, STATE, raw)
    try:
        return found.training_state()  # as if the list of files had been forged with it
    finally:
        at(place, STATE, kept)


def class_list(raw: bytes, folder: Path) -> object:
    at(folder, "class_pictures.json", raw)
    return _drawn(folder, {"class_prompt": "a dog", "base": "x"})


CLASS_LIST = {
    "origin": {"class_prompt": "a dog", "base": "x"},
    "pictures": {"drawn_00000.png": "0"},
}

# The cache

CACHE_KEY = content_key("x")


def cache_entry() -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        store = TensorStore(Path(folder))
        store.put(CACHE_KEY, {"mean": torch.ones(2, 3), "std": torch.zeros(2, 3)}, "x")
        return next(Path(folder).rglob("*.safetensors")).read_bytes()


def cached(raw: bytes, folder: Path) -> object:
    at(folder / CACHE_KEY[:2], f"{CACHE_KEY}.safetensors", raw)
    return TensorStore(folder).get(CACHE_KEY)


def counted(raw: bytes, folder: Path) -> object:
    path = count_path(folder, CACHE_KEY)
    at(path.parent, path.name, raw)
    return remembered(folder, CACHE_KEY)


# The page

JOB = {"method": "text_to_image", "output_dir": "x", "queued": 1.5}


def queued(name: str) -> Callable[[bytes, Path], object]:
    def read(raw: bytes, folder: Path) -> object:
        files = {"job.json": text(JOB), "process.json": text(RECORD["process"])}
        files |= {"ended.json": b'{"code": 1}', "output.txt": b"scumble: no\n"} | {name: raw}
        for file, content in files.items():
            at(folder / "a", file, content)
        jobs = Queue(folder).jobs()
        said = [(job.output(), job.complaint(), job.arguments(), job.is_open) for job in jobs]
        assert all(job.code is None or isinstance(job.code, int) for job in jobs)
        return said

    return read


def typed(raw: bytes, folder: Path) -> object:
    """What a visitor types, and what stands behind flags."""
    said = raw.decode("utf-8", "replace")
    folders = Folders(folder / "page")
    assert "/" not in plain_name(said)
    for work in (
        lambda: folders.model(said),
        lambda: folders.inside(said),
        lambda: LayerTarget.parse(said, 4, None),
        lambda: matches("unet.down_blocks.0.attn1.to_q", said[:200]),
        lambda: parse_adapter(said),
        lambda: hub_name(said),
        lambda: GenerateConfig(prompt=(said,), adapter=(said,)),
        lambda: TrainConfig(
            pretrained_model_name_or_path="x",
            train_data_dir="y",
            layer_learning_rates=(said,),
            target_modules=(said,),
            report_to=(said,),
        ),
    ):
        _ended(work)
    return None


TYPED = [b"user/name@main:a.safetensors", b"down_blocks.*.to_q:8:4", b"out/a:0.5", b"mid.*:2e-4"]
TYPED += [b"a photo of <cat>, (red:1.2) sks", b"../../etc/passwd", b"~ann/x"]
CARD = (
    b"---\nbase_model: a/b\nlicense: mit\nwidget:\n- text: x\n  output: {url: a.png}\n---\n\n# A\n"
)


def card(raw: bytes, folder: Path) -> object:
    at(folder, "README.md", raw)
    at(folder, "a.safetensors", save(PAIR))
    base = SimpleNamespace(location=str(folder))
    said = [licence_of(base), _shown_prompts(folder / "README.md")]  # type: ignore[arg-type]
    card_for_hub(raw.decode("utf-8", "replace"), "a/b")
    return [*said, base_of(folder / "a.safetensors")]


def notes(raw: bytes, folder: Path) -> object:
    save_file(PAIR, folder / "a.safetensors")
    path = at(folder, "a.json", raw)
    return _ended(lambda: read_notes(path)), inspect_adapter(folder / "a.safetensors").text()


def checkpoint_file(name: str) -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return (checkpoint(Path(folder)) / name).read_bytes()


def count_note() -> bytes:
    import tempfile

    from scumble.lean.count import Count

    with tempfile.TemporaryDirectory() as folder:
        numbers = dict.fromkeys(Count.__dataclass_fields__, 1)
        remember(Path(folder), CACHE_KEY, Count(**numbers))
        return count_path(Path(folder), CACHE_KEY).read_bytes()


TARGETS = [
    Target("settings in TOML", [TOML], settings("toml")),
    Target("settings in YAML", [YAML, text(SETTINGS)], settings("yaml")),
    Target("caption file", [b"a red cat, sitting\n", "ä 猫".encode()], captions("a.txt")),
    Target(
        "metadata.jsonl", [text({"file_name": "a.png", "text": "x"})], captions("metadata.jsonl")
    ),
    Target("metadata.csv", [b'file_name,text\na.png,"x, y"\n'], captions("metadata.csv")),
    Target("picture", pictures(), lambda raw, _: decode(raw), (BadPictureError,), 4),
    Target("mask", pictures(), lambda raw, _: decode_mask(raw), (BadPictureError,), 2),
    of_base("model_index.json"),
    of_base("scheduler/scheduler_config.json"),
    of_base("README.md"),
    of_base("unet/config.json", "unet"),
    of_base("vae/config.json", "vae"),
    of_base("text_encoder/config.json", "text_encoder"),
    of_base("tokenizer/tokenizer_config.json", "text_encoder"),
    of_base("vae/diffusion_pytorch_model.safetensors", "vae"),
    Target("checkpoint by torch.save", torch_files(), pickled),
    Target("metadata of an adapter", [text(TOLD)], told, (), 0.5),
    Target("values of its metadata", [v.encode() for v in TOLD.values()], told_inside, (), 0.3),
    Target("adapter_config.json", [text(PEFT)], peft_settings),
    Target("run.json", [text(RECORD)], record),
    Target("log.jsonl", [LOG], log),
    Target("manifest of a checkpoint", [checkpoint_file("manifest.json")], manifest),
    Target("state of a training", [checkpoint_file(STATE)], state),
    Target("class_pictures.json", [text(CLASS_LIST)], class_list),
    Target("entry of the cache", [cache_entry()], cached),
    Target("note of the cache", [count_note()], counted),
    Target("job.json of the queue", [text(JOB)], queued("job.json")),
    Target("process.json of the queue", [text(RECORD["process"])], queued("process.json")),
    Target("ended.json of the queue", [b'{"code": 1}'], queued("ended.json")),
    Target("output.txt of the queue", [b"a\rb\nscumble: no\n  hint\n"], queued("output.txt")),
    Target("what is typed", TYPED, typed),
    Target("model card", [CARD], card, (), 0.5),
    Target("notes beside an adapter", [text({"description": "x", "notes": "y"})], notes),
]
