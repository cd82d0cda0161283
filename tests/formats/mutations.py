"""Valid adapter files of every kind, and what can happen to a file: seeded, the same every time."""

import json
import math
import random
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file

from scumble.adapters import ADAPTERS, LayerSpec
from scumble.families import FAMILIES
from scumble.formats import AdapterWeights, LearnedToken, ModuleWeights, write_adapter

NAMES = FAMILIES["stable_diffusion"].key_names
LINEAR = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "down_blocks.0.resnets.0.conv1"
NORM = "down_blocks.0.resnets.0.norm1"
TEXT = "text_model.encoder.layers.0.self_attn"
SHAPES = {LINEAR: (8, 12), CONV: (8, 6, 3, 3), NORM: (8,)}
CODES = {
    **{"F64": "<d", "F32": "<f", "F16": "<e", "BF16": "", "I64": "<q", "I32": "<i", "I8": "<b"},
    **{"U64": "<Q", "U16": "<H", "U8": "<B", "BOOL": "", "F8_E4M3": "", "F8_E8M0": "", "C64": ""},
}
"""Kind of numbers -> how a number of it is packed; empty where any bytes do."""
WIDTHS = {"64": 8, "32": 4, "16": 2}
STRANGE = ["", "../../x", ".", "\x1b[2J", "a\nb", "ü\u202e", "猫", "\ufffe", "a" * 5000]
STRANGE += ["lora_unet_" + "a_" * 5000 + ".alpha", "lora_unet_" + "_" * 200 + ".alpha"]
CONFIGS = ("[", "[]", "3", '"x"', "[" * 50_000, '{"unet.lora_alpha": 1e999}')
CONFIGS += ('{"unet.lora_alpha": ' + "9" * 400 + "}", '{"unet.alpha_pattern": {"(a+)+x": 1}}')
CONFIGS += ('{"unet.r": {}, "unet.peft_type": "LOKR"}', '{"text_width": [1]}', '["Unknown"]')


class Tensor(NamedTuple):
    """One tensor of a safetensors file, as it lies there."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


Tensors = Mapping[str, Tensor]


def entry(kind: str, shape: tuple[int, ...], rank: int = 2, alpha: float = 1.0) -> ModuleWeights:
    """Random tensors of a type for a layer of some shape."""
    like = {"diff": (), "diff_b": ()} if "difference" in kind else {}
    adapter = ADAPTERS[kind](LayerSpec(shape), rank, alpha, like)
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter)
    if kind == "ia3":
        adapter.on_input = torch.tensor(0)
    return ModuleWeights(kind, adapter.tensors(), alpha if adapter.has_rank else 1.0)


def valid_files(folder: Path) -> dict[str, Path]:
    """One file of every format, of every adapter type in two formats, and pickled ones."""
    torch.manual_seed(0)
    made: dict[str, Path] = {}

    def write(name: str, format: str, **contents: Any) -> None:
        weights = AdapterWeights(**{"components": {}} | contents)
        made[name] = write_adapter(weights, folder / f"{name}.safetensors", NAMES, format)

    for kind in ADAPTERS:
        places = [NORM] if kind == "norm_difference" else [LINEAR, CONV]
        layers = {path: entry(kind, SHAPES[path]) for path in places}
        for format in ("peft", "kohya"):
            write(f"{kind} {format}", format, components={"unet": layers}, metadata={"note": "x"})
    word = {"<a>": LearnedToken({"text_encoder": torch.randn(1, 8)})}
    parts = ("to_q", "to_k", "to_v", "to_out.0")
    attention = {LINEAR.replace("to_q", part): entry("lora", (8, 12), 2, 2.0) for part in parts}
    numbered = {f"{TEXT}.{part}_proj": entry("lora", (8, 8), 2, 2.0) for part in ("q", "k", "v")}
    numbered |= {f"{TEXT}.out_proj": entry("lora", (8, 8), 2, 2.0)}
    write("embedding", "embedding", tokens=word)
    write("attn_procs", "attn_procs", components={"unet": attention})
    write("cloneofsimo", "cloneofsimo", components={"text_encoder": numbered}, tokens=word)
    write("bundle", "peft", components={"unet": attention}, tokens=word)
    for name, is_zip in (("pickled", True), ("pickled before 1.6", False)):
        made[name] = folder / f"{name}.bin"
        tensors = load_file(made["attn_procs"])
        torch.save(tensors, made[name], _use_new_zipfile_serialization=is_zip)
    made["pickled list"] = folder / "list.pt"
    order = [load_file(made["cloneofsimo"])[f"text_encoder:{i // 2}:{s}"] for i, s in _sides(8)]
    torch.save(order, made["pickled list"])
    return made


def _sides(count: int) -> list[tuple[int, str]]:
    return [(index, "down" if index % 2 else "up") for index in range(count)]


def taken_apart(raw: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file."""
    (length,) = struct.unpack("<Q", raw[:8])
    header, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    metadata = header.pop("__metadata__")
    tensors = {
        key: Tensor(x["dtype"], tuple(x["shape"]), data[slice(*x["data_offsets"])])
        for key, x in header.items()
    }
    return tensors, metadata


def put_together(tensors: Tensors, metadata: Mapping[str, Any]) -> bytes:
    """The safetensors file of tensors as they are given, however wrong."""
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for key, tensor in tensors.items():
        start, end = end, end + len(tensor.data)
        header[key] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, end]}
    return with_header(json.dumps(header), b"".join(t.data for t in tensors.values()))


def with_header(text: str, data: bytes, length: int | None = None) -> bytes:
    head = text.encode()
    return struct.pack("<Q", len(head) if length is None else length) + head + data


def is_apart(raw: bytes) -> bool:
    """Whether a file is a safetensors file, whose parts have places of their own."""
    return raw[8:9] == b"{"


def filled(shape: tuple[int, ...], value: float = 1.0, dtype: str = "F32") -> Tensor:
    """A tensor of one value; of some kinds of numbers, of some bytes."""
    width = next((width for end, width in WIDTHS.items() if dtype.endswith(end)), 1)
    one = struct.pack(CODES[dtype], value) if CODES.get(dtype) else b"\x3f" * width
    one = one if dtype != "C64" else struct.pack("<ff", value, value)
    return Tensor(dtype, shape, one * math.prod(shape))


def cuts(raw: bytes, rng: random.Random) -> Iterator[bytes]:
    """The file without its end."""
    yield from (raw[: rng.randrange(len(raw))] for _ in range(12))
    yield from (raw[:7], raw[:8], raw[:-1])


def flips(raw: bytes, rng: random.Random) -> Iterator[bytes]:
    """The file with some bits turned, most of them where it is described."""
    for number in range(24):
        spoiled = bytearray(raw)
        for _ in range(1 + 3 * (number % 2)):
            end = len(raw) if number % 4 == 3 else min(len(raw), 900)
            spoiled[rng.randrange(end)] ^= 1 << rng.randrange(8)
        yield bytes(spoiled)


def headers(raw: bytes, rng: random.Random) -> Iterator[bytes]:
    """The file with a header that lies."""
    (length,) = struct.unpack("<Q", raw[:8])
    text, data = raw[8 : 8 + length].decode(), raw[8 + length :]
    for claimed in (0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1):
        yield with_header(text, data, claimed)
    plain = json.loads(text)
    key = rng.choice([name for name in plain if name != "__metadata__"])
    about = json.dumps(plain[key])
    yield with_header(f'{{"{key}":{about},{text.strip()[1:]}', data)
    changes = [{"shape": s} for s in ([2**40], [2**40, 0], [0], [-1, 4], [2**62, 8], ["x"], None)]
    changes += [{"data_offsets": o} for o in ([-4, 4], [0, 2**60], [8, 0], [4, 8], [], "x")]
    changes += [{"dtype": d} for d in ("F4", "X", "", None, 3)]
    for change in changes:
        yield with_header(json.dumps(plain | {key: plain[key] | change}), data)
    for nested in (3, [], "x", json.loads("[" * 90 + "]" * 90), {}, None):
        yield with_header(json.dumps(plain | {key: nested}), data)
        yield with_header(json.dumps(plain | {"__metadata__": {"a": nested}}), data)


def shapes(raw: bytes, rng: random.Random) -> Iterator[bytes]:
    """The file with a tensor of another shape or kind, none, or another's in its place."""
    tensors, metadata = taken_apart(raw)
    for key in rng.sample(sorted(tensors), min(4, len(tensors))):
        shape = tensors[key].shape
        others = [(), (0,), (1,), (1,) * 9, (2**40, 0), (*shape, 1), shape[:-1], shape[::-1]]
        others += [(shape[0] + 1, *shape[1:])] if shape else []
        for other in others:
            yield put_together({**tensors, key: filled(other)}, metadata)
        for dtype in CODES:
            yield put_together({**tensors, key: filled(shape, 1, dtype)}, metadata)
        yield put_together({k: t for k, t in tensors.items() if k != key}, metadata)
        yield put_together({**tensors, key: rng.choice(list(tensors.values()))}, metadata)


def keys(raw: bytes, rng: random.Random) -> Iterator[bytes]:
    """The file with a tensor of another name."""
    tensors, metadata = taken_apart(raw)
    key = rng.choice(sorted(tensors))
    rest = {name: tensor for name, tensor in tensors.items() if name != key}
    for odd in (*STRANGE, f"../{key}", f"{key}\x00", key.upper(), f"unet.{key}", f".{key}"):
        yield put_together({**rest, odd: tensors[key]}, metadata)
        yield put_together({**tensors, odd: tensors[key]}, metadata)


def settings(raw: bytes, rng: random.Random) -> Iterator[bytes]:
    """The file with damaged settings, under every name that some format looks at."""
    tensors, metadata = taken_apart(raw)
    for name in ("lora_adapter_metadata", "training", "text_encoder", "<a>"):
        for config in CONFIGS:
            yield put_together(tensors, {**metadata, name: config})
    yield put_together(tensors, {**metadata, "x": rng.randbytes(9).decode("latin-1")})


def alphas(raw: bytes, rng: random.Random) -> Iterator[bytes]:
    """The file with a strange alpha, or a strange scale of early LyCORIS."""
    tensors, metadata = taken_apart(raw)
    key = rng.choice(sorted(tensors))
    strange = [filled((), value) for value in (math.nan, math.inf, 0, -1, 1e38, 1e-38)]
    strange += [filled((), 1, dtype) for dtype in CODES]
    strange += [filled((2,)), filled((0,)), filled((), 1e300, "F64"), filled((1, 1))]
    stem = key.partition(".")[0] if key.startswith("lora_") else key.partition(".lora")[0]
    stem = stem.rpartition(".")[0] if stem == key else stem
    for name in ("alpha", "scalar"):
        for tensor in strange:
            yield put_together({**tensors, f"{stem}.{name}": tensor}, metadata)
