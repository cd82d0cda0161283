"""How the tools open an adapter file."""

from pathlib import Path
from typing import Any

import made
import pytest
import torch
from safetensors.torch import load_file

import scumble
from scumble.tools.reading import open_adapter


@pytest.mark.parametrize("outline", [True, False])
def test_a_pickled_file_is_unpickled_once(
    outline: bool, tiny_pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = scumble.write_adapter(made.weights(tiny_pipeline), tmp_path / "a.safetensors")
    torch.save(load_file(path), tmp_path / "a.bin")
    calls = []
    load = torch.load

    def watched(*words: Any, **options: Any) -> Any:
        calls.append(words)
        return load(*words, **options)

    monkeypatch.setattr(torch, "load", watched)
    opened = open_adapter(tmp_path / "a.bin", allow_pickle=True, outline=outline)
    assert len(calls) == 1
    assert opened.weights.components["unet"][made.TO_K].rank == 4
