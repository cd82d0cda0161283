"""N processes with batches of b teach what one process teaches with batches of N x b."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from ranks import Arguments, Ended, Rank, free_port, run, wired
from safetensors.torch import load_file

from scumble.data.buckets import BatchPlan
from scumble.training.loop import own_positions

pytestmark = pytest.mark.multiprocess

ALL_AT_ONCE = (
    *("--gradient_accumulation_steps", 2, "--aspect_ratio_buckets", "--random_flip"),
    *("--caption_dropout", 0.3, "--snr_gamma", 5, "--masked_loss", "--noise_offset", 0.1),
    *("--rank_dropout", 0.2, "--resolution", 64, "--validation_share", 0.3),
    *("--validation_steps", 2, "--lora_plus_ratio", 4, "--scale_lr", "--learning_rate", "1e-4"),
)
SUBJECT = (
    *("--instance_prompt", "a photo of sks circle", "--resolution", 64),
    *("--with_prior_preservation", "--class_prompt", "a circle", "--num_class_images", 2),
    *("--sample_batch_size", 1, "--train_text_encoder"),
)
WORD = ("--placeholder_token", "<thing>", "--initializer_token", "circle", "--resolution", 64)
TAUGHT_A_WORD = (*WORD, "--learnable_property", "object", "--num_vectors", 2)
STOPPED_EARLY = (
    *("--validation_share", 0.3, "--validation_steps", 1, "--early_stop", 1),
    *("--learning_rate", 1),
)


def ranks(
    lines: Sequence[Sequence[str]], folder: Path, per_machine: int | None = None
) -> list[Rank]:
    """Processes of one run; those of each machine have a cache of their own."""
    found = []
    wires = wired(len(lines), free_port(), per_machine)
    for number, (words, wire) in enumerate(zip(lines, wires, strict=True)):
        machine = folder / f"machine-{number // (per_machine or len(lines))}"
        machine.mkdir(parents=True, exist_ok=True)
        own = wire | {"XDG_CACHE_HOME": str(machine)}
        found.append(Rank(words, folder / f"rank-{number}.txt", own))
    return found


@pytest.mark.long
def test_what_two_processes_taught_is_reproduced_by_two(
    arguments: Arguments, tmp_path: Path
) -> None:
    require_done(run(ranks([arguments("two", "--resolution", 64)] * 2, tmp_path / "first")))
    words = ["reproduce", str(tmp_path / "two"), "--output_dir", str(tmp_path / "again")]
    ended = run(ranks([words] * 2, tmp_path / "second"))
    require_done(ended)
    assert "identical: the files are the same" in ended[0].output


def alone(words: Sequence[str], folder: Path) -> Rank:
    folder.mkdir()
    return Rank(words, folder / "alone.txt", {"XDG_CACHE_HOME": str(folder)})


def require_done(ended: Sequence[Ended]) -> None:
    assert [e.code for e in ended] == [0] * len(ended), "\n".join(e.output for e in ended)


def losses(folder: Path) -> list[float]:
    entries = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [entry.get("loss", entry.get("held_out_loss")) for entry in entries]


def require_equal(one: Path, other: Path) -> None:
    assert losses(other) == pytest.approx(losses(one), rel=2e-5)
    files = [path.relative_to(one) for path in one.rglob("*.safetensors") if path.is_file()]
    files = [file for file in files if not file.parts[0].startswith(("checkpoint", "best"))]
    assert files
    for file in files:
        expected, found = load_file(one / file), load_file(other / file)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            # Where a gradient is next to nothing, Adam makes a step of its rounding.
            size, gap = float(tensor.norm()), float((found[name] - tensor).norm())
            assert gap <= 5e-4 * size, (file, name, gap / size)


@pytest.mark.slow
def test_three_processes_teach_what_one_does(arguments: Arguments, tmp_path: Path) -> None:
    """Rests of buckets leave processes without a sample; nothing is encoded twice."""
    for picture in list((tmp_path / "pictures").glob("*.png")):
        picture.with_suffix(".mask.png").write_bytes(picture.read_bytes())
    several = arguments("several", "--train_batch_size", 1, *ALL_AT_ONCE)
    single = arguments("single", "--train_batch_size", 3, *ALL_AT_ONCE)
    one, *three = run(
        [alone(single, tmp_path / "alone"), *ranks([several] * 3, tmp_path / "three")]
    )
    require_done([one, *three])
    require_equal(tmp_path / "single", tmp_path / "several")
    for what in ("encode_pixels", "encode_prompts"):
        counts = [ended.counts[what] for ended in three]
        assert sum(counts) == one.counts[what] > 0, what
        assert min(counts) > 0, "the work is not shared out"
    assert [ended.output for ended in three[1:]] == ["", ""]


@pytest.mark.slow
@pytest.mark.long
def test_two_machines_that_share_no_disk(arguments: Arguments, tmp_path: Path) -> None:
    """Each has folders of its own; class pictures are drawn once and are there on both."""
    lines = [
        arguments(
            *(f"out-{number}", "--train_batch_size", 1, *SUBJECT, "--no_cache_latents"),
            *("--class_data_dir", tmp_path / f"class-{number}"),
            method="dreambooth",
        )
        for number in range(2)
    ]
    single = arguments(
        *("single", "--train_batch_size", 2, *SUBJECT),
        *("--class_data_dir", tmp_path / "class"),
        method="dreambooth",
    )
    one, *two = run([alone(single, tmp_path / "alone"), *ranks(lines, tmp_path / "two", 1)])
    require_done([one, *two])
    require_equal(tmp_path / "single", tmp_path / "out-0")
    assert [ended.counts["draw_together"] for ended in two] == [1, 1]
    for number in range(2):
        name = f"drawn_{number:05d}.png"
        drawn = {
            (tmp_path / folder / name).read_bytes() for folder in ("class", "class-0", "class-1")
        }
        assert len(drawn) == 1, "the picture is not that of one process"
    assert sum(ended.counts["encode_pixels"] for ended in two) == one.counts["encode_pixels"]
    assert not (tmp_path / "out-1").exists(), "only the main process writes"


@pytest.mark.long
@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("dreambooth", (*SUBJECT[:7], "--prior_from", "base")),
        ("textual_inversion", TAUGHT_A_WORD),
        ("pivotal_tuning", (*TAUGHT_A_WORD, "--pivot", 0.5)),
        ("full", ("--resolution", 64, "--learning_rate", "1e-5")),
        ("text_to_image", ("--resolution", 64, "--adapter_init", "pissa", "--ema_decay", 0.9)),
        ("text_to_image", ("--resolution", 64, "--adapter_type", "dora", *STOPPED_EARLY)),
    ],
)
def test_every_method_teaches_the_same(
    method: str, words: Sequence[object], arguments: Arguments, tmp_path: Path
) -> None:
    several = arguments("several", "--train_batch_size", 2, *words, method=method)
    single = arguments("single", "--train_batch_size", 4, *words, method=method)
    ended = run([alone(single, tmp_path / "alone"), *ranks([several] * 2, tmp_path / "two")])
    require_done(ended)
    require_equal(tmp_path / "single", tmp_path / "several")


@pytest.mark.parametrize("seed", range(20))
def test_no_sample_is_computed_twice_or_lost(seed: int) -> None:
    draw = random.Random(seed)
    buckets = [(64, 64 * draw.randint(1, 3)) for _ in range(draw.randint(1, 40))]
    count, per_process = draw.randint(1, 9), draw.randint(1, 4)
    plan = BatchPlan(buckets, count * per_process, draw.randint(1, 3), seed)
    seen: list[int] = []
    for index in range(plan.steps_per_epoch):
        step = plan.step(index)
        parts = [list(own_positions(step, rank, count)) for rank in range(count)]
        positions = sorted(p for part in parts for positions in part for p in positions)
        assert positions == list(range(len(step.examples)))
        sizes = [sum(map(len, part)) for part in parts]
        assert max(sizes) <= per_process * len(step.micro_batches)
        seen += [step.examples[position] for position in positions]
    assert sorted(seen) == list(range(len(buckets))), "an epoch is every picture once"
