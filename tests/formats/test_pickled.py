"""Pickled containers: opened only when that is allowed, and nothing but tensors taken from them."""

import os
import pickle
import shutil
import struct
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from scumble.errors import UserError
from scumble.families import FAMILIES
from scumble.formats import pickled, read_adapter
from scumble.formats.container import read_content
from scumble.formats.files import adapter_file

NAMES = FAMILIES["stable_diffusion"].key_names
KEY = "unet.mid_block.attentions.0.proj_in.lora.{}.weight"


@pytest.fixture(params=[True, False], ids=["zip", "legacy"])
def save(request, tmp_path):
    """Writes an object with torch.save, in today's form and in that of before 1.6."""

    def write(value, name="a.pt"):
        path = tmp_path / name
        torch.save(value, path, _use_new_zipfile_serialization=request.param)
        return path

    return write


def lora():
    torch.manual_seed(0)
    return {KEY.format("down"): torch.randn(4, 6), KEY.format("up"): torch.randn(10, 4)}


def opened(path, **options):
    return read_content(path, allow_pickle=True, **options)


@pytest.mark.parametrize("name", ["pytorch_lora_weights.bin", "style.pt", "liar.safetensors"])
def test_a_pickled_file_is_read_when_that_is_allowed_whatever_its_name(name, save):
    path = save(lora(), name)
    for source in (path, path.parent):
        weights = read_adapter(source, NAMES, allow_pickle=True)
        (entry,) = weights.components["unet"].values()
        assert torch.equal(entry.tensors["down"], lora()[KEY.format("down")])
        with pytest.raises(UserError, match=f"{name} is a pickled file") as refused:
            read_adapter(source, NAMES)
        assert "--allow_pickle" in refused.value.hint


def test_safetensors_with_a_wrong_name_is_read_without_permission(tmp_path):
    save_file(lora(), tmp_path / "pytorch_lora_weights.bin")
    assert read_adapter(tmp_path, NAMES).num_parameters == 64
    assert adapter_file(tmp_path / "pytorch_lora_weights.bin")


def test_a_header_as_long_as_a_pickles_first_bytes_is_no_pickle(tmp_path):
    # 0x0280 bytes of header: the file begins as a pickle of protocol 2 does.
    path = tmp_path / "a.safetensors"
    save_file(lora(), path)
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    head = raw[8 : 8 + length].ljust(0x0280)
    path.write_bytes(struct.pack("<Q", 0x0280) + head + raw[8 + length :])
    assert path.read_bytes().startswith(b"\x80\x02")
    assert read_adapter(path, NAMES).num_parameters == 64


class Malicious:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("allow_pickle", [False, True])
def test_code_in_a_pickle_never_runs(allow_pickle, save, tmp_path):
    mark = tmp_path / "ran"
    path = save(lora() | {"x": Malicious(mark)})
    asked = "asks for '.*mkdir'" if allow_pickle else "is a pickled file"
    with pytest.raises(UserError, match=asked) as refused:
        read_adapter(path, NAMES, allow_pickle=allow_pickle)
    assert not mark.exists()
    # torch's own text advises to switch the protection off.
    assert "weights_only" not in str(refused.value)
    with path.open("rb"):
        torch.load(path, weights_only=False)
    assert mark.exists()


def test_what_is_nested_gets_dotted_names(save):
    vectors = torch.nn.Parameter(torch.randn(2, 8))
    content = opened(
        save(
            {
                "string_to_param": {"*": vectors},
                "name": "cat",
                "step": 100,
                "sd_checkpoint": None,
                "list": [torch.ones(1), (torch.ones(2), 0.5)],
                "string_to_token": {"*": 265},
            }
        )
    )
    assert list(content.tensors) == ["string_to_param.*", "list.0", "list.1.0"]
    assert torch.equal(content.tensors["string_to_param.*"], vectors)
    assert not content.tensors["string_to_param.*"].requires_grad
    said = {"name": "cat", "step": "100", "string_to_token.*": "265", "list.1.1": "0.5"}
    assert content.metadata == said


def test_views_of_one_memory_come_apart(save):
    whole = torch.arange(24.0).reshape(4, 6)
    tensors = opened(save({"a": whole.T, "b": whole[1], "c": whole})).tensors
    assert torch.equal(tensors["a"], whole.T)
    assert all(tensor.is_contiguous() for tensor in tensors.values())
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors.values()}) == 3
    assert [t.untyped_storage().nbytes() for t in tensors.values()] == [96, 24, 96]


def test_an_outline_has_shapes_and_single_numbers(save):
    outline = opened(save({"a": torch.ones(3, 4).half(), "alpha": torch.tensor(2.0)}), outline=True)
    tensors = outline.tensors
    assert tensors["a"].is_meta
    assert (tensors["a"].shape, tensors["a"].dtype) == ((3, 4), torch.float16)
    assert tensors["alpha"] == 2


def holding_itself():
    value = []
    value.append(value)
    return value


def doubled():
    value = []
    for _ in range(10):
        value = [value] * 10
    return value


REFUSED = {
    "bare": (lambda: torch.ones(3), "holds a Tensor, and no tensors with names"),
    "sparse": (lambda: {"a": torch.ones(3).to_sparse()}, "'a' is sparse, quantised or without"),
    "no numbers": (lambda: {"a": torch.ones(3, device="meta")}, "'a' is sparse, quantised or"),
    "set": (lambda: {"a": {1}}, "'a' is a set, which no adapter file holds"),
    "named by a number": (lambda: {1.5: torch.ones(1)}, "names something by a float"),
    "twice": (lambda: {"a.b": torch.ones(1), "a": {"b": torch.ones(1)}}, "holds 'a.b' twice"),
    "in itself": (lambda: {"a": holding_itself()}, "nests more than any adapter file"),
    "many times": (lambda: {"a": doubled()}, "nests more than any adapter file"),
    "one number, repeated": (
        lambda: {"a": torch.zeros(1).expand(2**20, 2**15)},
        "would take more than",
    ),
    "old embedding": (
        lambda: {
            "string_to_param": torch.nn.ParameterDict({"x": torch.nn.Parameter(torch.ones(1))})
        },
        "an embedding of 2022 that keeps its vectors in a ParameterDict",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_adapter_file_holds_is_refused_by_name(case, save):
    make, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        opened(save(make()))


@pytest.mark.parametrize("part", [0.01, 0.5, 0.999])
def test_a_cut_file_is_refused(part, save):
    path = save(lora())
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    with pytest.raises(UserError, match=r"a\.pt (is damaged|cannot be read|is not a readable)"):
        opened(path)


def test_a_pickle_of_something_else_than_torch_is_refused(tmp_path):
    (tmp_path / "a.pt").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UserError, match="cannot be read as a file of tensors"):
        opened(tmp_path / "a.pt")


def test_a_zip_that_unpacks_to_more_is_never_unpacked(tmp_path):
    torch.save({"a": torch.zeros(2**20)}, tmp_path / "a.pt")
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as plain,
        zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry.filename))
    with pytest.raises(UserError, match="is compressed, which no adapter file is"):
        opened(tmp_path / "b.pt")


def test_files_over_the_limits_are_refused_unopened(save, monkeypatch):
    path = save(lora())
    monkeypatch.setattr(torch, "load", None)
    monkeypatch.setattr(pickled, "MAX_PROGRAM", 100)
    with pytest.raises(UserError, match="may be a program; the limit is 100"):
        opened(path)
    monkeypatch.setattr(pickled, "MAX_BYTES", 500)
    with pytest.raises(UserError, match="too big for a pickled adapter: limit 500 bytes"):
        opened(path)


def test_an_old_file_that_claims_more_numbers_than_it_has_is_refused(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"a": torch.zeros(7)}, path, _use_new_zipfile_serialization=False)
    claimed = struct.pack("<Q", 2**40)[:6]
    raw = path.read_bytes()
    assert raw.count(b"K\x07N") == 1
    path.write_bytes(raw.replace(b"K\x07N", b"\x8a\x06" + claimed + b"N"))
    with pytest.raises(UserError, match="cannot be read as a file of tensors"):
        opened(path)


def test_a_folder_is_searched_for_pickled_files_last(save, tmp_path):
    path = save(lora(), "other.bin")
    assert adapter_file(tmp_path, allow_pickle=True) == path
    shutil.copy(path, tmp_path / "second.pt")
    with pytest.raises(UserError, match=r"holds several \.bin or"):
        adapter_file(tmp_path, allow_pickle=True)
    save(lora(), "learned_embeds.bin")
    assert adapter_file(tmp_path, allow_pickle=True).name == "learned_embeds.bin"
    save_file(lora(), tmp_path / "z.safetensors")
    assert adapter_file(tmp_path, allow_pickle=True).name == "z.safetensors"
