"""Whatever the documents tell a reader to run is run here, on the built-in base model.

The bash and python blocks of a document run in their order, in a folder that starts as a copy of
`examples` and `configs`. A block with `<!-- not run: reason -->` on the line above is left out.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from scumble.config import METHOD_GROUPS, GenerateConfig
from scumble.config.files import read_config_file

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
LONG_PAGES = {
    "docs/how-to/check_before_training.md",
    "docs/how-to/choose_an_adapter_type.md",
    "docs/how-to/fine_tune_the_training.md",
    "docs/how-to/fit_a_small_card.md",
    "docs/how-to/multi_gpu.md",
    "docs/how-to/reproduce_a_run.md",
    "docs/how-to/teach_a_subject.md",
    "docs/how-to/teach_a_word.md",
    "docs/how-to/watch_a_run.md",
    "docs/how-to/work_with_adapter_files.md",
}
OTHER_SPELLINGS = {"sh", "shell", "console", "zsh", "py", "python3", "pycon"}

FENCE = re.compile(
    r"^(?P<indent>[ ]*)```(?P<language>[\w-]*)[^\n]*\n(?P<text>.*?)^(?P=indent)```[ ]*$",
    re.MULTILINE | re.DOTALL,
)
NOT_RUN = re.compile(r"<!-- not run: (.+?) -->\s*$")
RUN_PY = re.compile(r"^[ ]*python3? run\.py\b[ ]*(\S*).*\n?", re.MULTILINE)


class Block(NamedTuple):
    """A fenced block of a page; `not_run` is the reason for leaving it out."""

    line: int
    language: str
    text: str
    not_run: str


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text("utf-8")
    for match in FENCE.finditer(text):
        before = text[: match.start()]
        reason = NOT_RUN.search(before)
        yield Block(
            before.count("\n") + 1,
            match["language"],
            textwrap.dedent(match["text"]),
            reason[1] if reason else "",
        )


def all_blocks() -> Iterator[tuple[str, Block]]:
    for page in PAGES:
        for block in blocks(page):
            yield f"{page_name(page)}:{block.line}", block


def copy_examples(folder: Path) -> None:
    for name in ("examples", "configs"):
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__")
            )


def command_for(block: Block) -> list[str]:
    if block.language == "python":
        return [sys.executable, "-c", block.text]
    for verb in RUN_PY.findall(block.text):
        assert verb in run_py_verbs(), f"run.py has no verb '{verb}'"
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash here")
    return [bash, "-euo", "pipefail", "-c", RUN_PY.sub("", block.text)]


def run_py_verbs() -> dict[str, str]:
    spec = importlib.util.spec_from_file_location("run_py", ROOT / "run.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.VERBS


def run_page(page: Path, folder: Path) -> None:
    programs = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "XDG_CACHE_HOME": str(folder / ".cache"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    for block in blocks(page):
        if block.not_run or block.language not in ("bash", "python"):
            continue
        run = subprocess.run(
            command_for(block),
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        output = (run.stdout + run.stderr)[-4000:]
        assert run.returncode == 0, f"{page.name}:{block.line}\n{block.text}\n{output}"


def as_case(page: Path) -> Any:
    """A page that trains several times is left to the long tests."""
    return pytest.param(page, marks=pytest.mark.long if page_name(page) in LONG_PAGES else ())


@pytest.mark.slow
@pytest.mark.parametrize("page", map(as_case, PAGES), ids=map(page_name, PAGES))
def test_every_block_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    copy_examples(tmp_path)
    run_page(page, tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_blocks_are_left_out_for_a_reason(page: Path) -> None:
    reasons = [f"{page.name}:{b.line}: {b.not_run}" for b in blocks(page) if b.not_run]
    if reasons:
        pytest.skip("not run: " + "; ".join(reasons))


@pytest.mark.parametrize(
    ("name", "block"),
    [pytest.param(name, block, id=name) for name, block in all_blocks()],
)
def test_a_block_has_a_language_that_is_looked_at(name: str, block: Block, tmp_path: Path) -> None:
    assert block.language not in OTHER_SPELLINGS, f"{name}: write bash or python"
    if block.language == "toml" and not block.not_run:
        file = tmp_path / "block.toml"
        file.write_text(block.text, "utf-8")
        groups = {GenerateConfig, *(group for groups in METHOD_GROUPS.values() for group in groups)}
        read_config_file(file, {item.name for group in groups for item in fields(group)})


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_inside_the_project_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text("utf-8"))):
        if not re.match(r"[a-z]+:|#", target):
            path = page.parent / target.partition("#")[0]
            assert path.exists(), f"{page.name} points to {target}"


def page_of(folder: Path, text: str) -> Path:
    page = folder / "page.md"
    page.write_text(text, "utf-8")
    return page


def test_blocks_run_in_order_in_one_folder(tmp_path: Path) -> None:
    text = """
1. First

    ```bash
    python3 run.py demo   # only looked up
    scumble --version > said
    ```

2. Then

```python
assert open("said").read().startswith("scumble ")
```

<!-- not run: it would fail -->
```bash
exit 3
```
"""
    page = page_of(tmp_path, text)
    assert [b.language for b in blocks(page)] == ["bash", "python", "bash"]
    assert [b.not_run for b in blocks(page)] == ["", "", "it would fail"]
    run_page(page, tmp_path)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("bash\nfalse | cat", "page.md:1"),
        ("bash\npython3 run.py trian", "no verb 'trian'"),
        ("bash\nscumble trian", "did you mean 'train'"),
        ("python\nimport scumble\nscumble.TrainConfig(rank=0)", "TypeError"),
    ],
)
def test_a_block_that_fails_is_noticed(tmp_path: Path, block: str, message: str) -> None:
    with pytest.raises(AssertionError, match=f"(?i){re.escape(message)}"):
        run_page(page_of(tmp_path, f"```{block}\n```\n"), tmp_path)
