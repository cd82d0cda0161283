"""No file can hurt: whatever is in it, it is read soundly or refused in one clear line."""

import json
import random
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mutations as m
import pytest
import torch
from safetensors.torch import load_file, save_file

import scumble
from scumble.adapters import ADAPTERS
from scumble.adapters.inject import adapted_layers
from scumble.errors import UserError
from scumble.formats import (
    FORMATS,
    AdapterWeights,
    LearnedToken,
    ModuleWeights,
    read_adapter,
    write_adapter,
)
from scumble.formats.container import MAX_TENSORS, UNSPEAKABLE
from scumble.formats.soundness import check_sound

KINDS = [f"{kind} {format}" for kind in ADAPTERS for format in ("peft", "kohya")]
KINDS += ["embedding", "attn_procs", "cloneofsimo", "bundle"]
PICKLED = ["pickled", "pickled before 1.6", "pickled list"]
WAYS = [{"outline": False, "partial": True}, {"outline": True, "partial": False}]
LONGEST_S = 2.0


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return m.valid_files(tmp_path_factory.mktemp("valid"))


@pytest.fixture
def read(tmp_path: Path) -> Callable[[bytes], list[AdapterWeights | UserError]]:
    """Reads a file in every way, and gives what came of each: sound weights or a clear refusal."""

    def read_all(raw: bytes) -> list[AdapterWeights | UserError]:
        path = tmp_path / "a.safetensors"
        path.write_bytes(raw)
        found: list[AdapterWeights | UserError] = []
        for way in WAYS:
            start = time.monotonic()
            try:
                weights = read_adapter(path, m.NAMES, allow_pickle=True, **way)
                check_sound(weights)
                found.append(weights)
            except UserError as error:
                found.append(error)
            assert time.monotonic() - start < LONGEST_S
        for refused in found:
            if isinstance(refused, UserError):
                assert 10 < len(refused.message) < 1200
                assert not UNSPEAKABLE.search(refused.message)
        return found

    return read_all


def seeded(*names: str) -> random.Random:
    return random.Random(" ".join(names))


def are_refused(found: list[AdapterWeights | UserError]) -> bool:
    return all(isinstance(each, UserError) for each in found)


@pytest.mark.parametrize("name", [*KINDS, *PICKLED])
def test_every_file_is_read_before_anything_happens_to_it(name, files, read):
    assert all(isinstance(each, AdapterWeights) for each in read(files[name].read_bytes()))


def test_there_is_a_file_of_every_format_and_type(files):
    assert files.keys() == {*KINDS, *PICKLED}
    assert set(FORMATS) <= {word for name in files for word in name.split()}


@pytest.mark.parametrize("name", [*KINDS, *PICKLED])
def test_a_cut_file_is_refused_wherever_it_was_cut(name, files, read):
    for raw in m.cuts(files[name].read_bytes(), seeded(name, "cuts")):
        assert are_refused(read(raw))


@pytest.mark.parametrize("name", [*KINDS, *PICKLED])
def test_turned_bits_are_survived(name, files, read):
    found = [each for raw in m.flips(files[name].read_bytes(), seeded(name)) for each in read(raw)]
    assert any(isinstance(each, UserError) for each in found)


SPOILT = {
    "headers": m.headers,
    "shapes": m.shapes,
    "keys": m.keys,
    "settings": m.settings,
    "alphas": m.alphas,
}
SOME = ["lora peft", "dora_lokr kohya", "loha kohya", "ia3 peft", "difference kohya", *KINDS[-4:]]
"""For what is alike in all types."""


CASES = [(n, p) for n in KINDS for p in SPOILT if n in SOME or p in ("shapes", "alphas")]


@pytest.mark.parametrize(("name", "part"), CASES)
def test_a_spoilt_file_is_sound_or_refused(name, part, files, read):
    for raw in SPOILT[part](files[name].read_bytes(), seeded(name, part)):
        read(raw)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", KINDS)
def test_numbers_that_are_none_are_refused(name, value, files, tmp_path):
    tensors = load_file(files[name])
    for key in [key for key, tensor in tensors.items() if tensor.is_floating_point()]:
        spoilt = tensors[key].clone()
        spoilt.view(-1)[-1] = value
        metadata = m.taken_apart(files[name].read_bytes())[1]
        save_file({**tensors, key: spoilt}, tmp_path / "a.safetensors", metadata)
        with pytest.raises(UserError, match=r"NaN or infinite|alpha"):
            read_adapter(tmp_path, m.NAMES)


STEM = f"lora_unet_{m.LINEAR.replace('.', '_')}"


def kohya(alpha: torch.Tensor, down=(2, 12), up=(8, 2)) -> dict[str, torch.Tensor]:
    pair = {f"{STEM}.lora_down.weight": torch.ones(down), f"{STEM}.lora_up.weight": torch.ones(up)}
    return pair | {f"{STEM}.alpha": alpha}


@pytest.mark.parametrize(
    ("alpha", "message"),
    [
        (torch.tensor(0.0), "is 0 at rank 2: it would change nothing"),
        (torch.tensor(1e-38), "would change nothing"),
        (torch.tensor(1e38), r"is 1e\+38 at rank 2: it would change everything"),
        (torch.tensor(-1e38), "would change everything"),
        (torch.tensor(float("nan")), "alpha of .* is nan"),
        (torch.tensor(1j), "not one number"),
        (torch.ones(2), "not one number"),
    ],
)
def test_an_absurd_alpha_is_refused(alpha, message, tmp_path):
    save_file(kohya(alpha), tmp_path / "a.safetensors")
    for way in WAYS:
        with pytest.raises(UserError, match=message):
            read_adapter(tmp_path, m.NAMES, **way)


@pytest.mark.parametrize("alpha", [torch.tensor(-2.0), torch.tensor(2), torch.tensor([2.0])])
def test_an_alpha_below_nothing_or_without_a_fraction_is_read(alpha, tmp_path):
    save_file(kohya(alpha), tmp_path / "a.safetensors")
    assert abs(read_adapter(tmp_path, m.NAMES).components["unet"][m.LINEAR].alpha) == 2


@pytest.mark.parametrize("shapes", [((2, 12), (8, 3)), ((2, 12), (8,)), ((2, 6, 3), (8, 2))])
def test_tensors_that_do_not_go_together_are_refused_without_a_base(shapes, tmp_path):
    save_file(kohya(torch.tensor(1.0), *shapes), tmp_path / "a.safetensors")
    for way in WAYS:
        with pytest.raises(UserError, match="to_q: its tensors do not go together: lora_down"):
            read_adapter(tmp_path, m.NAMES, **way)


PATTERNS = {
    "nested repeats": {"(a+)+x": 1},
    "too many": {f"({number})": 1 for number in range(100)},
    "looking around": {"(?<=a)x": 1},
}


@pytest.mark.parametrize("case", PATTERNS)
def test_patterns_that_could_take_ages_are_refused(case, tmp_path):
    key = f"unet.mid_block.{'a' * 60}.lora.{{}}.weight"
    tensors = {key.format("down"): torch.ones(2, 3), key.format("up"): torch.ones(3, 2)}
    config = json.dumps({"unet.alpha_pattern": PATTERNS[case]})
    save_file(tensors, tmp_path / "a.safetensors", {"lora_adapter_metadata": config})
    with pytest.raises(UserError, match="the adapter settings are damaged"):
        read_adapter(tmp_path, m.NAMES)


def test_many_patterns_that_are_names_are_looked_up_at_once(tmp_path):
    stems = [f"unet.mid_block.{number}.to_q" for number in range(4000)]
    tensors = {f"{stem}.lora.down.weight": torch.ones(1, 1) for stem in stems}
    tensors |= {f"{stem}.lora.up.weight": torch.ones(1, 1) for stem in stems}
    patterns = {rf"^mid_block\.{number}\.to_q": 2 for number in range(4000)}
    config = json.dumps({"unet.alpha_pattern": patterns, "unet.lora_alpha": 1})
    save_file(tensors, tmp_path / "a.safetensors", {"lora_adapter_metadata": config})
    start = time.monotonic()
    weights = read_adapter(tmp_path, m.NAMES, outline=True)
    assert time.monotonic() - start < LONGEST_S * 2
    assert {entry.alpha for entry in weights.components["unet"].values()} == {2.0}


def bombs(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Small files that claim to be huge."""
    one = '"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    yield "header", m.with_header(f"{{{one}}}", bytes(4), 2**62)
    for shape in ([2**40], [2**20, 2**20], [2**62, 8]):
        text = f"{{{one.replace('[1]', str(shape))}}}"
        yield "shape", m.with_header(text, bytes(4))
    thin = m.filled((2**40, 0))
    key = f"unet.{m.LINEAR}.lora.{{}}.weight"
    yield "rank", m.put_together({key.format("down"): thin, key.format("up"): thin}, {})
    pair = (m.filled((1, 2**14)), m.filled((2**14, 1)))
    yield "layer", m.put_together(dict(zip(map(key.format, ("down", "up")), pair, strict=True)), {})
    names = ("lora_down.weight", "lora_mid.weight", "lora_up.weight")
    parts = (m.filled((64, 2000, 1, 1)), m.filled((64, 64, 32, 32)), m.filled((1, 64, 1, 1)))
    stem = f"lora_unet_{m.CONV.replace('.', '_')}"
    tucker = {f"{stem}.{name}": part for name, part in zip(names, parts, strict=True)}
    yield "kernel", m.put_together(tucker, {})
    nothing = m.filled((0,))
    yield "keys", m.put_together({str(n): nothing for n in range(MAX_TENSORS + 1)}, {})
    for is_zip in (True, False):
        path = folder / "bomb.pt"
        tensors = {key.format("down"): torch.zeros(1).expand(2, 2**27)}
        torch.save(tensors, path, _use_new_zipfile_serialization=is_zip)
        yield "one number, repeated", path.read_bytes()


def test_no_file_takes_more_memory_than_it_is_worth(read, tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, raw in bombs(tmp_path):
        assert are_refused(read(raw)), name
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 100 * 1024


@pytest.mark.parametrize("name", ["\x1b[2J", "a\nb", "a" * 5000, "\u202e"])
def test_a_key_that_a_terminal_would_obey_is_refused(name, tmp_path):
    save_file({name: torch.ones(1, 8)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="holds a key that is no name") as refused:
        read_adapter(tmp_path, m.NAMES)
    assert refused.value.message.isascii()


def test_half_a_character_in_a_pickle_is_refused_or_replaced(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"<a>": torch.ones(1, 8), "note": "\ud800"}, path)
    weights = read_adapter(path, m.NAMES, allow_pickle=True)
    assert weights.metadata["note"] == "?"
    write_adapter(weights, tmp_path / "b.safetensors", m.NAMES)
    torch.save({"\ud800": torch.ones(1, 8)}, path)
    with pytest.raises(UserError, match=r"holds a key that is no name: '\\ud800'"):
        read_adapter(path, m.NAMES, allow_pickle=True)


@pytest.mark.parametrize("path", ["~nobody-of-that-name/a", "a" * 5000, "a\0b", ""])
def test_a_path_that_cannot_be_is_named(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"adapter at|holds no|can be nothing at"):
        read_adapter(path, m.NAMES)


def test_settings_beside_a_file_may_be_anything(files, tmp_path):
    tensors, metadata = m.taken_apart(files["ia3 peft"].read_bytes())
    own = {key.replace("unet.", "base_model.model."): tensor for key, tensor in tensors.items()}
    (tmp_path / "a.safetensors").write_bytes(m.put_together(own, metadata))
    (tmp_path / "adapter_config.json").write_bytes(b"\xff\xfe[[[[")
    with pytest.raises(UserError, match="settings are damaged"):
        read_adapter(tmp_path, m.NAMES)
    with (tmp_path / "adapter_config.json").open("wb") as file:
        file.truncate(2**34)
    with pytest.raises(UserError, match="too big for an adapter's settings"):
        read_adapter(tmp_path, m.NAMES)


def other_shapes(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Wrong shapes near a right one."""
    near = [(*shape[:i], n, *shape[i + 1 :]) for i, s in enumerate(shape) for n in (s + 1, 2 * s)]
    return [*near, (), shape[1:], (*shape, 2), (2, *shape), tuple(reversed(shape))]


@pytest.mark.parametrize("kind", ADAPTERS)
def test_wrong_shapes_leave_the_model_as_it_was(kind, tiny_pipeline):
    unet = tiny_pipeline.unet
    before = {key: tensor.clone() for key, tensor in unet.state_dict().items()}
    path = m.NORM if kind == "norm_difference" else m.LINEAR
    entry = m.entry(kind, tuple(unet.get_submodule(path).weight.shape))
    whole = {name: tuple(tensor.shape) for name, tensor in entry.tensors.items()}
    refused = 0
    for name, shape in whole.items():
        for other in (other for other in other_shapes(shape) if other != shape):
            tensors = entry.tensors | {name: torch.ones(other)}
            spoilt = AdapterWeights({"unet": {path: ModuleWeights(kind, tensors, 1.0)}})
            try:
                scumble.load_adapter(tiny_pipeline, spoilt)
            except UserError:
                refused += 1
            else:
                # A form of the same type, such as a factor held at another rank.
                layer = unet.get_submodule(path)
                delta = layer.get("adapter").delta(layer.weight)
                assert delta.shape == layer.weight.shape
                scumble.unload_adapters(tiny_pipeline)
            assert not adapted_layers(unet)
    assert refused >= 5
    assert all(torch.equal(tensor, before[key]) for key, tensor in unet.state_dict().items())


def test_a_rank_too_wide_for_memory_is_refused_before_it_is_taken(tiny_pipeline):
    rank = 2**22
    tensors = {"down": torch.ones(rank, 1), "up": torch.ones(1, rank)}
    spoilt = AdapterWeights({"unet": {m.LINEAR: ModuleWeights("lora", tensors, 1.0)}})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"lora_down\.weight. has shape"):
        scumble.load_adapter(tiny_pipeline, spoilt)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024


def some_adapter(rng: random.Random) -> AdapterWeights:
    """Any adapter that could be: layers, types, ranks, alphas and number formats by chance."""
    torch.manual_seed(rng.randrange(1000))
    dtype = rng.choice([torch.float32, torch.float16, torch.bfloat16])
    kinds = rng.sample(sorted(set(ADAPTERS) - {"norm_difference"}), rng.choice([1, 1, 2, 4]))
    alphas = rng.choice([[2.0], [1.0, 0.1, 4.0], [1 / 3, -2.5, 1000.0]])
    layers = {}
    for path in rng.sample(m.NAMES.order["unet"], rng.randint(1, 6)):
        shape = (8, 6, 3, 3) if path.endswith(("conv1", "conv2")) else (8, 6)
        rank = rng.choice([1, 2, 2, 5])
        made = m.entry(rng.choice(kinds), shape, rank, rng.choice(alphas))
        tensors = {
            name: tensor.to(dtype) if tensor.is_floating_point() else tensor
            for name, tensor in made.tensors.items()
        }
        layers[path] = ModuleWeights(made.type, tensors, made.alpha)
    tokens = {"<a>": LearnedToken({"text_encoder": torch.randn(2, 8).to(dtype)})}
    components = rng.choice([{"unet": layers}, {"unet": layers}, {}])
    tokens = tokens if not components or rng.random() < 0.3 else {}
    return AdapterWeights(components, {"note": rng.choice(["", "ü", "a\nb"])}, tokens)


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_written_is_what_is_read(format, tmp_path):
    rng = seeded(format, "round trips")
    kept = 0
    for _ in range(40):
        weights = some_adapter(rng)
        try:
            path = write_adapter(weights, tmp_path / "a.safetensors", m.NAMES, format)
        except UserError:
            assert not list(tmp_path.iterdir())
            continue
        kept += 1
        back = read_adapter(path, m.NAMES)
        assert back.metadata.items() >= weights.metadata.items()
        assert back.components.keys() == weights.components.keys()
        for component, layers in weights.components.items():
            assert back.components[component].keys() == layers.keys()
            for name, entry in layers.items():
                got = back.components[component][name]
                assert (got.type, got.alpha, got.rank) == (entry.type, entry.alpha, entry.rank)
                assert_equal(got.tensors, entry.tensors)
        assert back.tokens.keys() == weights.tokens.keys()
        for token, learned in weights.tokens.items():
            assert_equal(back.tokens[token].vectors, learned.vectors)
        again = write_adapter(weights, tmp_path / "b.safetensors", m.NAMES, format)
        assert path.read_bytes() == again.read_bytes()
        path.unlink()
        again.unlink()
    assert kept >= {"peft": 20, "kohya": 30, "embedding": 3}.get(format, 0)


def assert_equal(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert got.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert got[name].dtype == tensor.dtype
        assert torch.equal(got[name], tensor)
