"""Find what a base model's name means: the built-in one, a folder, a single file, a Hub id."""

import difflib
import json
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from scumble.errors import UserError, first_line
from scumble.families.hub_failures import explain
from scumble.formats.container import user_path
from scumble.formats.imposters import unmasked

BUILT_IN = {"scumble-tiny": "tiny"}
"""Name of a base that ships with the package -> its folder under assets/."""

CHECKPOINT_SUFFIXES = (".safetensors", ".ckpt")

MOST, MOST_LAYERS = 10**7, 1000
"""Limits of the numbers in a configuration: building a model of more would never end."""

WEIGHT_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
"""How files of weights begin in folders of diffusers and transformers."""


@dataclass(frozen=True)
class BaseModel:
    """A base model that was found, its weights not yet read.

    Args:
        name: as the user named it.
        location: folder, checkpoint file or Hub id, as diffusers' from_pretrained takes it.
        pipeline_class: diffusers pipeline class of the base.
        revision: Hub revision, or None for the main one.
        variant: "fp16" picks the weight files of that variant.
        prediction_type: what the user says it predicts; None trusts the base's own setting.
        cache_dir: where downloads are kept; None is the Hub's own place.
    """

    name: str
    location: str
    pipeline_class: str
    revision: str | None = None
    variant: str | None = None
    prediction_type: str | None = None
    cache_dir: str | None = None

    @property
    def is_checkpoint(self) -> bool:
        """Whether it is one file in the original Stable Diffusion layout."""
        return self.location.endswith(CHECKPOINT_SUFFIXES)

    @property
    def public_name(self) -> str:
        """A name that may be shared: a local path is cut to its last part."""
        return Path(self.name).name if self._is_local else self.name

    @property
    def reference(self) -> str:
        """A name that finds it again from anywhere on this machine."""
        if self._is_local:
            is_path = self.name not in BUILT_IN
            return str(Path(self.location).absolute()) if is_path else self.name
        return f"{self.name}@{self.revision}" if self.revision else self.name

    @property
    def _is_local(self) -> bool:
        return Path(self.location).exists()

    def config(self, component: str, file_name: str = "config.json") -> dict[str, Any]:
        """Read one component's configuration.

        Raises:
            UserError: the base lacks the component, or its configuration is damaged.
        """
        if self._is_local:
            path = Path(self.location) / component / file_name
            if not path.is_file():
                raise UserError(
                    f"the base model {self.name} lacks {component}/{file_name}",
                    "It is not a complete model in diffusers' layout.",
                )
        else:
            path = self.fetch(f"{component}/{file_name}")
        config = _read_json(path)
        for key, value in config.items():
            limit = MOST_LAYERS if "layers" in key else MOST
            numbers = value if isinstance(value, list) else [value]
            if any(isinstance(number, int | float) and number > limit for number in numbers):
                raise UserError(
                    f"{path} is damaged: '{key}' is {value}, more than any model has",
                    "Fetch the model again.",
                )
        return config

    def files(self, component: str) -> list[Path]:
        """The files on this machine that a component is made of; empty where that is not known."""
        if self.is_checkpoint:
            return [Path(self.location)]
        folder = Path(self.location) / component
        if not self._is_local:
            from huggingface_hub import try_to_load_from_cache

            names = ("config.json", "tokenizer_config.json")
            options = {"cache_dir": self.cache_dir, "revision": self.revision}
            found = [
                try_to_load_from_cache(self.location, f"{component}/{n}", **options) for n in names
            ]
            folder = next((Path(path).parent for path in found if isinstance(path, str)), folder)
        return sorted(path for path in folder.glob("*") if path.is_file())

    def weight_files(self, component: str) -> list[Path]:
        """The files on this machine with a component's weights, of the base's variant.

        Shards come in their order. Empty where there are none, or the component is not here.
        """
        if self.is_checkpoint:
            return [Path(self.location)]
        middle = f".{self.variant}" if self.variant is not None else ""
        patterns = [
            f"{stem}{middle}{shard}{suffix}"
            for suffix in (".safetensors", ".bin")
            for stem in WEIGHT_STEMS
            for shard in ("", "-*-of-*")
        ]
        files = self.files(component)
        found = ([path for path in files if path.match(pattern)] for pattern in patterns)
        return next((paths for paths in found if paths), [])

    def fetch(self, file_name: str) -> Path:
        """A file of a base on the Hub, from the cache where it is there.

        Raises:
            UserError: the Hub does not give it.
        """
        return _hub_file(self.location, file_name, self.revision, self.cache_dir)


def locate(
    name: str,
    *,
    revision: str | None = None,
    variant: str | None = None,
    prediction_type: str | None = None,
    cache_dir: str | None = None,
) -> BaseModel:
    """Find a base model.

    Args:
        name: "scumble-tiny", a folder in diffusers' layout, a `.safetensors` or `.ckpt` checkpoint,
            or a Hub id ("user/name", or "user/name@revision").
        revision: Hub revision, where the name does not say it.
        variant: weight variant such as "fp16".
        prediction_type: overrides the base's own setting.
        cache_dir: where downloads are kept.

    Raises:
        UserError: nothing is there, or it is no base model.
    """
    if name in BUILT_IN:
        location = str(files("scumble") / "assets" / BUILT_IN[name])
    else:
        location = str(user_path(name))
    path = Path(location)
    if path.is_dir():
        pipeline_class = _pipeline_class(path / "model_index.json", name)
    elif path.is_file() and location.endswith(CHECKPOINT_SUFFIXES):
        pipeline_class = "StableDiffusionPipeline"
    elif path.exists() or not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*(@[\w./-]+)?", name):
        close = difflib.get_close_matches(name, BUILT_IN, n=1)
        raise UserError(
            f"there is no base model at '{name}'",
            f"Did you mean {close[0]}?"
            if close
            else "Give a folder in diffusers' layout, a .safetensors checkpoint, a Hub id such as "
            "stable-diffusion-v1-5/stable-diffusion-v1-5, or scumble-tiny.",
        )
    else:
        name, _, given = name.partition("@")
        if given and revision and given != revision:
            raise UserError(
                f"'{name}@{given}' and --revision {revision} name two revisions",
                "Give one of them.",
            )
        location, revision = name, given or revision
        index = _hub_file(name, "model_index.json", revision, cache_dir)
        pipeline_class = _pipeline_class(index, name)
    return BaseModel(name, location, pipeline_class, revision, variant, prediction_type, cache_dir)


def _below(folder: Path) -> str:
    """Where it is instead, as after full fine-tuning."""
    found = next(folder.glob("*/model_index.json"), None)
    return f": {found.parent}" if found else ""


def _pipeline_class(index: Path, name: str) -> str:
    if not index.is_file():
        raise UserError(
            f"the folder {name} holds no model_index.json, so it is no base model",
            f"Give the folder that has model_index.json in it{_below(index.parent)}.",
        )
    pipeline_class = _read_json(index).get("_class_name")
    if not isinstance(pipeline_class, str) or not pipeline_class:
        message = f"{index} is damaged (it lacks a '_class_name', the kind of the model)"
        raise UserError(message, "Fetch the model again.")
    return pipeline_class


def _read_json(path: Path) -> dict[str, Any]:
    """One of the files that describe a model.

    Raises:
        UserError: it is damaged.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
        if isinstance(content, dict):
            return content
        reason = f"it holds {type(content).__name__}, not settings"
    except RecursionError:
        reason = "it nests without end"
    except (OSError, ValueError) as error:
        reason = first_line(error)
    raise UserError(f"{path} is damaged ({reason})", unmasked(path) or "Fetch the model again.")


def _hub_file(repo_id: str, file_name: str, revision: str | None, cache_dir: str | None) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        return Path(hf_hub_download(repo_id, file_name, revision=revision, cache_dir=cache_dir))
    except Exception as error:
        is_revision = isinstance(error, RevisionNotFoundError)
        what = (revision or "main") if is_revision else file_name
        raise explain(error, repo_id, what) from error
