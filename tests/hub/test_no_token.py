"""A token is nowhere afterwards, however it was given and whatever went wrong."""

import json
import sys

import pytest
from short_training import training

RUNS = """
import json, os, sys
from huggingface_hub import HfApi
from scumble.cli.main import main
from scumble.training.journal import Journal

def broken(self, *words, **options):
    token = getattr(self, "token", None) or os.environ["HF_TOKEN"]
    raise RuntimeError(f"500: Authorization: Bearer {token}, https://alice:{token}@hub {token}")

for case in json.loads(sys.argv.pop()):
    patched = {"commit": (HfApi, "create_commit"), "step": (Journal, "add")}.get(case["breaks"])
    if patched:
        kept = getattr(*patched)
        setattr(*patched, broken)
    os.environ["HF_TOKEN"] = case["environment"]
    sys.argv[1:] = case["words"]
    try:
        main()
    except SystemExit as ended:
        print("exit", ended.code)
    except RuntimeError:
        sys.excepthook(*sys.exc_info())
    if patched:
        setattr(*patched, kept)
"""


@pytest.mark.slow
@pytest.mark.long
def test_a_token_is_nowhere_after_any_failure(place, hub, pictures, tmp_path):
    folder, settings = place.folder / "secretive", tmp_path / "settings.yaml"
    settings.write_text("hub_token: hf_alice_reads\n")
    names = iter("abcdef")

    def case(breaks, environment, *more, to="fox"):
        push = ["--push_to_hub", "--hub_model_id", to, "--no_before_after", *more]
        words = training(pictures, folder / next(names), *push)
        return {"breaks": breaks, "environment": environment, "words": words}

    writes = ["--hub_token", "hf_alice_writes"]
    cases = [
        case(None, "", "--hub_token", "hf_nobody_at_all"),
        case(None, "hf_nobody_at_all"),
        case(None, "", "--config", str(settings)),
        case(None, "", *writes, to="bob/fox"),
        case("commit", "", *writes),
        case("step", "hf_bob_writes", "--hub_token=hf_bob_writes", to="bob/fox"),
    ]
    push = ["push", str(folder / "e"), "fox", "--hub_token", "hf_alice_writes"]
    cases += [{"breaks": "commit", "environment": "", "words": push}]
    program = tmp_path / "runs.py"
    program.write_text(RUNS)
    places = {"home": "secretive/home", "XDG_CACHE_HOME": str(folder / "cache")}
    run = place.run(sys.executable, str(program), json.dumps(cases), **places)
    said = run.stdout + run.stderr
    assert run.stdout.count("exit 1") == 6, said
    assert "the Hub does not know the token" in said
    assert "may only read" in said
    assert "may not push to 'bob/fox'" in said
    assert "finished and safe" in said
    assert said.count("broke off: 500: Authorization: Bearer ***, https://***@hub ***") == 2
    assert "RuntimeError: 500: Authorization: Bearer ***" in said
    assert json.loads((folder / "f" / "run.json").read_text())["error"].startswith("500: Auth")
    written = [path for path in folder.rglob("*") if path.is_file()]
    assert {"run.json", "README.md", "pytorch_lora_weights.safetensors"} <= {
        path.name for path in written
    }
    assert any("cache" in path.parts for path in written)
    tokens = ("hf_nobody_at_all", "hf_alice_reads", "hf_alice_writes", "hf_bob_writes")
    for token in tokens:
        assert token not in said
        assert not [path for path in written if token.encode() in path.read_bytes()]
