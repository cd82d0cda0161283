"""The Train tab's check: the doctor in a process of its own, and its answer in the page's words."""

import subprocess
from pathlib import Path

import pytest

from scumble.config import TrainConfig
from scumble.ui import check_panel
from scumble.ui.check_panel import check_html, examined, failed
from scumble.ui.folders import Folders


def config(folder: Path) -> TrainConfig:
    return TrainConfig(
        pretrained_model_name_or_path="scumble-tiny",
        train_data_dir=str(folder / "pictures"),
        output_dir=str(folder / "runs" / "fox"),
        alpha=1.0,
    )


def test_the_doctor_is_asked_in_a_process_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    answer = examined(config(tmp_path))
    assert answer["verdict"] == "danger"
    (finding,) = answer["findings"]
    assert finding["topic"] == "start"
    assert "pictures" in finding["text"]
    shown = check_html(answer, Folders(tmp_path))
    assert "Do not start it yet." in shown
    assert str(tmp_path) not in shown, "a visitor need not know where things are"
    assert not (tmp_path / "runs").exists()


def test_findings_are_text_in_the_words_of_the_form(tmp_path: Path) -> None:
    finding = {"level": "note", "topic": "steps", "text": "<b>", "hint": "Raise --max_train_steps."}
    shown = check_html({"verdict": "note", "findings": [finding, finding]}, Folders(tmp_path))
    assert "&lt;b&gt; <em>Raise “Steps”.</em>" in shown
    assert shown.count("<td>steps</td>") == 1
    assert "Do not start it yet." in check_html(failed("no"), Folders(tmp_path))


def test_a_check_that_gives_no_answer_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = subprocess.CompletedProcess([], -9, stdout="", stderr="Traceback ...\nkilled\n")
    monkeypatch.setattr(check_panel.subprocess, "run", lambda *_, **__: killed)
    assert examined(config(tmp_path))["findings"][0]["text"] == "killed"
