"""A Hub on this machine, for tests: real git, git-lfs and Xet behind the Hub's REST interface.

The client is the unmodified huggingface_hub. What the client asks for and is not here answers 501
and is remembered in `Hub.unknown`, so that the tests fail instead of passing by luck. Left out are
organisations, pull requests, discussions, search, data sets and Spaces.
"""

from loopback.server import Hub

__all__ = ["Hub"]
