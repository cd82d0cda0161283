"""Making the folder of a Space: page, adapter, what they need, and nothing of this machine."""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import distribution, version
from importlib.resources import files
from pathlib import Path
from typing import Any

from scumble.errors import UserError
from scumble.families.locate import BUILT_IN
from scumble.formats.container import require_writable
from scumble.formats.witnesses import RECORD_NAME
from scumble.hub.card import header_of
from scumble.ui.space import ADAPTERS, SETTINGS

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
GUIDANCE = 7.5
PYTHON = "3.12"
"""Version that the Hub is asked for."""


def make_space(
    adapter: str,
    output: str,
    base: str | None = None,
    title: str | None = None,
    prompt: Sequence[str] = (),
) -> Path:
    """Make a folder that the Hub runs as a Space, and this machine as well.

    The package travels along, so that the Space needs no release of it.

    Args:
        adapter: a file, the folder of a training run, or a Hub id.
        output: the folder; new or empty.
        base: a Hub id or a built-in name; what the adapter says if None.
        title: of the Space.
        prompt: to begin with.

    Returns:
        The folder.

    Raises:
        UserError: the adapter cannot be read, its base cannot be reached from elsewhere, or the
            folder is not empty or cannot be written.
    """
    from scumble.hub.pull import local_adapter
    from scumble.tools.inspect import inspect_adapter

    source = local_adapter(adapter)
    found = inspect_adapter(source)
    run = _run_settings(found.file)
    base = base or _named_base(found.file)
    if base not in BUILT_IN and (Path(base).exists() or not HUB_ID.fullmatch(base)):
        raise UserError(
            f"a Space cannot reach the base model '{base}'",
            "Give its id on the Hub: --base USER/NAME.",
        )
    name = re.sub(r"[^\w.-]+", "-", found.file.resolve().parent.name if run else found.file.stem)
    prompts = prompt or _shown_prompts(found.file.with_name("README.md"))
    settings = {
        "title": title or name,
        "base": base,
        "prompts": list(prompts or found.notes.trigger_words),
        "guidance_scale": run.get("guidance_scale") or GUIDANCE,
    }
    folder = _claim(Path(output).expanduser())
    try:
        _copy_package(folder, with_base=base in BUILT_IN)
        (folder / ADAPTERS).mkdir()
        shutil.copyfile(found.file, folder / ADAPTERS / f"{name}.safetensors")
        for file_name, text in _texts(settings, name).items():
            (folder / file_name).write_text(text, "utf-8")
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}") from error
    return folder


def _claim(folder: Path) -> Path:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty", "Name a new folder; nothing in it was touched.")
    require_writable(folder, "OUT")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _copy_package(folder: Path, *, with_base: bool) -> None:
    """Copy the package, without the built-in base and the demo where they are not needed."""
    package = Path(str(files("scumble")))

    def leave_out(place: str, names: Sequence[str]) -> list[str]:
        is_assets = Path(place) == package / "assets"
        unneeded = {"demo", *(() if with_base else BUILT_IN.values())} if is_assets else set()
        return [name for name in names if name in unneeded or name == "__pycache__"]

    shutil.copytree(package, folder / "scumble", ignore=leave_out)
    licence = distribution("scumble").read_text("licenses/LICENSE")
    if licence:
        (folder / "scumble" / "LICENSE").write_text(licence, "utf-8")


def _texts(settings: Mapping[str, Any], name: str) -> dict[str, str]:
    """File name -> what is in it."""
    import yaml

    needs = [line for line in distribution("scumble").requires or () if "extra ==" not in line]
    gradio = version("gradio")
    header: dict[str, Any] = {
        "title": settings["title"],
        "emoji": "\N{ARTIST PALETTE}",
        "colorFrom": "yellow",
        "colorTo": "red",
        "sdk": "gradio",
        "sdk_version": gradio,
        "python_version": PYTHON,
        "app_file": "app.py",
        "pinned": False,
        "short_description": "Draw with a LoRA adapter",
        "tags": ["lora", "text-to-image"],
    }
    if settings["base"] not in BUILT_IN:
        header["models"] = [settings["base"]]
    front = yaml.safe_dump(header, sort_keys=False, allow_unicode=True)
    page = (files("scumble.ui") / "space_readme.md").read_text("utf-8")
    page = page.format(title=settings["title"], base=settings["base"], file=f"{ADAPTERS}/{name}")
    return {
        "app.py": (files("scumble.ui") / "space_app.py").read_text("utf-8"),
        "requirements.txt": "\n".join([*needs, f"gradio=={gradio}"]) + "\n",
        "README.md": f"---\n{front}---\n\n{page}",
        SETTINGS: json.dumps(settings, indent=2, ensure_ascii=False) + "\n",
    }


def _named_base(file: Path) -> str:
    """The base that an adapter was trained on, by a name that may be shared."""
    from scumble.inference.base_of import base_of
    from scumble.tools.inspect import inspect_adapter

    named = inspect_adapter(file).notes.base_model or base_of(file)
    if not named:
        raise UserError(f"{file} does not say which base model it needs", "Name it with --base.")
    return named


def _run_settings(file: Path) -> dict[str, Any]:
    """Settings of the run that wrote a file; none for a file that lies alone."""
    try:
        settings = json.loads(file.with_name(RECORD_NAME).read_text("utf-8"))["settings"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return settings if isinstance(settings, dict) else {}


def _shown_prompts(card: Path) -> list[str]:
    """The prompts of the sample pictures on a model card, as far as there are any."""
    entries = header_of(card).get("widget")
    if not isinstance(entries, list):
        return []
    texts = [entry.get("text") for entry in entries if isinstance(entry, dict)]
    return [text for text in texts if isinstance(text, str)]
