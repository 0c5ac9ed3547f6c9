"""The container's part of the conformance checks: bytes, order, padding, and what is refused."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

import studio
from studio.errors import BadConfig, BadFile
from studio.files.header import payload_hash, read_header, read_numbers, read_tensors, write_tensors

TENSORS = {
    "z.i64": torch.tensor([1, -2]),
    "a.f32": torch.randn(2, 3, generator=torch.Generator().manual_seed(0)),
    "b.bf16": torch.tensor([1.5, -0.25]).bfloat16(),
    "c.f16": torch.tensor([3.5, 65504.0]).half(),
    "y.bool": torch.tensor([True, False, True]),
    "alpha": torch.tensor(4.0).bfloat16(),
    "empty": torch.zeros(0, 5),
}


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def rewritten(file, out, *, pad=0, reverse=False):
    """The same file with another header: metadata in the other order, more spaces behind."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    head = json.loads(content[8 : 8 + length])
    if reverse:
        head["__metadata__"] = dict(reversed(head["__metadata__"].items()))
    text = json.dumps(head, separators=(", ", ": ")).encode() + b" " * pad
    out.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    return out


@pytest.mark.parametrize("read", [load_file, lambda file: read_tensors(file)[1]], ids=["library", "ours"])
def test_tensors_of_every_sort_come_back_to_the_byte_in_the_librarys_order(tmp_path, read):
    """Check 1: types, no axes and no numbers; the order of the payload is I64, F32, BF16, F16, BOOL, then by name."""
    write_tensors(tmp_path / "a", TENSORS, {})
    back = read(tmp_path / "a")
    assert back.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert back[name].dtype == tensor.dtype and back[name].shape == tensor.shape
        assert bytes_of(back[name]) == bytes_of(tensor)
    infos = read_header(tmp_path / "a").tensors
    assert list(infos) == ["z.i64", "a.f32", "empty", "alpha", "b.bf16", "c.f16", "y.bool"]
    assert [info.begin for info in infos.values()] == sorted(info.begin for info in infos.values())


def test_two_writes_are_one_file_and_the_header_is_padded(tmp_path):
    """Check 2: five metadata keys in any order, the length of the header a multiple of 8, metadata first."""
    keys = {f"key{number}": str(number) for number in range(5)}
    write_tensors(tmp_path / "a", TENSORS, keys)
    write_tensors(tmp_path / "b", dict(reversed(TENSORS.items())), dict(reversed(keys.items())))
    content = (tmp_path / "a").read_bytes()
    assert content == (tmp_path / "b").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    assert length % 8 == 0 and content[8:].startswith(b'{"__metadata__":{"key0":"0","key1":"1"')


def test_metadata_that_is_no_text_is_refused_on_both_ways(tmp_path):
    """Check 3: a number is never made a text by itself, neither when written nor when read."""
    with pytest.raises(BadConfig, match=r"metadata\['seed'\] is 1"):
        write_tensors(tmp_path / "a", TENSORS, {"seed": 1})  # type: ignore[dict-item]
    assert not (tmp_path / "a").exists()
    text = json.dumps({"__metadata__": {"seed": 1}}).encode()
    (tmp_path / "b").write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(BadFile, match="metadata holds something that is not text"):
        read_header(tmp_path / "b")


def test_slices_of_one_tensor_are_written_each_by_itself(tmp_path):
    """Check 4: the library refuses tensors on one storage; ours writes the bytes of each, cloned or not."""
    whole = torch.arange(12.0).reshape(6, 2)
    q, k, v = whole.split(2)
    shared = {"q": q, "k": k, "v": v, "whole": whole}
    with pytest.raises(RuntimeError, match="share memory"):
        save_file(shared, tmp_path / "theirs")
    write_tensors(tmp_path / "ours", shared, {})
    write_tensors(tmp_path / "clones", {name: one.clone() for name, one in shared.items()}, {})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "clones").read_bytes()
    assert torch.equal(load_file(tmp_path / "ours")["k"], k)


@pytest.mark.parametrize(("pad", "reverse"), [(0, True), (3, False), (4096, True)])
def test_headers_of_other_writers_say_the_same(tmp_path, pad, reverse):
    """Check 5: metadata in another order, another padding, spaces between: read alike, and written as one file.

    A whole foreign file is the same byte by byte only if its header is kept; what must not change is the payload, the
    types and shapes, and the table of metadata.
    """
    write_tensors(tmp_path / "ours", TENSORS, {f"key{number}": "é" for number in range(5)})
    foreign = rewritten(tmp_path / "ours", tmp_path / "foreign", pad=pad, reverse=reverse)
    header, tensors = read_tensors(foreign)
    assert foreign.read_bytes() != (tmp_path / "ours").read_bytes()
    assert payload_hash(tensors) == payload_hash(TENSORS)
    write_tensors(tmp_path / "again", tensors, header.metadata)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "ours").read_bytes()


def test_numbers_are_read_without_the_tensors_beside_them(tmp_path):
    file = tmp_path / "a"
    write_tensors(file, {"alpha": torch.tensor([4.0]).half(), "x": torch.zeros(9), "n": torch.tensor(3)}, {})
    header, numbers = read_numbers(file)
    assert {name: (float(one), one.dtype, tuple(one.shape)) for name, one in numbers.items()} == {
        "alpha": (4.0, torch.float16, (1,)),
        "n": (3.0, torch.int64, ()),
    }
    assert set(header.tensors) == {"alpha", "x", "n"}


def test_a_pattern_that_names_no_layer_is_said_by_inspect_and_by_load(tmp_path):
    """Check 9: an alpha_pattern that matches nothing is named."""
    model = torch.nn.Sequential(torch.nn.Linear(8, 8))
    studio.attach(model, studio.LoRA(rank=2, targets=("0",)))
    folder = studio.save(model, tmp_path / "peft", format="peft")
    fields = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(fields | {"alpha_pattern": {"^to_q": 8}}))
    said = "alpha_pattern '^to_q' matches no layer of the file"
    assert said in studio.inspect(folder).suspicions
    studio.detach(model)
    assert said in studio.load(model, folder).notes
