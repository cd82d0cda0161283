"""Who may reach the page: this machine alone, unless visitors must say who they are."""

import pytest

from scumble.config.ui import UiConfig
from scumble.errors import UserError


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.9.9.9"])
def test_this_machine_needs_no_password(host: str) -> None:
    assert UiConfig(host=host).credentials is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.2", "example.org"])
def test_any_other_address_does(host: str) -> None:
    with pytest.raises(UserError, match="would let anyone on the network use this machine"):
        UiConfig(host=host)
    assert UiConfig(host=host, auth="ann:a:b").credentials == ("ann", "a:b")


@pytest.mark.parametrize("auth", ["ann", "ann:", ":secret", ""])
def test_half_a_password_is_none(auth: str) -> None:
    with pytest.raises(UserError, match="USER:PASSWORD"):
        UiConfig(host="0.0.0.0", auth=auth)


def test_numbers_that_cannot_be_meant_are_refused() -> None:
    with pytest.raises(UserError, match="--port must be from 0 to 65535"):
        UiConfig(port=70_000)
    with pytest.raises(UserError, match="--max_upload_mb must be at least 1"):
        UiConfig(max_upload_mb=0)
