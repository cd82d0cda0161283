"""Nothing that a model, an adapter, a checkpoint or a data set brings along is ever run."""

import ast
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from scumble import TrainConfig
from scumble.cli.main import run
from scumble.data.cache import TensorStore, content_key
from scumble.data.sources import huggingface_dataset
from scumble.errors import UserError
from scumble.families import Components, family_of, locate
from scumble.inference.generator import build_pipeline
from scumble.training.checkpoints import STATE, CheckpointWriter, open_checkpoint
from source_tree import calls, modules

NOT_RUN = "nothing of it was run|could run code|can run what is in it"


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.place),)


@pytest.fixture
def trap(tmp_path: Path) -> Any:
    """Something that is sprung by any ordinary pickle reader, and by nothing in the test."""
    place = tmp_path / "sprung"
    pickle.loads(pickle.dumps(Trap(place)))
    assert place.is_dir(), "the trap does not work"
    place.rmdir()
    yield Trap(place)
    assert not place.exists(), "code was run"


@pytest.fixture
def script(trap: Trap) -> str:
    """A Python file that springs the trap."""
    return f"import os\nos.mkdir({str(trap.place)!r})\nclass Evil: pass\n"


@pytest.fixture
def base(tmp_path: Path, tiny_folder: Path) -> Path:
    """A base in diffusers' layout that a test may spoil."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "base"))


def write_pickle(path: Path, content: object, kind: str) -> None:
    if kind == "plain":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")


def load(base: Path, *parts: str) -> Components:
    model = locate(str(base))
    components = Components(model)
    family_of(model).load(components, parts, torch.float32)
    return components


@pytest.mark.parametrize("kind", ["zip", "before 1.6", "plain"])
@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_base_of_pickles(part: str, kind: str, base: Path, trap: Trap) -> None:
    (weights,) = (base / part).glob("*.safetensors")
    weights.unlink()
    is_text = part == "text_encoder"
    name = "pytorch_model.bin" if is_text else "diffusion_pytorch_model.bin"
    write_pickle(base / part / name, {"x": trap}, kind)
    with pytest.raises(UserError, match=f"{part} of .*{NOT_RUN}") as refused:
        load(base, part)
    assert "weights_only" not in str(refused.value)


@pytest.mark.parametrize("kind", ["zip", "before 1.6", "plain"])
@pytest.mark.parametrize("name", ["a.ckpt", "a.pt", "a.bin", "a.safetensors"])
def test_a_file_that_is_a_pickle(
    name: str, kind: str, trap: Trap, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    write_pickle(path, {"state_dict": {"x": trap}}, kind)
    commands = [["inspect", str(path)], ["inspect", str(path), "--allow_pickle"]]
    commands += [["diff", str(path), str(path), "--allow_pickle"]]
    draw = ["generate", "--prompt", "x", "--output", str(tmp_path / "drawn")]
    if name.endswith((".ckpt", ".safetensors")):
        commands += [[*draw, "--pretrained_model_name_or_path", str(path)]]
        extract = ["extract", "--base", "scumble-tiny", "--tuned", str(path), "--rank", "2"]
        commands += [[*extract, "--output", str(tmp_path / "b.safetensors")]]
    for words in commands:
        assert run(words) not in (0, None), words
        said = capsys.readouterr().err
        assert said.count("scumble: ") == 1
        assert "Traceback" not in said
        assert "weights_only" not in said


@pytest.mark.parametrize(
    "index",
    [
        {"_class_name": ["pipeline", "Evil"]},
        {"_class_name": "Evil"},
        {"_class_name": "os.system"},
        {"_class_name": "../pipeline"},
    ],
)
def test_a_pipeline_of_its_own(index: dict[str, Any], base: Path, script: str) -> None:
    (base / "model_index.json").write_text(json.dumps(index))
    for name in ("pipeline.py", "Evil.py", "evil.py"):
        (base / name).write_text(script)
    with pytest.raises(UserError, match=r"a family that scumble does not teach|_class_name"):
        family_of(locate(str(base)))


def test_classes_and_modules_that_a_base_names(base: Path, script: str, trap: Trap) -> None:
    index = json.loads((base / "model_index.json").read_text())
    index |= {"unet": ["unet", "Evil"], "text_encoder": ["os", "mkdir"], "vae": ["vae", "Evil"]}
    index |= {"evil": ["os", "system"], "custom_pipeline": "evil.py", "trust_remote_code": True}
    (base / "model_index.json").write_text(json.dumps(index))
    own = {"auto_map": {f"Auto{n}": "evil.Evil" for n in ("Config", "Model", "Tokenizer")}}
    own |= {"trust_remote_code": True, "custom_pipelines": {"a": {"impl": "evil.Evil"}}}
    own |= {"tokenizer_class": "Evil", "_class_name": "Evil", "architectures": ["Evil"]}
    for path in base.rglob("*config.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | own))
    for folder in (base, *(path for path in base.iterdir() if path.is_dir())):
        for name in ("evil.py", f"{folder.name}.py"):
            (folder / name).write_text(script)
    components = load(base, "unet", "vae", "text_encoder")
    build_pipeline(family_of(components.base), components)


def test_a_checkpoint_of_ours_that_was_tampered_with(trap: Trap, tmp_path: Path) -> None:
    places = {"train_data_dir": str(tmp_path / "set"), "output_dir": str(tmp_path / "out")}
    config = TrainConfig(pretrained_model_name_or_path="scumble-tiny", **places)
    writer = CheckpointWriter(config, "digest")
    sound = {"parameters": {}, "update": {}, "average": {}, "choice": {}, "phase": "x"}
    assert open_checkpoint(writer.write(1, lambda _: None, sound)).training_state() == sound
    folder = writer.write(2, lambda _: None, {"update": trap})
    with pytest.raises(UserError, match=f"{STATE} cannot be read: .*{NOT_RUN}") as refused:
        open_checkpoint(folder).training_state()
    assert "weights_only" not in str(refused.value)
    with pytest.raises(UserError, match="holds no state of a training"):
        open_checkpoint(writer.write(3, lambda _: None, {"x": 1})).training_state()


@pytest.mark.parametrize("kind", ["zip", "before 1.6", "plain"])
def test_an_entry_of_the_cache(kind: str, trap: Trap, tmp_path: Path) -> None:
    key = content_key("x")
    path = tmp_path / key[:2] / f"{key}.safetensors"
    path.parent.mkdir()
    write_pickle(path, {"mean": trap}, kind)
    store = TensorStore(tmp_path)
    assert store.get(key) is None
    assert [note.partition(":")[0] for note in store.repaired] == [path.name]


def test_a_data_set_with_a_loading_script(script: str, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "set.py").write_text(script)
    for name in (folder, folder / "set.py"):
        with pytest.raises(UserError, match="scripts are no longer supported"):
            huggingface_dataset(str(name), cache_dir=str(tmp_path / "cache"))


def test_a_configuration_that_wants_to_build_objects(
    trap: Trap, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "settings.yaml"
    for tag in ("object/apply:os.mkdir", "object/new:os.mkdir", "name:os.mkdir"):
        path.write_text(f"rank: !!python/{tag} [{str(trap.place)!r}]\n")
        assert run(["train", "text_to_image", "--config", str(path)]) == 1
        assert "settings.yaml is malformed" in capsys.readouterr().err


FORBIDDEN = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen"),
    *("yaml.full_load", "yaml.unsafe_load", "torch.hub.load", "torch.jit.load", "runpy.run_path"),
}
FORBIDDEN_MODULES = {"pickle", "marshal", "shelve", "dill", "joblib", "cloudpickle", "tarfile"}
FORBIDDEN_OPTIONS = {"shell", "trust_remote_code", "custom_pipeline", "custom_revision"}


def dangers(tree: ast.AST) -> list[str]:
    """Calls that could run what a file says, or write where an archive says."""
    found = []
    classes = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    safe = {n for n, c in classes.items() if [*map(ast.unparse, c.bases)] == ["yaml.SafeLoader"]}
    for name, call in calls(tree):
        options = {word.arg: ast.unparse(word.value) for word in call.keywords}
        # Ours takes tensors alone, and goes by the same name as numpy's.
        is_numpy = name.startswith(("np.", "numpy."))
        if (
            name in FORBIDDEN
            or name.partition(".")[0] in FORBIDDEN_MODULES
            or name.rpartition(".")[2] in ("extractall", "extract", "unpack_archive")
            or FORBIDDEN_OPTIONS & {n for n, value in options.items() if value != "False"}
            or (is_numpy and options.get("allow_pickle", "False") != "False")
            or (name == "torch.load" and options.get("weights_only") != "True")
            or (name == "yaml.load" and ast.unparse(call.args[-1]) not in safe)
            or (name.endswith("import_module") and not _is_ours(call))
        ):
            found.append(f"{ast.unparse(call)[:60]}")
    return found


def _is_ours(call: ast.Call) -> bool:
    """Whether what is imported is written in the source, at least the package that it is of."""
    wanted = call.args[0]
    first = wanted.values[0] if isinstance(wanted, ast.JoinedStr) else wanted
    return isinstance(first, ast.Constant) or ast.unparse(wanted) == "_HOMES[name]"


def test_no_call_that_could_run_a_file() -> None:
    found = {m.name: dangers(m.tree) for m in modules()}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_pickles_are_opened_in_one_place() -> None:
    opening = [m.name for m in modules() for name, _ in calls(m.tree) if name == "torch.load"]
    assert opening == ["formats/pickled.py"]


@pytest.mark.parametrize(
    "text",
    [
        "eval(x)",
        "pickle.loads(x)",
        "torch.load(x)",
        "torch.load(x, weights_only=safe)",
        "yaml.load(x, Loader=yaml.Loader)",
        "class Loader(yaml.Loader): pass\nyaml.load(x, Loader)",
        "np.load(x, allow_pickle=True)",
        "subprocess.run(x, shell=True)",
        "archive.extractall(x)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "DiffusionPipeline.from_pretrained(x, custom_pipeline=y)",
        "import_module(config['class'])",
        "import_module(f'{x}.y')",
    ],
)
def test_such_a_call_would_be_found(text: str) -> None:
    assert dangers(ast.parse(text))
