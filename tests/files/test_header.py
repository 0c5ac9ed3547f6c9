"""The safetensors container: written as the library writes it, read with suspicion."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from studio.errors import BadConfig, BadFile
from studio.files.header import DTYPES, payload_hash, read_header, read_tensors, write_tensors


def tensors_of_every_dtype():
    made = {f"{place}.{word}": torch.ones(3, dtype=dtype) for place in "ba" for word, dtype in DTYPES.items()}
    return made | {"alpha": torch.tensor(4.0), "empty": torch.zeros(0, 3), "B.upper": torch.ones(2)}


def raw(tmp_path, head, payload=b"\0" * 8, length=None):
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    file = tmp_path / "raw.safetensors"
    file.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + payload)
    return file


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def test_the_bytes_are_the_librarys_where_it_is_deterministic(tmp_path):
    tensors = tensors_of_every_dtype()
    save_file(tensors, tmp_path / "theirs", metadata={"one": "key"})
    write_tensors(tmp_path / "ours", tensors, {"one": "key"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_what_is_written_is_read_by_both(tmp_path):
    tensors = tensors_of_every_dtype()
    write_tensors(tmp_path / "file", tensors, {"b": "2", "a": "é\n"})
    header, ours = read_tensors(tmp_path / "file")
    theirs = load_file(tmp_path / "file")
    assert header.metadata == {"b": "2", "a": "é\n"} and header.start % 8 == 0
    for name, tensor in tensors.items():
        for read in (ours[name], theirs[name]):
            assert read.dtype == tensor.dtype and read.shape == tensor.shape
            assert read.reshape(-1).view(torch.uint8).tolist() == tensor.reshape(-1).view(torch.uint8).tolist()


def test_two_saves_are_byte_identical_with_many_metadata_keys(tmp_path):
    tensors = {"x": torch.randn(3)}
    keys = [f"key{number}" for number in range(20)]
    write_tensors(tmp_path / "one", tensors, {key: "v" for key in keys})
    write_tensors(tmp_path / "two", tensors, {key: "v" for key in reversed(keys)})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_slice_or_a_transposed_tensor_is_written_by_value(tmp_path):
    whole = torch.arange(12.0).view(3, 4)
    write_tensors(tmp_path / "file", {"rows": whole[1:], "turned": whole.t()}, {})
    _, read = read_tensors(tmp_path / "file")
    assert torch.equal(read["rows"], whole[1:]) and torch.equal(read["turned"], whole.t())


def test_unaligned_tensors_of_other_writers_are_read(tmp_path):
    head = {
        "a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
        "b": {"dtype": "F32", "shape": [1], "data_offsets": [3, 7]},
    }
    _, read = read_tensors(raw(tmp_path, head, b"\1\2\3" + struct.pack("<f", 2.5)))
    assert read["b"].item() == 2.5 and read["a"].tolist() == [1, 2, 3]


def test_the_payload_hash_is_that_of_the_bytes_behind_the_header(tmp_path):
    import hashlib

    tensors = tensors_of_every_dtype()
    write_tensors(tmp_path / "file", tensors, {"some": "metadata"})
    start = read_header(tmp_path / "file").start
    assert payload_hash(tensors) == hashlib.sha256((tmp_path / "file").read_bytes()[start:]).hexdigest()


@pytest.mark.parametrize(
    ("head", "payload", "says"),
    [
        (b"", b"", "not a table"),
        (b"{" * 100_000, b"", "header is not JSON"),
        (b"[1]", b"", "not a table"),
        (b'{"a": 1, "a": 2}', b"", "'a' twice"),
        ({"__metadata__": {"k": 1}, "x": ENTRY}, b"\0" * 8, "not text"),
        ({"__metadata__": [], "x": ENTRY}, b"\0" * 8, "not text"),
        ({"x": {**ENTRY, "dtype": "F99"}}, b"\0" * 8, "cannot be true"),
        ({"x": {**ENTRY, "shape": [-2]}}, b"\0" * 8, "cannot be true"),
        ({"x": {**ENTRY, "shape": [True, 2]}}, b"\0" * 8, "cannot be true"),
        ({"x": {**ENTRY, "shape": [3]}}, b"\0" * 8, "cannot be true"),
        ({"x": {**ENTRY, "shape": "ab"}}, b"\0" * 8, "cannot be true"),
        ({"x": {**ENTRY, "data_offsets": [0, 8, 9]}}, b"\0" * 8, "cannot be true"),
        ({"x": {**ENTRY, "data_offsets": [8, 0]}}, b"\0" * 8, "cannot be true"),
        ({"x": {"dtype": "F32"}}, b"\0" * 8, "cannot be true"),
        ({"x": 3}, b"\0" * 8, "cannot be true"),
        ({"x": ENTRY, "y": ENTRY}, b"\0" * 8, "overlaps"),
        ({"x": {**ENTRY, "data_offsets": [8, 16]}}, b"\0" * 16, "hole"),
        ({"x": {**ENTRY, "shape": [200], "data_offsets": [0, 800]}}, b"\0" * 8, "truncated"),
        ({"x": ENTRY}, b"\0" * 9, "belong to nothing"),
        ({"x": {**ENTRY, "shape": [2**62, 2**62], "data_offsets": [0, 2**126]}}, b"\0" * 8, "38 digits"),
    ],
)
def test_hostile_headers_are_refused_in_one_sentence(tmp_path, head, payload, says):
    file = raw(tmp_path, head, payload)
    for read in (read_header, read_tensors):
        with pytest.raises(BadFile, match=says) as caught:
            read(file)
        assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_a_header_of_exabytes_is_not_believed(tmp_path):
    with pytest.raises(BadFile, match="would announce a header"):
        read_header(raw(tmp_path, {}, length=2**60))
    with pytest.raises(BadFile, match="truncated"):
        read_header(raw(tmp_path, {}, length=10_000))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.99])
def test_truncated_files_are_refused(tmp_path, share):
    file = tmp_path / "file"
    write_tensors(file, {"x": torch.zeros(1000)}, {"a": "b"})
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(BadFile, match="truncated"):
        read_tensors(file)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(BadFile, match="there is no file"):
        read_header(tmp_path / "nothing.safetensors")
    with pytest.raises(BadFile, match="is a folder"):
        read_header(tmp_path)


def test_metadata_must_be_text_and_dtypes_known(tmp_path):
    with pytest.raises(BadConfig, match=r"metadata\['seed'\] is 3"):
        write_tensors(tmp_path / "file", {"x": torch.zeros(1)}, {"seed": 3})
    with pytest.raises(BadConfig, match="complex128"):
        write_tensors(tmp_path / "file", {"x": torch.zeros(1, dtype=torch.complex128)}, {})
    assert list(tmp_path.iterdir()) == []
