"""The options of `scumble ui`; the docstring under a field is its help text everywhere."""

import ipaddress
from dataclasses import dataclass, field

from scumble.errors import UserError
from scumble.redaction import keep_secret


@dataclass(kw_only=True)
class UiConfig:
    """Where the page is, and what it may read"""

    folder: str = "scumble-page"
    """Folder that the page works in: uploaded pictures, runs, and the queue of runs."""
    allow: tuple[str, ...] = ()
    """Further folders that the page may read: of pictures, bases and adapters. It reads and serves
    nothing outside of these and its own."""
    port: int = 7860
    """Port of the page; 0 takes any that is free."""
    host: str = "127.0.0.1"
    """Address to listen at. Any other than this machine's own needs --auth."""
    auth: str | None = field(default=None, repr=False)
    """USER:PASSWORD that visitors must give. Better in the environment, where no list of processes
    shows it: SCUMBLE_UI_AUTH."""
    generate_only: bool = False
    """Show the drawing page alone: for a demo of an adapter."""
    max_upload_mb: int = 50
    """Largest file that may be uploaded."""
    open_browser: bool = False
    """Open the page in the browser once it is ready."""

    def __post_init__(self) -> None:
        keep_secret(self.auth)
        self.allow = tuple(self.allow)
        if not 0 <= self.port < 2**16:
            raise UserError(f"--port must be from 0 to 65535, not {self.port}")
        if self.max_upload_mb < 1:
            raise UserError(f"--max_upload_mb must be at least 1, not {self.max_upload_mb}")
        if self.auth is not None and not all(self.auth.partition(":")):
            raise UserError("--auth must be USER:PASSWORD")
        if self.auth is None and not is_loopback(self.host):
            raise UserError(
                f"--host {self.host} would let anyone on the network use this machine",
                "Add --auth USER:PASSWORD, or leave --host away and reach the page through ssh -L.",
            )

    @property
    def credentials(self) -> tuple[str, str] | None:
        """User and password that visitors must give."""
        user, _, password = (self.auth or "").partition(":")
        return (user, password) if user else None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
