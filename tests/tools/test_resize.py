"""An adapter of another rank: `scumble.resize_adapter` and `scumble resize`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import made
import pytest
import torch

import scumble
from scumble.adapters.low_rank import truncated_svd
from scumble.cli.main import run
from scumble.errors import UserError
from scumble.formats import AdapterWeights, ModuleWeights
from scumble.formats.container import read_content
from scumble.formats.files import format_of
from scumble.tools.reading import open_adapter


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "resized.safetensors"


@pytest.fixture
def save(tmp_path: Path) -> Any:
    def write(adapter: AdapterWeights, format: str = "peft") -> Path:
        return scumble.write_adapter(adapter, tmp_path / "source.safetensors", format)

    return write


def tucker(pipeline: Any, rank: int = 4) -> AdapterWeights:
    adapter = made.weights(pipeline, rank=rank, places={"unet": (made.CONV,)})
    tensors = adapter.components["unet"][made.CONV].tensors
    torch.manual_seed(5)
    parts = {"down": tensors["down"][..., :1, :1], "mid": torch.randn(rank, rank, 3, 3)}
    entry = ModuleWeights("lora", tensors | parts, rank / 2)
    return replace(adapter, components={"unet": {made.CONV: entry}})


def test_the_same_rank_leaves_every_bit(tiny_pipeline: Any, save: Any, out: Path) -> None:
    source = save(made.weights(tiny_pipeline))
    outcome = scumble.resize_adapter(source, out, 4)
    before, after = made.read(source), made.read(out)
    for component, modules in before.components.items():
        for module, entry in modules.items():
            got = after.components[component][module]
            assert (got.type, got.alpha) == (entry.type, entry.alpha)
            assert all(torch.equal(got.tensors[k], tensor) for k, tensor in entry.tensors.items())
    assert any(
        "5 layers of rank 4 or less, or of none, stay as they were" in x for x in outcome.lines
    )


def test_energy_for_all_at_the_same_rank_is_the_same_change(
    tiny_pipeline: Any, save: Any, out: Path
) -> None:
    adapter = made.weights(tiny_pipeline)
    scumble.resize_adapter(save(adapter), out, 4, energy=1.0)
    got, wanted = (made.deltas(x, tiny_pipeline) for x in (made.read(out), adapter))
    assert all(made.relative(got[layer], wanted[layer]) < 1e-6 for layer in wanted)


@pytest.mark.parametrize("build", [made.weights, tucker])
def test_a_lower_rank_keeps_the_best_of_each_layer(
    build: Any, tiny_pipeline: Any, save: Any, out: Path
) -> None:
    adapter = build(tiny_pipeline, rank=6)
    outcome = scumble.resize_adapter(save(adapter), out, 2)
    resized = made.read(out)
    got, whole = made.deltas(resized, tiny_pipeline), made.deltas(adapter, tiny_pipeline)
    assert got.keys() == whole.keys()
    for layer, delta in whole.items():
        best = truncated_svd(delta.flatten(1), 2)
        lost = float((got[layer] - delta).square().sum())
        assert lost == pytest.approx(best.total_energy * (1 - best.energy(2)), rel=1e-4)
    entries = [entry for modules in resized.components.values() for entry in modules.values()]
    # alpha / rank is what the source has: 1/2.
    assert {(entry.rank, entry.alpha) for entry in entries} == {(2, 1.0)}
    assert any("layers of rank 2 keep" in x or "layer of rank 2 keep" in x for x in outcome.lines)


def test_energy_chooses_each_layers_rank(tiny_pipeline: Any, save: Any, out: Path) -> None:
    adapter = made.weights(tiny_pipeline, rank=8)
    outcome = scumble.resize_adapter(save(adapter), out, 6, energy=0.8)
    assert len({layer.rank for layer in outcome.layers}) > 1
    whole = made.deltas(adapter, tiny_pipeline)
    for layer in outcome.layers:
        best = truncated_svd(whole[f"{layer.component}.{layer.module}"].flatten(1), 8)
        assert layer.rank == min(6, best.rank_for(0.8))
        assert layer.share == pytest.approx(best.energy(layer.rank), abs=1e-6)


def test_the_energy_is_checked_before_any_file_is_read(out: Path) -> None:
    for energy in (0.0, 1.5, float("nan")):
        with pytest.raises(UserError, match="the energy to keep is"):
            scumble.resize_adapter("missing.safetensors", out, 6, energy=energy)


def test_a_layer_without_any_change_stays_one(tiny_pipeline: Any, save: Any, out: Path) -> None:
    adapter = made.weights(tiny_pipeline, places={"unet": (made.TO_K,)})
    tensors = adapter.components["unet"][made.TO_K].tensors
    tensors["up"].zero_()
    scumble.resize_adapter(save(adapter), out, 2)
    assert not made.deltas(made.read(out), tiny_pipeline)[f"unet.{made.TO_K}"].any()


@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_other_types_become_lora(kind: str, tiny_pipeline: Any, save: Any, out: Path) -> None:
    adapter = made.weights(tiny_pipeline, kind, rank=2)
    scumble.resize_adapter(save(adapter), out, 999)
    resized = made.read(out)
    assert {e.type for m in resized.components.values() for e in m.values()} == {"lora"}
    assert resized.components["unet"][made.CONV].tensors["down"].shape[2:] == (3, 3)
    got, wanted = (made.deltas(x, tiny_pipeline) for x in (resized, adapter))
    assert all(made.relative(got[layer], wanted[layer]) < 1e-5 for layer in wanted)


def test_norms_and_biases_stay_whole(tiny_pipeline: Any, save: Any, out: Path) -> None:
    norm = made.entry(made.live_layer(tiny_pipeline, "unet", made.NORM), "norm_difference")
    conv = made.entry(made.live_layer(tiny_pipeline, "unet", made.CONV), "difference")
    plain = made.entry(made.live_layer(tiny_pipeline, "unet", made.TO_K), "difference")
    modules = {made.NORM: norm, made.CONV: conv, made.TO_K: plain}
    scumble.resize_adapter(save(AdapterWeights({"unet": modules})), out, 3)
    unet = made.read(out).components["unet"]
    assert torch.equal(unet[made.CONV].tensors["diff_b"], conv.tensors["diff_b"])
    types = {module: entry.type for module, entry in unet.items()}
    assert types == {made.NORM: "norm_difference", made.CONV: "difference", made.TO_K: "lora"}
    assert unet[made.TO_K].rank == 3


@pytest.mark.parametrize("kind", ["dora", "ia3"])
def test_what_depends_on_the_base_is_refused(
    kind: str, tiny_pipeline: Any, save: Any, out: Path
) -> None:
    with pytest.raises(UserError, match=f"_proj: the change of an adapter of type {kind}"):
        scumble.resize_adapter(save(made.weights(tiny_pipeline, kind)), out, 2)
    assert not out.exists()


def test_words_and_what_is_still_true_come_along(tiny_pipeline: Any, save: Any, out: Path) -> None:
    told = {"trigger_phrase": "a <a>", "sshs_model_hash": "0", "ss_network_dim": "4"}
    adapter = made.weights(tiny_pipeline, **told)
    adapter = replace(adapter, tokens=made.word("<a>"))
    scumble.resize_adapter(save(adapter), out, 2, format="peft")
    resized = made.read(out)
    assert list(resized.tokens) == ["<a>"]
    assert resized.metadata == {"base_model": made.BASE, "trigger_phrase": "a <a>"}


def test_format_and_number_format_stay(tiny_pipeline: Any, save: Any, out: Path) -> None:
    adapter = made.weights(tiny_pipeline)
    halves = {
        component: {
            module: replace(entry, tensors={k: t.half() for k, t in entry.tensors.items()})
            for module, entry in modules.items()
        }
        for component, modules in adapter.components.items()
    }
    source = save(replace(adapter, components=halves), "kohya")
    scumble.resize_adapter(source, out, 2)
    opened = open_adapter(out)
    assert opened.format == format_of(read_content(source), opened.family.key_names) == "kohya"
    assert opened.content.metadata["ss_network_dim"] == "2"
    entry = opened.weights.components["unet"][made.TO_K]
    assert entry.tensors["up"].dtype == torch.float16
    scumble.resize_adapter(source, out, 2, dtype="fp32", format="peft", force=True)
    opened = open_adapter(out)
    assert opened.format == "peft"
    assert opened.weights.components["unet"][made.TO_K].tensors["up"].dtype == torch.float32


def test_numbers_too_large_for_the_sources_format_are_named(
    tiny_pipeline: Any, save: Any, out: Path
) -> None:
    torch.manual_seed(0)
    parts = {"down": torch.randn(4, 9) * 3e4, "up": torch.randn(4, 4) * 3e4}
    parts |= {"up": torch.cat([parts["up"], torch.zeros(4, 4)])}
    halves = {name: tensor.clamp(-6e4, 6e4).half() for name, tensor in parts.items()}
    entry = ModuleWeights("lora", halves, 4e-3)
    source = save(AdapterWeights({"unet": {made.TO_K: entry}}))
    with pytest.raises(UserError, match=f"too large for fp16, in 'unet.{made.TO_K}'"):
        scumble.resize_adapter(source, out, 2)
    assert not out.exists()
    scumble.resize_adapter(source, out, 2, dtype="fp32")


def test_a_description_beside_the_output_is_kept(tiny_pipeline: Any, save: Any, out: Path) -> None:
    source = save(made.weights(tiny_pipeline), "kohya")
    beside = out.with_suffix(".json")
    beside.write_text(mine := "{}")
    with pytest.raises(UserError, match=r"resized\.json exists already"):
        scumble.resize_adapter(source, out, 2)
    assert beside.read_text() == mine
    assert not out.exists()
    scumble.resize_adapter(source, out, 2, format="peft")
    scumble.resize_adapter(source, out, 2, force=True)
    assert beside.read_text() != mine


def test_the_command_says_what_it_keeps(
    tiny_pipeline: Any, save: Any, out: Path, capsys: Any
) -> None:
    words = ["resize", str(save(made.weights(tiny_pipeline))), "--output", str(out)]
    assert run([*words, "--rank", "2"]) == 0
    said = capsys.readouterr().out
    assert "unet: 4 layers of rank 2 keep " in said
    assert said.splitlines()[-1] == str(out)
    before = out.read_bytes()
    assert run([*words, "--rank", "1"]) == 1
    assert "exists already" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert run([*words, "--rank", "0", "--force"]) == 1
    assert "the rank is 0" in capsys.readouterr().err


def test_thin_matrices_are_cut_on_one_thread(
    tiny_pipeline: Any, save: Any, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    svd = torch.linalg.svd

    def watched(*words: Any, **options: Any) -> Any:
        seen.append(torch.get_num_threads())
        return svd(*words, **options)

    monkeypatch.setattr(torch.linalg, "svd", watched)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        scumble.resize_adapter(save(made.weights(tiny_pipeline)), out, 2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}
