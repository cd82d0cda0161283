"""The frozen models that turn pictures and captions into tensors, loaded when they are needed."""

import hashlib
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

KEY_VERSION = 1
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

    def key(self, name: str) -> str:
        """What the results of a component depend on, its tokenizer included."""
        note = self._note(name)
        if note is not None and note.is_file():
            return note.read_text("utf-8")
        self.load(name)
        key = model_key(self.components[name])
        if name in text_encoders(self.family):
            key += _tokenizer_key(self.components[text_encoders(self.family)[name]])
        if note is not None:
            with suppress(UserError, OSError):  # a cache that is only read serves as well
                write_atomically(note, key.encode())
        return key

    def load(self, name: str) -> None:
        """Have a component in memory, on the device."""
        if name not in self.components:
            self.family.load(self.components, [name], self.dtype)
            self.components[name].to(self.runtime.device)

    def release(self, *names: str) -> None:
        """Let components go, so that their memory can be used for others."""
        self.components.release(*names)
        if self.runtime.device.type == "cuda":
            torch.cuda.empty_cache()

    def _note(self, name: str) -> Path | None:
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
        about = content_key(KEY_VERSION, self.family.name, name, str(self.dtype), *stamps)
        return self.notes / f"{about[:32]}.txt"


def encoders_of(
    config: TrainConfig, family: Family, components: Components, runtime: Runtime
) -> Encoders:
    """The encoders of a run, which remember in its cache."""
    folder = config.cache_folder
    return Encoders(family, components, runtime, folder and folder / "encoders")


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
