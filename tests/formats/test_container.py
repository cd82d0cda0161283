"""Files are put in place whole or not at all."""

from pathlib import Path

import pytest

from scumble.errors import UserError
from scumble.formats.container import write_atomically


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
