"""What a page must never do: listen to the network, serve or read foreign files, tell secrets."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from example_adapters import write_example
from in_process import served_page
from PIL import Image

from scumble.cli.main import run
from scumble.config.ui import UiConfig
from scumble.errors import UserError
from scumble.ui.app import launch

TOKEN = "hf_" + "secret" * 5
SECRET = "of no visitor's business"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page's own in it, and a file beside that."""
    place = tmp_path_factory.mktemp("place")
    (place / "secret.txt").write_text(SECRET)
    write_example(place / "page" / "first.safetensors", 1)
    write_example(place / "outside.safetensors", 2)
    (place / "page" / "notes.txt").write_text(SECRET)
    return place


@pytest.fixture(scope="module")
def page(place: Path) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", TOKEN)
        with served_page(place / "page", max_upload_mb=1) as page:
            yield page


@pytest.fixture
def client(page: Any) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=page.local_url, timeout=30) as client:
        yield client


def ask(client: httpx.Client, page: Any, name: str, **values: Any) -> Any:
    """Call a function of the page as a program would; values by elem_id or label."""
    config = client.get("/config").json()
    called = next(entry for entry in config["dependencies"] if entry["api_name"] == name)
    widgets = {entry["id"]: entry["props"] for entry in config["components"]}
    data = []
    for number in called["inputs"]:
        props = widgets[number]
        keys = [props.get("elem_id"), props.get("label")]
        data.append(next((values[key] for key in keys if key in values), props.get("value")))
    started = client.post(f"/gradio_api/call/{name}", json={"data": data})
    assert started.status_code == 200, started.text
    event = started.json()["event_id"]
    return client.get(f"/gradio_api/call/{name}/{event}").text


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.0.7", "::", "example.org"])
def test_only_this_machine_is_listened_to_without_a_password(host: str) -> None:
    with pytest.raises(UserError, match="anyone on the network"):
        UiConfig(host=host)
    assert UiConfig(host=host, auth="ann:secret").credentials == ("ann", "secret")
    assert UiConfig().host == "127.0.0.1"


def test_a_password_is_asked_for(place: Path) -> None:
    with served_page(place / "guarded", auth="ann:secret", generate_only=True) as page:
        with httpx.Client(base_url=page.local_url) as client:
            for path in ("config", "gradio_api/info", "gradio_api/file=x"):
                assert client.get(path).status_code == 401
            login = {"username": "ann", "password": "wrong"}
            assert client.post("login", data=login).status_code == 400
            assert client.post("login", data=login | {"password": "secret"}).status_code == 200
            config = client.get("config").json()
        names = {entry["api_name"] for entry in config["dependencies"]}
        assert "generate" in names
        assert not {"receive", "merge", "convert", "inspect", "compare"} & names
        port = int(page.local_url.rstrip("/").rpartition(":")[2])
        with pytest.raises(UserError, match="cannot be served"):
            launch(UiConfig(folder=str(place / "other"), port=port))


@pytest.mark.parametrize(
    "path",
    [
        "{place}/secret.txt",
        "{place}/page/../secret.txt",
        "{place}/page/notes.txt",
        "{place}/page/first.safetensors",
        "{place}/page/.served/../notes.txt",
        "/etc/passwd",
        "//etc/passwd",
        "../secret.txt",
        "%2e%2e/secret.txt",
        "..%2f..%2f..%2fetc%2fpasswd",
        "/proc/self/environ",
        "file:///etc/passwd",
        "http://127.0.0.1:9/x",
    ],
)
def test_no_file_is_served_but_copies_made_for_a_visitor(
    path: str, place: Path, client: httpx.Client
) -> None:
    for route in ("/gradio_api/file=", "/file=", "/gradio_api/stream/", "/static/", "/assets/"):
        answer = client.get(route + path.format(place=place))
        assert answer.status_code >= 400, route
        assert SECRET not in answer.text
        assert "root:" not in answer.text


def test_a_file_that_nobody_uploaded_cannot_be_named_as_an_upload(
    place: Path, client: httpx.Client, page: Any
) -> None:
    stolen = {"path": str(place / "secret.txt"), "meta": {"_type": "gradio.FileData"}}
    config = client.get("/config").json()
    kinds = {entry["id"]: entry["type"] for entry in config["components"]}
    called = 0
    for entry in config["dependencies"]:
        files = [i for i in entry["inputs"] if kinds[i] in ("file", "uploadbutton", "image")]
        if not files or not entry["api_name"]:
            continue
        data = [[stolen] if number in files else None for number in entry["inputs"]]
        name = entry["api_name"]
        started = client.post(f"/gradio_api/call/{name}", json={"data": data})
        if started.status_code == 200:
            event = started.json()["event_id"]
            assert SECRET not in client.get(f"/gradio_api/call/{name}/{event}").text
        called += 1
    assert SECRET not in "".join(
        path.read_text("utf-8", "replace") for path in (place / "page").rglob(".served/**/*.txt")
    )
    assert called


@pytest.mark.parametrize("name", ["{place}/outside.safetensors", "../outside.safetensors"])
def test_no_tool_takes_a_path_outside(
    name: str, place: Path, client: httpx.Client, page: Any
) -> None:
    path = name.format(place=place)
    for answer in (
        ask(client, page, "inspect", inspect_adapter=path),
        ask(client, page, "generate", prompt="a red circle", Adapters=[path]),
        ask(client, page, "generate", prompt="a red circle", base=str(place)),
        ask(client, page, "convert", convert_adapter=path, convert_format="as it is"),
    ):
        assert "outside of the folders" in answer or "not in the list of choices" in answer
        assert "fp32" not in answer
    assert not (place / "page" / "drawn").exists()
    assert not (place / "page" / "library").exists()


def test_too_large_an_upload_is_refused(place: Path, client: httpx.Client) -> None:
    files = {"files": ("large.png", b"\0" * (2 * 2**20))}
    assert client.post("/gradio_api/upload", files=files).status_code == 413
    kept = [path for path in (place / "page" / ".served").rglob("*") if path.is_file()]
    assert all(path.stat().st_size < 2**20 for path in kept)


def test_an_uploads_name_cannot_leave_its_folder(place: Path, client: httpx.Client) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    files = {"files": ("../../../escaped.png", picture.getvalue())}
    answer = client.post("/gradio_api/upload", files=files)
    assert answer.status_code == 200
    (kept,) = map(Path, answer.json())
    assert kept.resolve().is_relative_to((place / "page" / ".served").resolve())
    assert not list(place.glob("escaped*"))


def test_the_token_and_the_password_are_on_no_page(client: httpx.Client, place: Path) -> None:
    shown = client.get("/").text + client.get("/config").text + client.get("/gradio_api/info").text
    assert TOKEN not in shown
    for path in (path for path in place.rglob("*") if path.is_file()):
        assert TOKEN.encode() not in path.read_bytes(), path


def test_nothing_beyond_this_machine_is_asked_for(client: httpx.Client) -> None:
    config = client.get("/config").json()
    assert config["analytics_enabled"] is False
    assert not config.get("is_space")
    buttons = json.dumps([entry["props"].get("buttons") for entry in config["components"]])
    assert "share" not in buttons


def test_bad_options_are_one_clear_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ui", "--host", "0.0.0.0"]) == 1
    assert run(["ui", "--auth", "ann"]) == 1
    errors = capsys.readouterr().err
    assert "--host 0.0.0.0 would let anyone on the network use this machine" in errors
    assert "Traceback" not in errors
