"""The tiny world: its drawings, words, rules and checkpoints."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from tiny_model import denoiser as denoiser_module
from tiny_model.captions_tokenizer import GRAMMAR, PLACEHOLDERS, build_tokenizer, save_tokenizer
from tiny_model.latent_pools import Pool, pool_weights
from tiny_model.lesson_scores import (
    class_pictures,
    style_reference,
    style_scenes,
    subject_score,
)
from tiny_model.outlines import SHAPES
from tiny_model.scenes import PALETTE, caption, held_out_scenes, is_held_out, render, sample_scene
from tiny_model.scoring import read_picture, reference_fidelity
from tiny_model.teaching_sets import STYLES, SUBJECTS, subject_pairs, write_sets
from tiny_model.text_encoder import build_text_encoder
from transformers import CLIPTokenizer

ROOT = Path(__file__).resolve().parents[2]


def test_training_scenes_never_show_a_held_out_combination() -> None:
    rng = random.Random(0)
    scenes = [sample_scene(rng) for _ in range(500)]
    assert not any(is_held_out(s.shape, s.colour, s.background) for s in scenes)
    assert all(is_held_out(s.shape, s.colour, s.background) for s in held_out_scenes(96))


def test_held_out_scenes_show_every_shape_equally() -> None:
    counts = [sum(s.shape == shape for s in held_out_scenes(95)) for shape in SHAPES]
    assert counts == [19] * len(SHAPES)


def test_a_caption_names_what_is_drawn() -> None:
    for scene in held_out_scenes(40):
        words = caption(scene)
        assert scene.shape in words
        assert f"{scene.background} background" in words
        reading = read_picture(render(scene))
        assert (reading.shape, reading.colour) == (scene.shape, scene.colour)


def test_real_pictures_score_full_marks_and_shuffled_ones_near_chance() -> None:
    rows = reference_fidelity(held_out_scenes(96))
    assert min(rows["real"][name] for name in ("background", "colour", "shape", "place")) == 1.0
    assert max(rows["chance"][name] for name in ("background", "colour", "shape")) < 0.35


def test_a_bar_is_no_shape() -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[30:36, 10:54] = (214, 40, 46)
    reading = read_picture(Image.fromarray(pixels))
    assert reading.shape is None
    assert reading.colour == "red"


@pytest.mark.parametrize("name", sorted(STYLES))
def test_a_style_obeys_its_rules_and_plain_pictures_do_not(name: str) -> None:
    rows = style_reference(name, style_scenes(20))
    assert rows["real"]["style"] == 1.0
    assert rows["chance"]["style"] == 0.0


@pytest.mark.parametrize("name", sorted(SUBJECTS))
def test_a_subject_is_told_from_its_class(name: str) -> None:
    real = [picture for picture, _, _ in subject_pairs(name, 8, 77)]
    assert subject_score(name, real) > 0.9
    assert abs(subject_score(name, class_pictures(32, seed=78))) < 0.2


def test_shipped_teaching_sets_are_what_the_code_draws(tmp_path: Path) -> None:
    write_sets(tmp_path)
    for drawn in sorted(tmp_path.rglob("*.*")):
        shipped = ROOT / "examples" / "data" / drawn.relative_to(tmp_path)
        if drawn.suffix == ".png":
            assert np.array_equal(np.asarray(Image.open(drawn)), np.asarray(Image.open(shipped)))
        else:
            assert drawn.read_text(encoding="utf-8") == shipped.read_text(encoding="utf-8")


def test_every_known_word_is_one_token(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    for word in (*GRAMMAR.split(), *PALETTE, *SHAPES, *PLACEHOLDERS):
        assert len(tokenizer(word).input_ids) == 3, word
    save_tokenizer(tmp_path)
    strange = "an Ünknown ohwx word, 17!"
    expected = tokenizer(strange).input_ids
    assert CLIPTokenizer.from_pretrained(tmp_path)(strange).input_ids == expected
    (tmp_path / "tokenizer.json").unlink()
    assert CLIPTokenizer.from_pretrained(tmp_path)(strange).input_ids == expected


def test_the_curriculum_begins_with_centred_scenes() -> None:
    assert pool_weights(0.0) == {"centred": 1.0}
    assert "creatures" in pool_weights(0.99)


def tiny_training() -> denoiser_module.DenoiserTraining:
    torch.manual_seed(0)
    rng = random.Random(0)
    pools = {}
    for name, stage in (("centred", "centred"), ("placed", "placed"), ("creatures", "full")):
        scenes = [sample_scene(rng, stage) for _ in range(4)]
        pools[name] = Pool(scenes, torch.randn(4, 4, 16, 16))
    tokenizer = build_tokenizer()
    recipe = denoiser_module.DenoiserRecipe(steps=4, batch=2, checkpoint_steps=2, score_steps=9)
    return denoiser_module.DenoiserTraining(
        recipe,
        denoiser_module.build_denoiser(),
        build_text_encoder(tokenizer),
        tokenizer,
        pools,
        torch.device("cpu"),
    )


def test_a_killed_training_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    unbroken = denoiser_module.train_denoiser(tmp_path / "a", tiny_training(), lambda _: "")
    killed = tiny_training()
    for _ in range(2):
        killed.take_step()
    denoiser_module.save_atomically(killed.state(), tmp_path / "b" / "denoiser.pt")
    resumed = denoiser_module.train_denoiser(tmp_path / "b", tiny_training(), lambda _: "")
    for name, value in unbroken.denoiser.state_dict().items():
        torch.testing.assert_close(resumed.denoiser.state_dict()[name], value)
