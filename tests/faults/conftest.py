"""A finished run, made once, and copies of it to be damaged."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from recipes import Workplace


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """The workplace of a run that was not disturbed."""
    place = Workplace(tmp_path_factory.mktemp("undisturbed") / "place", "textual_inversion")
    place.prepare()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(place.cache))
        assert place.run_here() == 0
    return place


@pytest.fixture
def copied(
    original: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Workplace]:
    """Copies the workplace; with `until`, it is one of a run that was cut off after that step."""

    def copy(until: int | None = None) -> Workplace:
        place = Workplace(tmp_path / "place", original.method)
        shutil.copytree(original.folder, place.folder)
        monkeypatch.setenv("XDG_CACHE_HOME", str(place.cache))
        if until is not None:
            for path in place.out.glob("checkpoint-*"):
                if int(path.name.rpartition("-")[2]) > until:
                    shutil.rmtree(path)
            for path in place.out.glob("learned_embeds*"):
                path.unlink()
            cut_off = {"status": "running", "process": {}}
            record = json.loads((place.out / "run.json").read_text())
            (place.out / "run.json").write_text(json.dumps(record | cut_off))
        return place

    return copy
