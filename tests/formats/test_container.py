"""Files are read only when they are sound, and put in place whole or not at all."""

import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from scumble.errors import UserError
from scumble.formats.container import read_content, user_path, write_atomically


def test_a_file_where_the_folder_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*taken/a\.safetensors"):
        write_atomically(tmp_path / "taken" / "a.safetensors", b"")


def test_what_a_check_refuses_does_not_take_the_place_of_the_old(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_atomically(path, b"old")

    def refuse(written: Path) -> None:
        assert written.read_bytes() == b"new"
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        write_atomically(path, b"new", refuse)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def safetensors(path: Path, header: str, data: bytes = b"", length: int | None = None) -> Path:
    head = header.encode()
    path.write_bytes(struct.pack("<Q", len(head) if length is None else length) + head + data)
    return path


ONE = '"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
UNSOUND = {
    "a key twice": f"{{{ONE},{ONE.replace('1', '2').replace('4', '8')}}}",
    "the same key in other letters": f"{{{ONE},{ONE.replace('a', chr(92) + 'u0061', 1)}}}",
    "metadata twice": f'{{"__metadata__":{{"x":"1","x":"2"}},{ONE}}}',
    "beyond the end": '{"a":{"dtype":"F32","shape":[99],"data_offsets":[0,396]}}',
    "overlapping": f"{{{ONE},{ONE.replace('a', 'b', 1)}}}",
    "shape that overflows": f'{{"a":{{"dtype":"F32","shape":[{2**62},8],"data_offsets":[0,4]}}}}',
    "no number": ONE.replace("[1]", "[NaN]").join("{}"),
    "nested": '{"a":' * 10_000,
    "no header": "",
}


TWICE = ("a key twice", "the same key in other letters", "metadata twice")
"""Of these the library would silently take the last."""


@pytest.mark.parametrize("outline", [False, True])
@pytest.mark.parametrize("case", UNSOUND)
def test_an_unsound_header_is_refused(case: str, outline: bool, tmp_path: Path) -> None:
    path = safetensors(tmp_path / "a.safetensors", UNSOUND[case], bytes(8))
    if case != "a key twice":
        path.write_bytes(path.read_bytes()[:-4])
    found = r"'\w' stands in it twice" if case in TWICE else ""
    message = rf"a\.safetensors is not a readable safetensors file \({found}"
    with pytest.raises(UserError, match=message):
        read_content(path, outline=outline)


@pytest.mark.parametrize("length", [2**63, 10**9, 70 * 1024**2])
def test_a_header_that_claims_to_be_huge_is_refused_unread(length: int, tmp_path: Path) -> None:
    path = safetensors(tmp_path / "a.safetensors", f"{{{ONE}}}", bytes(4), length)
    with pytest.raises(UserError, match=f"its header would take {length} bytes"):
        read_content(path)


def test_an_unknown_kind_of_numbers_is_named(tmp_path: Path) -> None:
    header = '{"a":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}'
    path = safetensors(tmp_path / "a.safetensors", header, bytes(1))
    for outline in (False, True):
        with pytest.raises(UserError, match="'a' holds numbers of the kind F4"):
            read_content(path, outline=outline)


def test_an_outline_has_shapes_and_kinds_of_numbers_and_no_numbers(tmp_path: Path) -> None:
    tensors = {
        "a": torch.ones(3, 4, dtype=torch.bfloat16),
        "b": torch.ones(2).to(torch.float8_e4m3fn),
        "alpha": torch.tensor(2.0),
        "empty": torch.ones(0, 3),
    }
    save_file(tensors, tmp_path / "a.safetensors", {"format": "pt", "note": "x"})
    outline = read_content(tmp_path / "a.safetensors", outline=True)
    for key, tensor in tensors.items():
        got = outline.tensors[key]
        assert (got.shape, got.dtype, got.is_meta) == (tensor.shape, tensor.dtype, key != "alpha")
    assert outline.tensors["alpha"] == 2
    assert outline.metadata == {"note": "x"}
    assert outline.name == "a"


def test_other_files_are_of_neither_kind(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(UserError, match=r"a\.pt is not a readable safetensors file"):
        read_content(tmp_path / "a.pt", allow_pickle=True)


@pytest.mark.parametrize("text", ["~nobody-is-called-so/a", "x" * 300])
def test_a_path_that_can_lead_nowhere_is_named(text: str) -> None:
    with pytest.raises(UserError, match="there can be nothing at"):
        user_path(text)
