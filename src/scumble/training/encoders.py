"""The frozen models that turn pictures and captions into tensors, loaded when they are needed."""

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from scumble.config import TrainConfig
from scumble.data.cache import content_key, module_digest
from scumble.errors import UserError
from scumble.families import Components, Family, text_encoders
from scumble.formats.container import write_atomically
from scumble.training.runtime import Runtime
from scumble.training.sealed import read_sealed, sealed

KEY_VERSION = 2
"""Raise it when `Encoders.key` is found in another way."""


class Encoders:
    """The encoders of a base. Where everything is in the cache already, none is loaded.

    What an encoder's results depend on is found by reading all its weights. It is remembered, under
    the names, sizes, times and inodes of its files, so that the next run knows it at once.

    Args:
        family: how to load.
        components: to load into.
        runtime: device, and the dtype of the training.
        notes: folder for what is remembered; None remembers nothing.
    """

    def __init__(
        self, family: Family, components: Components, runtime: Runtime, notes: Path | None
    ) -> None:
        self.family = family
        self.components = components
        self.runtime = runtime
        self.notes = notes
        self.dtype = encoder_dtype(runtime.dtype)
        self._keys: dict[str, str] = {}

    def key(self, name: str, dtype: torch.dtype | None = None) -> str:
        """What the results of a component depend on, its tokenizer included.

        Args:
            name: of the component. If it is in memory, it must be as it was loaded.
            dtype: that it computes in, if that is not the encoders' own.
        """
        if name not in self._keys:
            self._keys[name] = self._find_key(name, dtype or self.dtype)
        return self._keys[name]

    def marks(self) -> dict[str, str]:
        """Component -> a short form of its key, of all that were asked for."""
        return {name: content_key(key)[:16] for name, key in sorted(self._keys.items())}

    def _find_key(self, name: str, dtype: torch.dtype) -> str:
        note = self._note(name, dtype)
        known = None if note is None else read_sealed(note)
        if known is not None:
            return str(known["key"])
        self.load(name, dtype)
        key = model_key(self.components[name])
        if name in text_encoders(self.family):
            key += _tokenizer_key(self.components[text_encoders(self.family)[name]])
        if note is not None:
            with suppress(UserError, OSError):  # a cache that is only read serves as well
                write_atomically(note, json.dumps(sealed({"key": key})).encode())
        return key

    def load(self, name: str, dtype: torch.dtype | None = None) -> None:
        """Have a component in memory, on the device; in the encoders' own dtype if not given."""
        if name not in self.components:
            self.family.load(self.components, [name], dtype or self.dtype)
            self.components[name].to(self.runtime.device)

    def release(self, *names: str) -> None:
        """Let components go, so that their memory can be used for others."""
        self.components.release(*names)
        if self.runtime.device.type == "cuda":
            torch.cuda.empty_cache()

    def _note(self, name: str, dtype: torch.dtype) -> Path | None:
        paths = self.components.base.files(name)
        if name in text_encoders(self.family):
            paths = paths + self.components.base.files(text_encoders(self.family)[name])
        if self.notes is None or not paths:
            return None
        stamps = []
        for path in paths:
            facts = path.stat()
            times = facts.st_mtime_ns, facts.st_ctime_ns
            stamps.append(f"{path.resolve()}\0{facts.st_size}\0{facts.st_ino}\0{times}")
        about = content_key(KEY_VERSION, self.family.name, name, str(dtype), *stamps)
        return self.notes / f"{about[:32]}.json"


def encoders_of(
    config: TrainConfig, family: Family, components: Components, runtime: Runtime
) -> Encoders:
    """The encoders of a run, which remember in its cache."""
    folder = config.cache_folder
    return Encoders(family, components, runtime, folder and folder / "encoders")


def base_marks(encoders: Encoders, *, live: bool) -> dict[str, str]:
    """The marks of all components of a base, as a run of it would note them.

    Args:
        encoders: each component that is not remembered is loaded and let go again.
        live: whether the text encoders take part in every step.
    """
    family, dtype = encoders.family, encoders.runtime.dtype
    stepping = {family.components[0], *(text_encoders(family) if live else ())}
    for name in family.components:
        encoders.key(name, dtype if name in stepping else None)
        encoders.release(name)
    return encoders.marks()


def encoder_dtype(dtype: torch.dtype) -> torch.dtype:
    """The format to encode in: the run's own, except that fp16 is too narrow for some VAEs."""
    return torch.float32 if dtype == torch.float16 else dtype


def model_key(module: torch.nn.Module) -> str:
    """What of a frozen model its results depend on."""
    config = getattr(module, "config", None)
    scaling = getattr(config, "scaling_factor", None)
    return f"{module_digest(module)}/{next(module.parameters()).dtype}/{scaling}"


def _tokenizer_key(tokenizer: Any) -> str:
    vocabulary = repr(sorted(tokenizer.get_vocab().items()))
    text = f"{tokenizer.model_max_length}/{tokenizer.pad_token}/{vocabulary}"
    return hashlib.sha256(text.encode()).hexdigest()
