"""run.py without any environment made: its decisions, its messages, its stamp."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

RUN_PY = Path(__file__).parents[1] / "run.py"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Load run.py as a module that works on an empty project and notes what it would call."""
    spec = importlib.util.spec_from_file_location("run_py", RUN_PY)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.delenv("SCUMBLE_TORCH_INDEX", raising=False)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(module, "STAMP", tmp_path / ".venv" / "set-up.json")
    module.called = []
    module.exit_codes = {}

    def call(command: list[str], folder: Path = tmp_path, title: str = "") -> int:
        module.called.append(command)
        return next((code for word, code in module.exit_codes.items() if word in command), 0)

    monkeypatch.setattr(module, "call", call)
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text(name)
    return module


def kinds(run: ModuleType) -> list[str]:
    """Which steps were taken since the last question, as "venv" and "pip"."""
    called, run.called = run.called, []
    return [command[2] for command in called]


def test_set_up_is_done_once(run):
    run.set_up(("test",), None)
    assert kinds(run) == ["venv", "pip"]
    run.set_up(("test",), None)
    assert kinds(run) == []


def test_what_was_installed_for_the_checks_serves_the_tests(run):
    run.set_up(("test",), None)
    run.set_up(("test", "check"), None)
    assert kinds(run) == ["venv", "pip", "pip"]
    run.set_up(("test",), None)
    assert kinds(run) == []


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_a_change_installs_into_the_same_environment(run, name):
    run.set_up(("test",), None)
    (run.ROOT / name).write_text("changed")
    run.set_up(("test",), None)
    assert kinds(run) == ["venv", "pip", "pip"]


def test_another_python_makes_the_environment_anew(run, monkeypatch):
    run.set_up(("test",), None)
    monkeypatch.setattr(run.sys, "version", "another")
    run.set_up(("test",), None)
    assert kinds(run) == ["venv", "pip", "venv", "pip"]


def test_a_set_up_that_was_cut_short_starts_again_from_nothing(run):
    def fail(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    call, run.call = run.call, fail
    with pytest.raises(KeyboardInterrupt):
        run.set_up(("test",), None)
    (run.VENV / "rest of the first try").touch()
    run.call = call
    run.set_up(("test",), None)
    assert kinds(run) == ["venv", "pip"]
    assert [path.name for path in run.VENV.iterdir()] == ["set-up.json"]


def test_a_failed_installation_is_said_and_tried_again(run):
    run.exit_codes = {"pip": 1}
    with pytest.raises(SystemExit, match="installation failed"):
        run.set_up(("test",), None)
    run.exit_codes = {}
    kinds(run)
    run.set_up(("test",), None)
    assert kinds(run) == ["venv", "pip"]


def test_a_foreign_environment_is_left_alone(run):
    run.VENV.mkdir()
    (run.VENV / "theirs").touch()
    with pytest.raises(SystemExit, match="not made by run"):
        run.set_up(("test",), None)
    assert (run.VENV / "theirs").exists()


def test_the_index_of_torch_is_remembered(run):
    run.set_up(("test",), "https://example.org/cuda")
    assert run.called[-1][-6:-4] == ["--extra-index-url", "https://example.org/cuda"]
    kinds(run)
    run.set_up(("test",), None)
    assert kinds(run) == []
    run.set_up(("test",), "https://example.org/other")
    assert kinds(run) == ["venv", "pip"]


def test_the_installation_obeys_the_constraints(run):
    run.set_up(("test", "check"), None)
    assert run.called[-1][-4:] == ["-c", "constraints.txt", "-e", ".[test,check]"]
    assert json.loads(run.STAMP.read_text())["torch_index"] is None


@pytest.mark.parametrize("version", [(3, 10, 13), (3, 8, 0)])
def test_an_old_python_is_told_what_to_do(run, version):
    with pytest.raises(SystemExit) as stopped:
        run.require_python(version)
    found = ".".join(map(str, version))
    assert f"Python 3.11 or newer is needed, and this is {found}" in str(stopped.value)


def test_a_python_without_pip_is_told_which_package_has_it(run, monkeypatch):
    monkeypatch.setattr(run.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SystemExit, match="python3-venv"):
        run.require_python((3, 11, 2))


@pytest.mark.parametrize(
    ("words", "parallel"),
    [
        ([], True),
        (["-k", "lora", "-x"], True),
        (["tests/data"], True),
        (["-n", "0"], False),
        (["-n4"], False),
        (["--numprocesses=3"], False),
        (["tests/test_x.py::test_y"], False),
        (["tests/test_x.py", "-x"], False),
    ],
)
def test_tests_run_in_parallel_unless_the_user_says_otherwise(run, monkeypatch, words, parallel):
    (run.ROOT / "tests" / "data").mkdir(parents=True)
    (run.ROOT / "tests" / "test_x.py").touch()
    monkeypatch.setattr(run.os, "cpu_count", lambda: 64)
    assert run.pytest_words(words) == (["-n", "4", *words] if parallel else words)


def test_a_worker_more_than_cores_since_some_tests_wait(run, monkeypatch):
    monkeypatch.setattr(run.os, "cpu_count", lambda: 2)
    assert run.pytest_words([]) == ["-n", "3"]


def test_one_core_runs_one_test_at_a_time(run, monkeypatch):
    monkeypatch.setattr(run.os, "cpu_count", lambda: 1)
    assert run.pytest_words([]) == []


def test_long_leaves_no_test_out(run, monkeypatch):
    monkeypatch.setattr(run.os, "cpu_count", lambda: 1)
    assert run.pytest_words(["--long", "-x"]) == ["-x", "-m", ""]


def test_further_words_and_exit_codes_pass_through(run, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    run.set_up(("test",), None)
    run.exit_codes = {"pytest": 5, "scumble": 3}
    assert run.main(["test", "-n0", "a::b", "-k", "x or y", "--maxfail", "1"]) == 5
    assert run.called[-1][3:] == ["-n0", "a::b", "-k", "x or y", "--maxfail", "1"]
    assert run.main(["demo", "--output", "there"]) == 3
    assert run.called[-1][1:] == ["-m", "scumble", "demo", "--output", "there"]
    assert os.environ["OMP_NUM_THREADS"] == "7"


@pytest.mark.parametrize("verb", ["demo", "test"])
def test_the_built_in_model_gets_one_thread(run, monkeypatch, verb):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("OMP_NUM_THREADS")
    run.main([verb])
    assert os.environ["OMP_NUM_THREADS"] == "1"


def test_every_check_runs_even_if_one_fails(run, capsys):
    run.set_up(("test", "check"), None)
    kinds(run)
    run.exit_codes = {"format": 1, "mypy": 2}
    assert run.main(["check"]) == 2
    assert run.called == list(run.CHECKS.values())
    assert "failed: ruff format, mypy" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["chekc"], ["check", "src"], ["setup", "-x"]])
def test_words_that_mean_nothing_are_refused(run, words):
    with pytest.raises(SystemExit) as stopped:
        run.main(words)
    assert stopped.value.code == 2
    assert run.called == []


def test_the_help_explains_every_verb(run):
    shown = subprocess.run([sys.executable, str(RUN_PY), "--help"], capture_output=True, text=True)
    assert shown.returncode == 0
    for text in (*run.VERBS, *run.VERBS.values(), "--torch-index", "Windows", ".venv"):
        assert text in shown.stdout
    alone = subprocess.run([sys.executable, str(RUN_PY)], capture_output=True, text=True)
    assert (alone.returncode, alone.stdout) == (2, shown.stdout)


@pytest.mark.skipif(os.name == "nt", reason="sends a signal to a process group")
def test_a_program_that_saves_its_work_at_ctrl_c_is_waited_for(tmp_path):
    program = "import time, signal, sys\n"
    program += "signal.signal(signal.SIGINT, lambda *_: (time.sleep(1), print('saved'), exit(3)))\n"
    program += "print('ready', flush=True); time.sleep(60)"
    script = f"import sys; sys.path.insert(0, {str(RUN_PY.parent)!r}); import run\n"
    script += f"run.call([sys.executable, '-c', {program!r}])"
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=-1, stderr=-1, text=True, start_new_session=True
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, 2)
    output, error = process.communicate(timeout=30)
    assert output == "saved\n"
    assert "KeyboardInterrupt" in error
