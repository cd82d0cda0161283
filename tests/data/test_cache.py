import errno
import os

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from scumble.data.cache import TensorStore, content_key, module_digest
from scumble.errors import UserError

KEY = content_key("a picture", 512)
TENSORS = {
    "mean": torch.arange(6.0).reshape(2, 3),
    "std": torch.tensor([0.5, 2.0], dtype=torch.bfloat16),
    "tokens": torch.tensor([1, 2, 3]),
}


def same(found, expected=TENSORS):
    return found.keys() == expected.keys() and all(
        found[name].dtype == expected[name].dtype and torch.equal(found[name], expected[name])
        for name in expected
    )


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


class TestKeys:
    def test_parts_are_told_apart_by_length_type_and_order(self):
        keys = [("ab", "c"), ("a", "bc"), ("abc",), ("c", "ab"), (1, "x"), ("1", "x"), (1.0, "x")]
        keys += [("astr:b",), ("a", "b")]
        assert len({content_key(*parts) for parts in keys}) == len(keys)

    def test_a_key_is_stable(self):
        assert content_key("a", 1, 0.5) == content_key("a", 1, 0.5)
        assert len(content_key("a")) == 64

    def test_a_new_code_version_makes_new_keys(self, monkeypatch):
        before = content_key("a")
        monkeypatch.setattr("scumble.data.cache._CODE_VERSION", 999)
        assert content_key("a") != before


class TestModuleDigest:
    def test_equal_for_equal_weights_only(self):
        first, second = nn.Linear(3, 2), nn.Linear(3, 2)
        assert module_digest(first) != module_digest(second)
        second.load_state_dict(first.state_dict())
        assert module_digest(first) == module_digest(second)
        with torch.no_grad():
            second.bias[1] = torch.nextafter(second.bias[1], torch.tensor(9.0))
        assert module_digest(first) != module_digest(second)

    def test_dtype_shape_and_names_count(self):
        def holding(name, tensor):
            module = nn.Module()
            module.register_buffer(name, tensor)
            return module_digest(module)

        zeros = torch.zeros(4)
        digests = {
            holding("a", zeros),
            holding("b", zeros),
            holding("a", zeros.reshape(2, 2)),
            holding("a", zeros.to(torch.int32)),
            holding("a", torch.zeros(8, dtype=torch.bfloat16)),
            holding("a", torch.zeros(8, dtype=torch.float16)),
            holding("a", torch.zeros(())),
            holding("a", torch.zeros(0)),
        }
        assert len(digests) == 8

    def test_memory_layout_does_not_count(self):
        first = nn.Conv2d(2, 3, 3)
        before = module_digest(first)
        assert module_digest(first.to(memory_format=torch.channels_last)) == before


@pytest.fixture(params=["disk", "memory", "disk without memory"])
def store(request, tmp_path):
    if request.param == "memory":
        return TensorStore(None, memory_limit_bytes=0)
    limit = 0 if "without" in request.param else 2**20
    return TensorStore(tmp_path / "new" / "cache", limit)


class TestStore:
    def test_what_is_put_comes_back(self, store):
        assert store.get(KEY) is None
        assert KEY not in store
        store.put(KEY, TENSORS, "a.png")
        assert KEY in store
        assert same(store.get(KEY))
        assert store.get(content_key("another")) is None

    def test_what_must_be_there_is_or_it_is_said(self, store):
        store.put(KEY, TENSORS, "a.png")
        assert same(store.require(KEY))
        with pytest.raises(UserError, match="has gone from the cache"):
            store.require(content_key("another picture"))

    def test_the_store_owns_its_tensors(self, store):
        batch = torch.ones(4, 2)
        store.put(KEY, {"mean": batch[0]}, "a.png")
        batch.zero_()
        found = store.get(KEY)
        assert found["mean"].tolist() == [1.0, 1.0]
        assert found["mean"].untyped_storage().nbytes() == 8
        found.clear()
        assert "mean" in store.get(KEY)

    def test_parts_that_share_memory_or_are_not_contiguous(self, store):
        square = torch.arange(4.0).reshape(2, 2)
        views = {"a": square, "b": square.T, "c": torch.ones(1).expand(3)}
        store.put(KEY, views, "a.png")
        assert same(store.get(KEY), views)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_values_that_are_not_finite_name_the_picture(self, store, value):
        bad = {"mean": torch.tensor([1.0, value], dtype=torch.float16)}
        with pytest.raises(UserError, match=r"cat 7\.png.*\n.*bf16 or fp32"):
            store.put(KEY, bad, "cat 7.png")
        assert KEY not in store


class TestDisk:
    def test_layout_and_a_second_process(self, tmp_path):
        TensorStore(tmp_path).put(KEY, TENSORS, "a.png")
        path = tmp_path / KEY[:2] / f"{KEY}.safetensors"
        assert files(tmp_path) == [path]
        assert same(load_file(path))
        assert same(TensorStore(tmp_path).get(KEY))

    def test_memory_spares_the_disk_up_to_its_limit(self, tmp_path):
        store = TensorStore(tmp_path, memory_limit_bytes=20)
        keys = [content_key(n) for n in range(3)]
        for key in keys:
            store.put(key, {"x": torch.ones(2)}, "x")
        for path in files(tmp_path):
            path.unlink()
        assert [key in store for key in keys] == [True, True, False]

    def test_reading_fills_memory_too(self, tmp_path):
        TensorStore(tmp_path).put(KEY, TENSORS, "a.png")
        store = TensorStore(tmp_path)
        store.get(KEY)
        files(tmp_path)[0].unlink()
        assert same(store.get(KEY))

    @pytest.mark.parametrize("damage", ["truncated", "empty", "flipped bit", "garbage"])
    def test_a_damaged_file_is_absent_removed_and_noted(self, tmp_path, damage):
        TensorStore(tmp_path).put(KEY, TENSORS, "a.png")
        (path,) = files(tmp_path)
        data = path.read_bytes()
        path.write_bytes(
            {
                "truncated": data[:-5],
                "empty": b"",
                "flipped bit": data[:-1] + bytes([data[-1] ^ 1]),
                "garbage": b"\xff" * 100,
            }[damage]
        )
        store = TensorStore(tmp_path)
        assert KEY not in store
        assert files(tmp_path) == []
        assert len(store.repaired) == 1
        assert KEY in store.repaired[0]
        store.put(KEY, TENSORS, "a.png")
        assert same(TensorStore(tmp_path).get(KEY))

    def test_a_write_that_fails_leaves_nothing_behind(self, tmp_path, monkeypatch):
        def full(_descriptor):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", full)
        store = TensorStore(tmp_path)
        with pytest.raises(UserError, match="No space left") as caught:
            store.put(KEY, TENSORS, "a.png")
        assert str(tmp_path) in caught.value.message
        assert "--latent_cache_dir" in caught.value.hint
        assert files(tmp_path) == []
        assert KEY not in store

    def test_an_entry_appears_only_when_it_is_whole_and_synced(self, tmp_path, monkeypatch):
        seen = []
        real = os.fsync

        def watched(descriptor):
            seen.append([path.suffix for path in files(tmp_path)])
            real(descriptor)

        monkeypatch.setattr(os, "fsync", watched)
        TensorStore(tmp_path).put(KEY, TENSORS, "a.png")
        assert seen == [[".tmp"]]

    def test_a_folder_that_cannot_be_made(self, tmp_path):
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(UserError, match=r"cache folder .*file/sub cannot be used"):
            TensorStore(tmp_path / "file" / "sub")
