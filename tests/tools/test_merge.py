"""Several adapters as one: `scumble.merge_files` and `scumble merge` without a base."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import made
import numpy as np
import pytest
import torch

import scumble
from scumble.adapters.low_rank import truncated_svd
from scumble.adapters.sparsify import ties
from scumble.cli.main import run
from scumble.errors import UserError
from scumble.tools.sources import Source, parse_factors

PARTS = {"sum": (0.7, -0.5), "one": (1.0,), "three": (0.4, 1.2, -0.3)}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "merged.safetensors"


def weighted(sources: list[tuple[Any, float]], pipeline: Any) -> dict[str, torch.Tensor]:
    total: dict[str, torch.Tensor] = {}
    for adapter, strength in sources:
        for layer, delta in made.deltas(adapter, pipeline).items():
            total[layer] = total.get(layer, 0) + strength * delta
    return total


def unet_output(pipeline: Any) -> torch.Tensor:
    torch.manual_seed(1)
    size = pipeline.unet.config.sample_size
    text = torch.randn(2, 77, pipeline.unet.config.cross_attention_dim)
    with torch.no_grad():
        return pipeline.unet(torch.randn(2, 4, size, size), torch.tensor([10, 500]), text).sample


@pytest.mark.parametrize("strengths", PARTS.values(), ids=PARTS)
def test_a_merge_does_what_its_sources_do_together(
    strengths: tuple[float, ...], tiny_pipeline: Any, out: Path
) -> None:
    places = [made.PLACES, {"unet": (made.TO_K, made.CONV)}, {"text_encoder": (made.TEXT,)}]
    sources = [
        (made.weights(tiny_pipeline, seed=9 * n, rank=2 + n, places=places[n]), strength)
        for n, strength in enumerate(strengths)
    ]
    outcome = scumble.merge_files(sources, out)
    merged = made.read(outcome.path)
    got, wanted = made.deltas(merged, tiny_pipeline), weighted(sources, tiny_pipeline)
    assert got.keys() == wanted.keys()
    assert all(made.relative(got[layer], wanted[layer]) < 1e-6 for layer in wanted)
    ranks = [2 + n for n in range(len(strengths)) if made.TO_K in places[n].get("unet", ())]
    assert merged.components["unet"][made.TO_K].rank == sum(ranks)
    for number, (adapter, strength) in enumerate(sources):
        scumble.load_adapter(tiny_pipeline, adapter, name=f"{number}", strength=strength)
    together = unet_output(tiny_pipeline)
    scumble.unload_adapters(tiny_pipeline)
    plain = unet_output(tiny_pipeline)
    scumble.load_adapter(tiny_pipeline, out)
    assert made.relative(plain, together) > 1e-2
    assert made.relative(unet_output(tiny_pipeline), together) < 1e-6


def test_a_merge_draws_what_its_sources_draw_together(tiny_pipeline: Any, out: Path) -> None:
    def draw() -> np.ndarray:
        options = {"num_inference_steps": 2, "output_type": "np"}
        generator = torch.Generator().manual_seed(3)
        return tiny_pipeline("a red circle", generator=generator, **options).images[0]

    sources = [(made.weights(tiny_pipeline, seed=n), 0.5 - n) for n in range(2)]
    for number, (adapter, strength) in enumerate(sources):
        scumble.load_adapter(tiny_pipeline, adapter, name=f"{number}", strength=strength)
    together = draw()
    scumble.unload_adapters(tiny_pipeline)
    assert np.abs(draw() - together).max() > 1e-2
    scumble.merge_files(sources, out)
    scumble.load_adapter(tiny_pipeline, out)
    assert np.abs(draw() - together).max() < 1e-5


def test_strengths_can_differ_by_component_and_block(tiny_pipeline: Any, out: Path) -> None:
    first, second = (made.weights(tiny_pipeline, seed=n) for n in range(2))
    own = Source.parse("x:0.5,text_encoder=3,attn2.to_k=0")
    scumble.merge_files(
        [replace(own, adapter=first), (second, -1)],
        out,
        factors={"unet": 2, "mid_block": 0.25},
    )
    got = made.deltas(made.read(out), tiny_pipeline)
    one, two = (made.deltas(adapter, tiny_pipeline) for adapter in (first, second))
    factors = {
        f"unet.{made.TO_K}": (0, -2),
        f"unet.{made.TO_V}": (1, -2),
        f"unet.{made.CONV}": (1, -2),
        f"unet.{made.MID}": (0.125, -0.25),
        f"text_encoder.{made.TEXT}": (1.5, -1),
    }
    assert got.keys() == factors.keys()
    for layer, (a, b) in factors.items():
        assert made.relative(got[layer], a * one[layer] + b * two[layer]) < 1e-6


def test_a_pattern_that_matches_nothing_is_refused(tiny_pipeline: Any, out: Path) -> None:
    adapter = made.weights(tiny_pipeline)
    with pytest.raises(UserError, match="the pattern 'midblock' matches no layer"):
        scumble.merge_files([adapter], out, factors={"midblock": 0})
    unet_alone = made.weights(tiny_pipeline, places={"unet": (made.TO_K,)})
    scumble.merge_files([unet_alone], out, factors={"text_encoder": 0})
    assert list(made.read(out).components) == ["unet"]
    out.unlink()
    with pytest.raises(UserError, match="every strength is 0"):
        scumble.merge_files([adapter], out, factors={"*": 0})
    assert not out.exists()


@pytest.mark.parametrize(
    ("text", "path", "strength", "factors"),
    [
        ("style", "style", 1.0, {}),
        ("style:0.7", "style", 0.7, {}),
        ("a/b.safetensors:-1", "a/b.safetensors", -1.0, {}),
        (
            "style:0.7,text_encoder=0.5,mid_block=0",
            "style",
            0.7,
            {"text_encoder": 0.5, "mid_block": 0},
        ),
        ("style:unet=2", "style", 1.0, {"unet": 2.0}),
        (r"C:\runs\a", r"C:\runs\a", 1.0, {}),
        (r"C:\runs\a:0.5", r"C:\runs\a", 0.5, {}),
    ],
)
def test_a_source_is_path_strength_and_factors(
    text: str, path: str, strength: float, factors: dict[str, float]
) -> None:
    assert Source.parse(text) == Source(path, strength, factors)


def test_a_file_that_is_there_is_no_strength(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Source.parse("style:10") == Source("style", 10.0)
    Path("style:10").touch()
    assert Source.parse("style:10") == Source("style:10")
    assert Source.parse("style:10:0.5") == Source("style:10", 0.5)


def test_the_last_of_several_factors_stands_last() -> None:
    pairs = parse_factors(["attn2=1", "mid_block=2", "attn2=3"])
    assert list(pairs.items()) == [("mid_block", 2.0), ("attn2", 3.0)]


@pytest.mark.parametrize("text", ["a:1,mid_block", "a:1,mid_block=x", "a:1,=2", "a:1,unet=nan"])
def test_a_factor_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is not pattern=factor"):
        Source.parse(text)


def test_a_lower_rank_keeps_the_best_and_says_how_much(tiny_pipeline: Any, out: Path) -> None:
    sources = [(made.weights(tiny_pipeline, seed=n), 1.0) for n in range(2)]
    outcome = scumble.merge_files(sources, out, rank=3)
    got, whole = made.deltas(made.read(out), tiny_pipeline), weighted(sources, tiny_pipeline)
    for layer in outcome.layers:
        name = f"{layer.component}.{layer.module}"
        best = truncated_svd(whole[name].flatten(1), 3)
        lost = float((got[name] - whole[name]).square().sum())
        assert lost == pytest.approx(best.total_energy * (1 - best.energy(3)), rel=1e-4)
        assert layer.share == pytest.approx(best.energy(3), abs=1e-6)
        assert (layer.rank, made.read(out).components[layer.component][layer.module].rank) == (3, 3)
    least = min((x for x in outcome.layers if x.component == "unet"), key=lambda x: x.share)
    (line,) = (line for line in outcome.lines if line.startswith("unet: 4 layers of rank 3"))
    assert f"least in {least.module}: {100 * least.share:.2f} %" in line


def test_no_more_ranks_are_written_than_a_layer_has(tiny_pipeline: Any, out: Path) -> None:
    places = {"unet": (made.TO_K,)}
    sources = [(made.weights(tiny_pipeline, seed=n, rank=20, places=places), 1.0) for n in range(4)]
    scumble.merge_files(sources, out)
    weight = made.live_layer(tiny_pipeline, "unet", made.TO_K).weight
    merged = made.read(out).components["unet"][made.TO_K]
    assert merged.rank == min(weight.shape) < 80
    (got,), (wanted,) = (
        found.values()
        for found in (made.deltas(made.read(out), tiny_pipeline), weighted(sources, tiny_pipeline))
    )
    assert made.relative(got, wanted) < 1e-6


@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_other_types_become_lora_of_a_given_rank(kind: str, tiny_pipeline: Any, out: Path) -> None:
    sources = [(made.weights(tiny_pipeline, kind, rank=2), 0.5), (made.weights(tiny_pipeline), 1.0)]
    with pytest.raises(
        UserError, match=f"adapters of type {kind}, lora is no LoRA of a known rank"
    ):
        scumble.merge_files(sources, out)
    scumble.merge_files(sources, out, rank=999)
    merged = made.read(out)
    assert {e.type for modules in merged.components.values() for e in modules.values()} == {"lora"}
    assert merged.components["unet"][made.CONV].tensors["down"].shape[2:] == (3, 3)
    got, wanted = made.deltas(merged, tiny_pipeline), weighted(sources, tiny_pipeline)
    assert all(made.relative(got[layer], wanted[layer]) < 1e-5 for layer in wanted)


def test_a_flat_kernel_gets_its_edges_back_from_the_layers_name(
    tiny_pipeline: Any, out: Path
) -> None:
    source = made.weights(tiny_pipeline, "loha", rank=2, places={"unet": (made.CONV,)})
    scumble.merge_files([source], out, rank=999)
    (got,), (wanted,) = (made.deltas(x, tiny_pipeline).values() for x in (made.read(out), source))
    assert made.relative(got, wanted) < 1e-5


def test_whole_differences_stay_exact_and_are_named(tiny_pipeline: Any, out: Path) -> None:
    norms = made.weights(tiny_pipeline, "norm_difference", places={"unet": (made.NORM,)})
    whole = made.weights(tiny_pipeline, "difference", places={"unet": (made.CONV,)}, seed=3)
    lora = made.weights(tiny_pipeline)
    outcome = scumble.merge_files([(norms, 2.0), (whole, 0.5), lora, (norms, 1.0)], out, rank=64)
    unet = made.read(out).components["unet"]
    assert (unet[made.NORM].type, unet[made.CONV].type) == ("norm_difference", "difference")
    source = norms.components["unet"][made.NORM].tensors
    assert made.relative(unet[made.NORM].tensors["diff_b"], 3 * source["diff_b"]) < 1e-6
    layer = f"unet.{made.CONV}"
    wanted = weighted([(whole, 0.5), (lora, 1.0)], tiny_pipeline)[layer]
    assert made.relative(made.deltas(made.read(out), tiny_pipeline)[layer], wanted) < 1e-6
    assert f"kept as a whole difference: {layer}" in outcome.lines


@pytest.mark.parametrize("kind", ["dora", "ia3"])
def test_a_change_that_depends_on_the_base_is_refused(
    kind: str, tiny_pipeline: Any, out: Path
) -> None:
    with pytest.raises(UserError, match=f"to_k: the change of an adapter of type {kind}") as caught:
        scumble.merge_files([made.weights(tiny_pipeline, kind)], out, rank=8)
    assert "--base" in str(caught.value)
    assert not out.exists()


def test_ties_and_dare_work_on_deltas(tiny_pipeline: Any, out: Path) -> None:
    adapters = [made.weights(tiny_pipeline, seed=n) for n in range(3)]
    sources = list(zip(adapters, (1.0, 0.5, 2.0), strict=True))
    whole = [made.deltas(adapter, tiny_pipeline) for adapter in adapters]

    def merged(method: str, **options: Any) -> dict[str, torch.Tensor]:
        scumble.merge_files(sources, out, method=method, rank=999, force=True, **options)
        return made.deltas(made.read(out), tiny_pipeline)

    got = merged("ties", density=0.3)
    for layer, delta in got.items():
        wanted = ties([deltas[layer].float() for deltas in whole], (1.0, 0.5, 2.0), 0.3)
        assert made.relative(delta, wanted) < 1e-5
    first = merged("dare", density=0.4)
    total = weighted(sources, tiny_pipeline)
    assert all(made.relative(first[layer], total[layer]) > 0.1 for layer in total)
    assert all(torch.equal(first[k], v) for k, v in merged("dare", density=0.4).items())
    other = merged("dare", density=0.4, seed=1)
    assert not any(torch.equal(first[k], v) for k, v in other.items())
    exact = merged("dare", density=1.0)
    assert all(made.relative(exact[layer], total[layer]) < 1e-5 for layer in total)


def test_a_thinned_merge_is_as_wide_as_its_sources(tiny_pipeline: Any, out: Path) -> None:
    sources = [made.weights(tiny_pipeline, rank=r, seed=r) for r in (2, 3)]
    outcome = scumble.merge_files(sources, out, method="dare_ties")
    assert {layer.rank for layer in outcome.layers} == {5}
    assert all(layer.share < 1 for layer in outcome.layers)


def test_learned_words_come_along_and_may_not_clash(tiny_pipeline: Any, out: Path) -> None:
    first, second = (made.weights(tiny_pipeline, seed=n) for n in range(2))
    first = replace(first, tokens=made.word("<a>"))
    scumble.merge_files([first, replace(second, tokens=made.word("<b>", 1))], out)
    tokens = made.read(out).tokens
    assert list(tokens) == ["<a>", "<b>"]
    assert torch.equal(
        tokens["<b>"].vectors["text_encoder"], made.word("<b>", 1)["<b>"].vectors["text_encoder"]
    )
    with pytest.raises(
        UserError, match="both adapter 1 and adapter 2 bring the learned word '<a>'"
    ):
        scumble.merge_files([first, replace(second, tokens=made.word("<a>", 1))], out, force=True)


def test_a_merge_says_what_it_was_made_of(tiny_pipeline: Any, tmp_path: Path, out: Path) -> None:
    words = {"trigger_phrase": "in style of x", "learning_rate": "1e-4"}
    first = scumble.write_adapter(
        made.weights(tiny_pipeline, **words), tmp_path / "one.safetensors"
    )
    second = made.weights(tiny_pipeline, seed=1, trigger_phrase="a <b> cat")
    scumble.merge_files([Source(first, 0.5, {"unet": 2.0}), second], out)
    metadata = made.read(out).metadata
    assert metadata["base_model"] == made.BASE
    assert metadata["trigger_phrase"] == "in style of x, a <b> cat"
    assert "learning_rate" not in metadata
    assert json.loads(metadata["merged_from"]) == [
        {"name": "one.safetensors", "strength": 0.5, "factors": [{"unet": 2.0}]},
        {"name": "adapter 2", "strength": 1.0},
    ]
    before = out.read_bytes()
    scumble.merge_files([Source(first, 0.5, {"unet": 2.0}), second], out, force=True)
    assert out.read_bytes() == before


def test_adapters_of_different_bases_are_refused_unless_allowed(
    tiny_pipeline: Any, out: Path
) -> None:
    sources = [made.weights(tiny_pipeline), made.weights(tiny_pipeline, base_model="other/base")]
    with pytest.raises(
        UserError, match="adapter 1 was trained on scumble-tiny, adapter 2 on other"
    ):
        scumble.merge_files(sources, out)
    scumble.merge_files(sources, out, allow_other_base=True)
    assert "base_model" not in made.read(out).metadata
    same = {"base_fingerprint": "0123456789abcdef"}
    sources = [made.weights(tiny_pipeline, base_model=name, **same) for name in ("a/b", "copy")]
    scumble.merge_files(sources, out, force=True)
    assert made.read(out).metadata["base_fingerprint"] == same["base_fingerprint"]


def test_shapes_that_differ_are_refused_by_layer(tiny_pipeline: Any, out: Path) -> None:
    first = made.weights(tiny_pipeline, places={"unet": (made.TO_K,)})
    other = made.entry(torch.nn.Linear(5, 7))
    second = replace(first, components={"unet": {made.TO_K: other}})
    with pytest.raises(UserError, match=rf"unet\.{made.TO_K}: changes of one shape"):
        scumble.merge_files([first, second], out)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"method": "svd"}, "no way to merge called 'svd'"),
        ({"method": "ties", "density": 0.0}, "density is 0"),
        ({"density": 0.5}, "--density has no meaning for --method sum"),
        ({"seed": 0}, "--seed has no meaning for --method sum"),
        ({"method": "ties", "seed": 0}, "--seed has no meaning for --method ties"),
        ({"base": made.BASE, "rank": 4}, "--rank is for a merged adapter, not for a base"),
        ({"base": made.BASE, "format": "peft"}, "--format is for a merged adapter"),
        ({"base": made.BASE, "allow_other_base": True}, "--allow_other_base is for a merged"),
        ({"dtype": "int8"}, "unknown number format 'int8'"),
        ({"format": "nothing"}, "unknown adapter format 'nothing'"),
    ],
)
def test_bad_options_are_refused(
    options: dict[str, Any], message: str, tiny_pipeline: Any, out: Path
) -> None:
    with pytest.raises(UserError, match=message):
        scumble.merge_files([made.weights(tiny_pipeline)], out, **options)
    assert not out.exists()


def test_half_precision_is_rounded_once_and_may_not_overflow(tiny_pipeline: Any, out: Path) -> None:
    source = made.weights(tiny_pipeline)
    scumble.merge_files([source], tmp := out.with_name("wide.safetensors"))
    scumble.merge_files([source], out, dtype="fp16")
    wide, half = (made.read(path).components["unet"][made.TO_K] for path in (tmp, out))
    assert torch.equal(half.tensors["up"], wide.tensors["up"].half())
    with pytest.raises(UserError, match="numbers too large for fp16, in 'unet"):
        scumble.merge_files([(source, 1e7)], out, dtype="fp16", force=True)


def command(capsys: Any) -> Callable[..., tuple[int, str, str]]:
    def run_verb(*words: object) -> tuple[int, str, str]:
        code = run(["merge", *map(str, words)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_verb


def test_the_command_merges_and_does_not_overwrite(
    tiny_pipeline: Any, tmp_path: Path, out: Path, capsys: Any
) -> None:
    sources = [made.weights(tiny_pipeline, seed=n) for n in range(2)]
    paths = [
        scumble.write_adapter(adapter, tmp_path / f"{n}.safetensors")
        for n, adapter in enumerate(sources)
    ]
    merge = command(capsys)
    words = (f"{paths[0]}:0.5", f"{paths[1]}:-1,unet=2", "--output", out)
    code, said, _ = merge(*words, "--block_weights", "mid_block=0", "--format", "kohya")
    assert code == 0
    assert said.splitlines()[-1] == str(out)
    got = made.deltas(made.read(out), tiny_pipeline)
    one, two = (made.deltas(adapter, tiny_pipeline) for adapter in sources)
    assert f"unet.{made.MID}" not in got
    for layer, delta in got.items():
        wanted = 0.5 * one[layer] - (2 if layer.startswith("unet") else 1) * two[layer]
        assert made.relative(delta, wanted) < 1e-6
    before = out.read_bytes()
    code, _, error = merge(paths[0], tmp_path / "missing", "--output", out)
    assert code == 1
    assert "exists already" in error
    assert out.read_bytes() == before
    beside = json.loads(out.with_suffix(".json").read_text())
    assert beside["notes"] == f"Trained on {sources[0].metadata['base_model']}."
    code, _, error = merge(paths[0], "--output", out, "--force", "--variant", "fp16")
    assert code == 1
    assert "--variant has no meaning without --base" in error
    assert merge(paths[0], "--output", out, "--force")[0] == 0
    assert out.read_bytes() != before
