"""A Hub to push to and pull from: one on this machine, or a real one.

`pytest tests/hub --hub-endpoint https://huggingface.co`, with a token that writes in HF_TOKEN, runs
the same tests there; what needs a Hub that breaks or has strangers in it is skipped then.
"""

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).parent))

from loopback import Hub
from short_training import training

PYTHON = sys.executable
CLIENT_VARIABLES = ("HF_TOKEN", "HF_ENDPOINT", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--hub-endpoint", help="run the Hub's tests there, with HF_TOKEN")


@dataclass
class Place:
    """Where the tests push to, as whom. `hub` is None where it is a real one."""

    endpoint: str
    user: str
    token: str
    hub: Hub | None
    folder: Path
    made: list[str] = field(default_factory=list)

    def new_name(self) -> str:
        """A repository that is not there yet."""
        self.made.append(f"{self.user}/scumble-test-{secrets.token_hex(4)}")
        return self.made[-1]

    def run(
        self, *command: str, home: str = "home", **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a program with the unmodified client, which reads its variables when it starts."""
        own = {
            "HF_ENDPOINT": self.endpoint,
            "HF_TOKEN": self.token,
            "HF_HOME": str(self.folder / home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "OMP_NUM_THREADS": "1",
        }
        kept = {k: v for k, v in os.environ.items() if k not in CLIENT_VARIABLES}
        return subprocess.run(
            command, env=kept | own | variables, cwd=self.folder, capture_output=True, text=True
        )

    def python(self, code: str, *words: str, **variables: str) -> str:
        """What a piece of Python prints."""
        run = self.run(PYTHON, "-c", code, *words, **variables)
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout

    def scumble(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return self.run(PYTHON, "-m", "scumble", *words, **variables)


@pytest.fixture(scope="session")
def place(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """The Hub of these tests; whatever it was asked and did not know fails the session."""
    folder = tmp_path_factory.mktemp("client")
    endpoint = pytestconfig.getoption("--hub-endpoint", default=None)
    if endpoint is None:
        hub = Hub(tmp_path_factory.mktemp("hub"))
        place = Place(hub.url, "alice", "hf_alice_writes", hub, folder)
    else:
        token = os.environ.get("HF_TOKEN")
        if not token:
            pytest.skip("--hub-endpoint needs a token that writes in HF_TOKEN")
        place = Place(endpoint, "", token, None, folder)
        who = "from huggingface_hub import whoami; print(whoami()['name'])"
        place.user = place.python(who).strip()
    yield place
    if place.hub is not None:
        place.hub.close()
        assert place.hub.unknown == [], "the client asks for what the Hub of the tests has not"
    else:
        delete = "import sys, huggingface_hub as hub\n"
        delete += "[hub.delete_repo(name, missing_ok=True) for name in sys.argv[1:]]"
        place.python(delete, *place.made)


@pytest.fixture
def hub(place: Place) -> Hub:
    """The Hub on this machine, for what a real one cannot be told to do."""
    if place.hub is None:
        pytest.skip("a real Hub does not break on demand")
    return place.hub


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number, colour in enumerate(("red", "green", "blue", "yellow")):
        image = Image.new("RGB", (64, 64), "black")
        ImageDraw.Draw(image).ellipse((8 + number, 12, 48, 52), colour)
        image.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a {colour} circle at night")
    return folder


@dataclass(frozen=True)
class Trained:
    """A run that pushed its result; `said` is all that it printed."""

    folder: Path
    name: str
    said: str


@pytest.fixture(scope="session")
def trained(place: Place, pictures: Path) -> Trained:
    """A run with sample pictures and a checkpoint that went to the Hub when it was done."""
    folder, name = place.folder / "run", place.new_name()
    more = ["--num_inference_steps", "1", "--validation_prompt", "a red circle at night"]
    more += ["--num_validation_images", "1", "--validation_share", "0.25"]
    push = ["--push_to_hub", "--hub_model_id", name, "--checkpointing_steps", "1"]
    run = place.scumble(*training(pictures, folder, *more, *push))
    assert run.returncode == 0, run.stdout + run.stderr
    return Trained(folder, name, run.stdout + run.stderr)


@pytest.fixture
def adapter_folder(trained: Trained, tmp_path: Path) -> Path:
    """A folder with the trained adapter and its card alone."""
    for name in ("pytorch_lora_weights.safetensors", "README.md"):
        shutil.copy(trained.folder / name, tmp_path / name)
    return tmp_path


@pytest.fixture(scope="session")
def clone(place: Place) -> Callable[[str, Path], Path]:
    """Clones a repository with git and git-lfs; skips, saying so, where those are not here."""
    if shutil.which("git-lfs") is None and not _installed_git_lfs():
        pytest.skip("git-lfs is not installed here: what was pushed is not read by git")

    def run(name: str, target: Path) -> Path:
        command = "git-lfs filter-process"
        settings = {"filter.lfs.process": command, "filter.lfs.required": "true"}
        settings |= {"filter.lfs.smudge": "git-lfs smudge -- %f"}
        options = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        address = place.endpoint.replace("://", f"://{place.user}:{place.token}@") + f"/{name}"
        done = place.run("git", *options, "clone", "-q", address, str(target))
        assert done.returncode == 0, done.stderr
        return target

    return run


def _installed_git_lfs() -> bool:
    """Install it where that needs no questions, as on machines that only test."""
    if shutil.which("apt-get") is None or not hasattr(os, "geteuid") or os.geteuid() != 0:
        return False
    command = ["apt-get", "install", "-y", "-q", "--no-install-recommends", "git-lfs"]
    return subprocess.run(command, capture_output=True).returncode == 0
