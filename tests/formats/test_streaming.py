"""Weights tensor by tensor: the bytes, the memory, what is refused, and what failure leaves."""

import json
import resource
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from scumble.errors import UserError
from scumble.formats import pickled
from scumble.formats.streaming import DTYPES, Entry, open_streamed, write_streamed


def numbers(dtype: torch.dtype, *shape: int) -> Tensor:
    """Any bits at all are kept, NaN included; only truth values have but two."""
    generator = torch.Generator().manual_seed(len(shape))
    count = torch.Size(shape).numel() * dtype.itemsize
    if dtype == torch.bool:
        return torch.randint(2, shape, generator=generator).bool()
    bits = torch.randint(256, (count,), generator=generator, dtype=torch.uint8)
    return bits.view(dtype).view(shape)


EVERY_KIND = {f"{name.lower()}.weight": numbers(dtype, 3, 5) for name, dtype in DTYPES.items()}
MIXED = EVERY_KIND | {
    "a.scalar": torch.tensor(4.6),
    "b.nothing": torch.empty(0, 3),
    "ünï.cöde": torch.arange(7, dtype=torch.int8),
}
ONE = {"a": torch.ones(32)}


def entries_of(tensors: Mapping[str, Tensor]) -> dict[str, Entry]:
    return {key: Entry(t.dtype, tuple(t.shape)) for key, t in tensors.items()}


def write(path: Path, tensors: Mapping[str, Tensor], **options: Any) -> Path:
    metadata = options.pop("metadata", {})
    write_streamed(path, entries_of(tensors), metadata, lambda key: tensors[key], **options)
    return path


def assert_same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for key, tensor in one.items():
        same = other[key]
        assert (tensor.dtype, tensor.shape) == (same.dtype, same.shape), key
        assert torch.equal(*(t.reshape(-1).view(torch.uint8) for t in (tensor, same))), key


def read_all(*paths: Path) -> dict[str, Tensor]:
    with open_streamed(paths) as weights:
        return {key: weights.tensor(key) for key in weights.entries}


def test_the_library_reads_every_kind_of_number(tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors", MIXED, metadata={"b": "2", "a": "é"})
    assert_same(load_file(path), MIXED)
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "pt", "a": "é", "b": "2"}


def test_every_tensor_starts_where_its_numbers_may(tmp_path: Path) -> None:
    content = write(tmp_path / "m.safetensors", MIXED).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    assert length % 8 == 0
    header = json.loads(content[8 : 8 + length])
    for key, tensor in MIXED.items():
        assert header[key]["data_offsets"][0] % tensor.dtype.itemsize == 0, key


def test_the_bytes_are_those_of_the_library(tmp_path: Path) -> None:
    ours = write(tmp_path / "m.safetensors", MIXED).read_bytes()
    theirs = save(MIXED, metadata={"format": "pt"})
    assert ours == theirs


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    one = write(tmp_path / "1.safetensors", MIXED, metadata={"z": "1", "a": "2"})
    turned = dict(reversed(MIXED.items()))
    two = write(tmp_path / "2.safetensors", turned, metadata={"a": "2", "z": "1"})
    assert one.read_bytes() == two.read_bytes()


def test_what_was_written_reads_back(tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors", MIXED, metadata={"a": "1"})
    with open_streamed([path]) as weights:
        assert weights.entries == entries_of(MIXED)
        assert weights.metadata == {"format": "pt", "a": "1"}
        assert_same({key: weights.tensor(key) for key in weights.entries}, MIXED)


def test_a_file_of_the_library_reads_the_same(tmp_path: Path) -> None:
    save_file(MIXED, tmp_path / "m.safetensors")
    assert_same(read_all(tmp_path / "m.safetensors"), MIXED)


def test_layouts_and_gradients_do_not_matter(tmp_path: Path) -> None:
    grid = torch.arange(12.0).view(3, 4)
    tensors = {
        "turned": grid.T,
        "part": grid[:, 1:3],
        "spread": torch.ones(1, 1).expand(2, 3),
        "learned": nn.Parameter(grid),
    }
    path = write(tmp_path / "m.safetensors", tensors)
    assert_same(load_file(path), {key: t.detach().contiguous() for key, t in tensors.items()})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_tensor_may_lie_on_a_device(tmp_path: Path) -> None:
    grid = torch.arange(12.0).view(3, 4)
    path = write(tmp_path / "m.safetensors", {"a": grid.cuda().T})
    assert_same(load_file(path), {"a": grid.T.contiguous()})


def test_one_tensor_at_a_time_is_in_memory(tmp_path: Path) -> None:
    source = {f"layer.{n}": torch.full((64, 64), float(n)) for n in range(5)}
    source["half"] = torch.ones(3, dtype=torch.float16)
    path = write(tmp_path / "source.safetensors", source)
    asked: list[str] = []
    alive: list[StorageWeakRef] = []

    def tensor_of(key: str) -> Tensor:
        assert all(reference.expired() for reference in alive), f"more than '{key}' is in memory"
        tensor = weights.tensor(key)
        asked.append(key)
        alive.append(StorageWeakRef(tensor.untyped_storage()))
        return tensor

    with open_streamed([path]) as weights:
        write_streamed(tmp_path / "copy.safetensors", weights.entries, weights.metadata, tensor_of)
    assert len(alive) == 6
    assert all(reference.expired() for reference in alive)
    with safe_open(path, framework="pt") as file:
        assert asked == file.offset_keys()
    assert (tmp_path / "copy.safetensors").read_bytes() == path.read_bytes()


def test_progress_is_told_in_bytes(tmp_path: Path) -> None:
    told: list[int] = []
    write(tmp_path / "m.safetensors", {"a": torch.ones(2, 3), "b": torch.ones(5)}, done=told.append)
    assert told == [24, 20]


def test_a_tensor_read_is_the_callers_own(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(3)}, tmp_path / "m.ckpt")
    for path in (write(tmp_path / "m.safetensors", {"a": torch.ones(3)}), tmp_path / "m.ckpt"):
        with open_streamed([path]) as weights:
            weights.tensor("a").zero_()
            assert torch.equal(weights.tensor("a"), torch.ones(3))


def test_a_file_can_replace_the_one_it_is_made_from(tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors", {"a": torch.ones(3), "b": torch.ones(2)})
    with open_streamed([path]) as weights:
        write_streamed(path, weights.entries, {}, lambda key: weights.tensor(key) * 2)
    assert_same(load_file(path), {"a": torch.full((3,), 2.0), "b": torch.full((2,), 2.0)})


def test_shards_are_one_set_of_weights(tmp_path: Path) -> None:
    one = write(tmp_path / "1.safetensors", {"a": torch.ones(3)}, metadata={"from": "one"})
    two = write(tmp_path / "2.safetensors", {"b": torch.zeros(2)}, metadata={"from": "two"})
    assert_same(read_all(one, two), {"a": torch.ones(3), "b": torch.zeros(2)})
    with open_streamed([one, two]) as weights:
        assert weights.metadata["from"] == "one"


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    one = write(tmp_path / "1.safetensors", {"a": torch.ones(3), "b": torch.ones(1)})
    two = write(tmp_path / "2.safetensors", {"b": torch.ones(1)})
    with (
        pytest.raises(UserError, match=r"1\.safetensors and .*2\.safetensors both hold 'b'"),
        open_streamed([one, two]),
    ):
        pass


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
@pytest.mark.parametrize("is_nested", [False, True])
def test_pickled_weights_read_the_same(is_nested: bool, options: Any, tmp_path: Path) -> None:
    grid = torch.arange(12.0).view(3, 4)
    tensors = {"a": grid.T, "b": grid[1], "c": nn.Parameter(torch.ones(2, dtype=torch.bfloat16))}
    content = {"state_dict": tensors, "global_step": 7} if is_nested else tensors
    torch.save(content, tmp_path / "m.ckpt", **options)
    wanted = {key: t.detach().contiguous() for key, t in tensors.items()}
    assert_same(read_all(tmp_path / "m.ckpt"), wanted)


def test_a_file_is_read_by_its_content_whatever_its_name(tmp_path: Path) -> None:
    # Headers of these lengths begin as pickles do.
    for length in (0x280, 0x4B50):
        path = write(tmp_path / "m.ckpt", ONE, metadata={"note": ""})
        (short,) = struct.unpack("<Q", path.read_bytes()[:8])
        write(path, ONE, metadata={"note": " " * (length - short)})
        assert path.read_bytes()[:2] in (b"\x80\x02", b"PK")
        assert_same(read_all(path), ONE)


class Harmful:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


def test_a_pickle_that_would_run_code_is_refused_and_runs_none(tmp_path: Path) -> None:
    trace = tmp_path / "it ran"
    torch.save({"a": torch.ones(1), "x": Harmful(trace)}, tmp_path / "m.ckpt")
    with pytest.raises(UserError, match="plain weights"):
        read_all(tmp_path / "m.ckpt")
    assert not trace.exists()


def header_only(header: object, length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text


def cut(path: Path, save: Callable[[Path], Any]) -> None:
    save(path)
    path.write_bytes(path.read_bytes()[:-20])


SPACE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
TWICE = header_only({"a": SPACE, "b": SPACE}).replace(b'"b"', b'"a"')
STRANGE = {"dtype": "F4", "shape": [16], "data_offsets": [0, 8]}
BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda _: None, "there is no file"),
    "folder": (lambda path: path.mkdir(), "there is no file"),
    "empty": (lambda path: path.touch(), "not a readable safetensors file"),
    "noise": (lambda path: path.write_bytes(bytes(range(256))), "not a readable safetensors file"),
    "cut": (lambda path: cut(path, lambda p: save_file(ONE, p)), "not a readable safetensors file"),
    "huge header": (
        lambda path: path.write_bytes(header_only({}, 2**60)),
        "not a readable safetensors file",
    ),
    "past the end": (lambda path: path.write_bytes(header_only({"a": SPACE})), "not a readable"),
    "a key twice": (
        lambda path: path.write_bytes(TWICE + bytes(8)),
        "stands in it twice",
    ),
    "strange numbers": (
        lambda path: path.write_bytes(header_only({"a": STRANGE}) + bytes(8)),
        "'a' holds numbers of the kind F4",
    ),
    "cut pickle": (lambda path: cut(path, lambda p: torch.save(ONE, p)), "is damaged"),
    "list": (lambda path: torch.save([torch.ones(2)], path), "holds a list"),
    "tensor": (lambda path: torch.save(torch.ones(2), path), "holds a Tensor"),
    "number": (lambda path: torch.save(ONE | {"step": 3}, path), "'step' is a int"),
    "nested": (lambda path: torch.save({"state_dict": {"b": [1]}}, path), "'b' is a list"),
    "unnamed": (lambda path: torch.save({3: torch.ones(2)}, path), "'3' is a Tensor"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_holds_no_weights_is_refused(name: str, tmp_path: Path) -> None:
    make, message = BAD[name]
    make(tmp_path / "m.bin")
    with pytest.raises(UserError, match=message) as caught:
        read_all(tmp_path / "m.bin")
    assert "m.bin" in caught.value.message
    assert "weights_only" not in str(caught.value)


def test_a_pickle_that_grows_when_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.ckpt"
    torch.save({"a": torch.zeros(1).expand(10**12)}, path)
    with pytest.raises(UserError, match="its tensors would take 4000000000000 bytes"):
        read_all(path)
    torch.save(ONE, path)
    monkeypatch.setattr(pickled, "MAX_PROGRAM", 10)
    with pytest.raises(UserError, match="may be a program; the limit is 10"):
        read_all(path)
    # What is not zipped is numbers for the most part, and has the limit of a whole file.
    torch.save(ONE, path, _use_new_zipfile_serialization=False)
    read_all(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10**6)
    with pytest.raises(UserError, match="is compressed"):
        read_all(path)


def test_a_file_cut_while_it_is_read_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors", {"a": torch.ones(9000), "b": torch.ones(9000)})
    with open_streamed([path]) as weights:
        with path.open("r+b") as file:
            file.truncate(50000)
        assert torch.equal(weights.tensor("a"), torch.ones(9000))
        with pytest.raises(UserError, match="cut short while it was read"):
            weights.tensor("b")


def failing(error: BaseException) -> Callable[[str], Tensor]:
    def tensor_of(key: str) -> Tensor:
        if key == "b":
            raise error
        return torch.ones(1000)

    return tensor_of


TWO = {key: Entry(torch.float32, (1000,)) for key in "ab"}


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), UserError("the source is gone"), OSError("not of this file")]
)
def test_a_failure_leaves_the_older_file_and_nothing_else(
    error: BaseException, tmp_path: Path
) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"older")
    with pytest.raises(type(error)) as caught:
        write_streamed(path, TWO, {}, failing(error))
    assert caught.value is error
    assert path.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, hard))
    try:
        with pytest.raises(UserError, match=r"cannot write .*m\.safetensors: File too large"):
            write_streamed(path, TWO, {}, lambda _: torch.ones(1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_made_and_one_that_cannot_be_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "new" / "deep" / "m.safetensors", ONE)
    assert_same(load_file(path), ONE)
    with pytest.raises(UserError, match="cannot write") as caught:
        write(path / "m.safetensors", ONE)
    assert "writable" in caught.value.hint


@pytest.mark.parametrize("tensor", [torch.ones(999), torch.ones(1000).half()])
def test_a_tensor_other_than_announced_is_refused(tensor: Tensor, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'a' was announced as"):
        write_streamed(tmp_path / "m.safetensors", TWO, {}, lambda _: tensor)
    assert list(tmp_path.iterdir()) == []


def test_numbers_that_files_cannot_hold_are_refused_before_any_work(tmp_path: Path) -> None:
    asked: list[str] = []
    entries = {"a": Entry(torch.float32, (1,)), "b": Entry(torch.complex128, (1,))}
    with pytest.raises(UserError, match=r"cannot hold 'b': .*complex128"):
        write_streamed(tmp_path / "m.safetensors", entries, {}, asked.append)  # type: ignore[arg-type]
    assert asked == []
    assert list(tmp_path.iterdir()) == []
