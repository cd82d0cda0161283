"""The options of `scumble push`, and what of a run's settings may be shared."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

from scumble.errors import UserError
from scumble.redaction import redacted

SECRETS = ("hub_token", "auth")
"""Settings that are written nowhere."""
LOCAL_PATHS = (
    "output_dir",
    "train_data_dir",
    "instance_data_dir",
    "class_data_dir",
    "validation_data_dir",
    "cache_dir",
    "latent_cache_dir",
    "logging_dir",
    "resume_from_checkpoint",
)
"""Settings that are paths of this machine."""


REPORTING = ("push_to_hub", "hub_model_id", "hub_private", "report_to")
"""Settings that say where results go, and teach nothing."""


@dataclass(kw_only=True)
class PushFields:
    """What to push, and where"""

    folder: str
    """The output folder of a training run, or another folder with adapter files in it."""
    repo: str | None = None
    """Repository to push to, as user/name, or a name below your own; that of the folder if not
    given. It is made if it is not there."""
    private: bool = False
    """Make the repository visible to you alone. One that is public already is refused."""
    hub_token: str | None = field(default=None, repr=False)
    """Token to push with. Better: log in once with hf auth login, or put it into HF_TOKEN, where no
    list of processes shows it."""
    message: str = "Push with scumble"
    """What the repository's history says of it."""

    def __post_init__(self) -> None:
        if not self.message.strip():
            raise UserError("--message must not be empty", "Say in a few words what changed.")


def shareable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What of some settings is worth sharing: no secret, and no path of this machine.

    A base or data set that lies on this machine is called by the last part of its path.
    """
    hidden = {*SECRETS, *LOCAL_PATHS, *REPORTING}
    return {name: _without_folders(v) for name, v in settings.items() if name not in hidden}


def _without_folders(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if not is_local(value):
        return redacted(value)
    return PureWindowsPath(value).name  # it parts at either slash


def is_local(name: str) -> bool:
    """Whether a name of a base or data set is a path of this machine, and no Hub id."""
    is_path = name.startswith(("/", "~", "./", "../", ".\\", "..\\"))
    return is_path or bool(PureWindowsPath(name).drive) or ("/" in name and Path(name).exists())
