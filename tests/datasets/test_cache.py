"""The cache gives back what was put, and makes anew what was damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from studio.datasets.cache import TensorCache, content_key
from studio.errors import BadFile

TENSORS = {
    "mean": torch.arange(6.0).reshape(2, 3),
    "ids": torch.tensor([3, 1]),
    "half": torch.ones(2, dtype=torch.bfloat16),
}


@pytest.fixture(params=["memory", "disk"])
def cache(request, tmp_path):
    return TensorCache(None if request.param == "memory" else tmp_path / "cache")


def test_what_was_put_comes_back(cache):
    key = content_key("a")
    assert cache.get(key) is None and key not in cache
    cache.put(key, TENSORS)
    assert key in cache
    back = cache.get(key)
    assert set(back) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert back[name].dtype is tensor.dtype and torch.equal(back[name], tensor)


def test_entries_cannot_be_changed_through_what_was_given_or_taken(cache):
    tensor = torch.zeros(3, requires_grad=True)
    cache.put("k" * 64, {"x": tensor})
    with torch.no_grad():
        tensor += 1
    cache.get("k" * 64)["x"] += 5
    assert cache.get("k" * 64)["x"].tolist() == [0, 0, 0] and not cache.get("k" * 64)["x"].requires_grad


def test_views_and_shared_tensors_are_kept(cache):
    base = torch.arange(12.0)
    cache.put("v" * 64, {"a": base[::2], "b": base.reshape(3, 4).T, "c": base})
    assert torch.equal(cache.get("v" * 64)["b"], base.reshape(3, 4).T)


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text"])
def test_a_damaged_entry_is_gone_and_can_be_made_again(tmp_path, damage):
    cache = TensorCache(tmp_path)
    key = content_key("x")
    cache.put(key, TENSORS)
    (file,) = tmp_path.rglob("*.safetensors")
    data = file.read_bytes()
    damaged = {"cut": data[:-3], "flip": data[:-1] + bytes([data[-1] ^ 1]), "empty": b"", "text": b"hello"}[damage]
    file.write_bytes(damaged)
    assert cache.get(key) is None and not file.exists()
    cache.put(key, TENSORS)
    assert torch.equal(cache.get(key)["mean"], TENSORS["mean"])


def test_files_are_the_same_bytes_each_time(tmp_path):
    for place in ("a", "b"):
        TensorCache(tmp_path / place).put(content_key("x"), TENSORS)
    one, other = (next((tmp_path / place).rglob("*.safetensors")) for place in ("a", "b"))
    assert one.name == other.name and one.read_bytes() == other.read_bytes()


def test_an_impossible_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadFile, match="a part of that path is a file"):
        TensorCache(tmp_path / "file").put(content_key("x"), TENSORS)
    assert TensorCache(tmp_path / "file").get(content_key("x")) is None


def test_keys_tell_types_and_boundaries_apart():
    different = [
        (), ("",), ("", ""), ("a", "b"), ("ab", ""), (["a", "b"],), ("1",), (1,), (1.0,), (True,), (None,), (b"1",),
        (Path("1"),), ({"a": 1},), ({"a": "1"},), (torch.zeros(2),), (torch.zeros(2, dtype=torch.int32),),
        (torch.zeros(1, 2),), (-0.0,), (0.0,),
    ]  # fmt: skip
    assert len({content_key(*parts) for parts in different}) == len(different)
    assert content_key(torch.arange(6).reshape(2, 3).T) == content_key(torch.arange(6).reshape(2, 3).T.contiguous())
    with pytest.raises(TypeError, match="cannot be made of set"):
        content_key({1, 2})


PLAIN = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats(allow_nan=False) | some.text() | some.binary(),
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.text(), inner, max_size=3),
    max_leaves=6,
)


@given(PLAIN, PLAIN)
def test_equal_keys_mean_equal_parts(one, other):
    def marked(value):
        if isinstance(value, dict):
            return {key: marked(entry) for key, entry in value.items()}
        return [marked(entry) for entry in value] if isinstance(value, list) else (type(value).__name__, repr(value))

    assert (content_key(one) == content_key(other)) == (marked(one) == marked(other))
