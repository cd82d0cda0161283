"""New words: rows alone learn, as a dense table would, and stay where a pivot leaves them."""

from pathlib import Path
from typing import Any

import pytest
import torch

import scumble
from scumble.errors import UserError
from scumble.formats import read_adapter
from scumble.training import runtime
from scumble.training.loop import train_steps
from scumble.training.methods import METHODS
from scumble.training.opening import open_workshop
from scumble.training.optimizers import Update
from scumble.training.runtime import prepare_runtime
from scumble.training.sitting import Sitting
from scumble.training.words import table_norms, trigger_phrase

WORD = {
    "placeholder_token": "<blob>",
    "initializer_token": "circle",
    "num_vectors": 2,
    "learnable_property": "object",
}
STEPS = 5


def begin(config: scumble.TrainConfig) -> tuple[Any, list[Any]]:
    workshop = open_workshop(config, prepare_runtime(config))
    return workshop, METHODS[config.method](workshop)


def update_of(workshop: Any, phase: Any) -> Update:
    runtime = workshop.runtime
    return Update(phase.groups, workshop.config, STEPS, 2, runtime.dtype, runtime.device)


def test_rows_learn_as_a_dense_table_whose_other_rows_are_restored(make_config: Any) -> None:
    """The usual way: train the whole table, then put every known row back. Ours: the rows alone."""
    options = WORD | {"method": "textual_inversion", "row_norm_pull": 0.0, "learning_rate": 5e-3}
    options |= {"max_grad_norm": 0.0}  # the length of the dense gradient counts known words too
    config = make_config(**options, max_train_steps=STEPS)
    workshop, (phase,) = begin(config)
    (rows,) = phase.parameters()
    start = rows.detach().clone()
    phase.begin([phase])
    for _ in train_steps(phase, update_of(workshop, phase), workshop.runtime, 0):
        pass

    other, (twin,) = begin(config)
    encoder = other.components["text_encoder"]
    table = encoder.get_input_embeddings().base
    dense = torch.nn.Embedding.from_pretrained(torch.cat([table.weight, start]), freeze=False)
    encoder.set_input_embeddings(dense)
    known = table.weight.detach().clone()
    optimizer = torch.optim.AdamW(
        dense.parameters(), lr=5e-3, weight_decay=config.adam_weight_decay
    )
    for index in range(STEPS):
        plan = twin.plan.step(index)
        (loss,) = twin.losses.values()
        (loss(loss.samples(plan, range(2))).sum() / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            dense.weight[: len(known)] = known
    assert not torch.equal(rows, start)
    assert (rows - dense.weight[len(known) :]).abs().max() < 1e-6


def test_the_optimizer_knows_the_rows_alone(make_config: Any, tmp_path: Path) -> None:
    scumble.train(make_config(**WORD, method="textual_inversion"))
    state = tmp_path / "out" / "checkpoint-4" / "training_state.pt"
    assert state.stat().st_size < 20_000


def test_rows_start_from_the_word_and_differ(make_config: Any) -> None:
    workshop, (phase,) = begin(make_config(**WORD, method="textual_inversion"))
    (rows,) = phase.parameters()
    table = workshop.components["text_encoder"].get_input_embeddings().base.weight
    (word,) = workshop.components["tokenizer"].encode("circle", add_special_tokens=False)
    assert torch.equal(rows[0], table[word])
    assert 0 < (rows[1] - table[word]).norm() < table[word].norm()


def test_the_pull_draws_rows_to_the_tables_own_length(make_config: Any) -> None:
    lengths = {}
    for pull in (0.0, 1e4):
        options = WORD | {"method": "textual_inversion", "row_norm_pull": pull}
        config = make_config(**options, max_train_steps=STEPS, learning_rate=1e-2)
        workshop, (phase,) = begin(config)
        (rows,) = phase.parameters()
        with torch.no_grad():
            rows.mul_(3)
        phase.begin([phase])
        for _ in train_steps(phase, update_of(workshop, phase), workshop.runtime, 0):
            pass
        lengths[pull] = rows.norm(dim=-1)
        norm = table_norms(workshop)["text_encoder"]
    torch.testing.assert_close(lengths[1e4], torch.full((2,), norm), rtol=1e-4, atol=0)
    assert (lengths[0.0] > 2 * norm).all()


def rows_at_the_pivot_and_at_the_end(
    config: scumble.TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> tuple[torch.Tensor, torch.Tensor]:
    """Train, and catch the rows when the second phase begins."""
    caught = []
    train_phase = Sitting._train_phase

    def catching(self: Sitting, phase: Any, start: int, stop: Any) -> None:
        (rows,) = self.phases[0].parameters()
        caught.append(rows.detach().clone())
        train_phase(self, phase, start, stop)

    monkeypatch.setattr(Sitting, "_train_phase", catching)
    result = scumble.train(config)
    names = scumble.families.FAMILIES["stable_diffusion"].key_names
    last = read_adapter(result.adapter, names).tokens["<blob>"].vectors["text_encoder"]
    return caught[1], last


@pytest.mark.parametrize(
    ("precision", "ema"),
    [
        ("no", None),
        ("bf16", 0.9),
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in (("no", 0.9), ("bf16", None), ("fp16", None), ("fp16", 0.9))
        ),
    ],
)
def test_behind_the_pivot_rows_stay_bit_for_bit(
    make_config: Any, monkeypatch: Any, precision: str, ema: float | None
) -> None:
    if precision == "fp16":  # on a processor too, where users are given fp32 instead
        monkeypatch.setattr(runtime, "weight_dtype", lambda *_: (torch.float16, ""))
    config = make_config(**WORD, method="pivotal_tuning", mixed_precision=precision, ema_decay=ema)
    before, after = rows_at_the_pivot_and_at_the_end(config, monkeypatch)
    assert torch.equal(before, after)
    assert after.dtype == torch.float32


def test_a_small_rate_lets_rows_go_on(make_config: Any, monkeypatch: Any) -> None:
    config = make_config(**WORD, method="pivotal_tuning", row_learning_rate_after=1e-4)
    before, after = rows_at_the_pivot_and_at_the_end(config, monkeypatch)
    assert 0 < (after - before).abs().max() < 1e-3


def test_the_pivot_stands_where_it_is_put(make_config: Any) -> None:
    _, phases = begin(make_config(**WORD, method="pivotal_tuning", max_train_steps=8, pivot=0.25))
    assert [(phase.first_step, phase.max_steps) for phase in phases] == [(0, 2), (2, 6)]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"placeholder_token": "circle"}, "knows 'circle' already"),
        ({"placeholder_token": "<my blob>"}, "is not one word"),
        ({"initializer_token": "purple elephant"}, "is not one token"),
        ({"initializer_token": ""}, "is not one token"),
        ({"num_vectors": 20}, "--num_vectors 20 leaves no room"),
        ({"learnable_property": None}, "6 captions without <blob>: 0.png, 1.png"),
        ({"method": "pivotal_tuning", "max_train_steps": 1}, "--pivot 0.5 leaves no step"),
        (
            {"method": "pivotal_tuning", "lr_scheduler": "linear", "lr_warmup_steps": 2},
            "--lr_warmup_steps 2 would outlast the 2 steps of 'word'",
        ),
    ],
)
def test_a_word_that_cannot_be_taught_is_one_clear_error(
    make_config: Any, tmp_path: Path, changes: dict[str, Any], text: str
) -> None:
    config = make_config(**({**WORD, "method": "textual_inversion"} | changes))
    with pytest.raises(UserError, match=text):
        scumble.train(config)
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_own_captions_are_used_where_they_have_the_word(make_config: Any, pictures: Path) -> None:
    for path in pictures.glob("*.txt"):
        path.write_text(f"a <blob> of {path.stem}")
    options = WORD | {"learnable_property": None}
    workshop, _ = begin(make_config(**options, method="textual_inversion"))
    assert workshop.gathered.train.examples[0].captions == ("a <blob> of 0",)


def test_ready_captions_all_have_the_word(make_config: Any) -> None:
    options = WORD | {"learnable_property": "style"}
    workshop, _ = begin(make_config(**options, method="textual_inversion"))
    captions = workshop.gathered.train.examples[0].captions
    assert len(captions) > 10
    assert all("<blob>" in caption for caption in captions)


def test_words_for_people(make_config: Any, pictures: Path) -> None:
    workshop, _ = begin(make_config(**WORD, method="textual_inversion"))
    assert trigger_phrase(workshop) in workshop.gathered.train.captions()
    own = make_config(**(WORD | {"learnable_property": None}), method="textual_inversion")
    for path in pictures.glob("*.txt"):
        path.write_text(f"a <blob> of {path.stem}")
    assert trigger_phrase(begin(own)[0]) == "<blob>"


def test_a_caption_is_only_called_cut_when_it_is(make_config: Any, capsys: Any) -> None:
    options = WORD | {"num_vectors": 8}
    scumble.train(make_config(**options, method="textual_inversion", max_train_steps=1))
    assert "caption cut" not in capsys.readouterr().out


def test_a_sample_prompt_without_the_word_is_said(make_config: Any, capsys: Any) -> None:
    options = {"validation_prompt": "a star", "max_train_steps": 1}
    scumble.train(make_config(**WORD, **options, method="textual_inversion"))
    assert "--validation_prompt does not contain <blob>" in capsys.readouterr().out


def test_the_pivot_stays_where_it_was(make_config: Any, tmp_path: Path) -> None:
    options = {"method": "pivotal_tuning", "checkpointing_steps": 2}
    scumble.train(make_config(**WORD, **options))
    record = (tmp_path / "out" / "run.json").read_text()
    again = {"resume_from_checkpoint": "checkpoint-2", "pivot": 0.25}
    with pytest.raises(UserError, match="phase 'word', and step 2 belongs to 'adapters' now"):
        scumble.train(make_config(**WORD, **options, **again))
    assert (tmp_path / "out" / "run.json").read_text() == record
