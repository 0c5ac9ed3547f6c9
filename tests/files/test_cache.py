"""Adapter files that are kept in memory: the same to the bit, never touched by who has them, read anew when changed."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import studio
from studio.errors import DoesNotFit
from studio.files import cache, source
from studio.files.cache import CACHE, Cache, Kept, Stamp, stamp_of
from studio.files.source import open_source
from studio.pipelines import ImagePipeline, sources


@pytest.fixture(autouse=True)
def empty(monkeypatch):
    """No file of another test is kept, and files that were written just now are."""
    CACHE.forget()
    monkeypatch.setattr(cache, "_JUST_NOW", -1)
    monkeypatch.setattr(cache, "_COARSE", -1)
    yield
    CACHE.forget()


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))


def written(folder: Path, name: str = "dog", seed: int = 0, *, dtype: torch.dtype | None = None) -> Path:
    model = net()
    studio.attach(model, studio.LoRA(rank=2, init="gaussian", targets=("0", "1")), name=name, seed=seed)
    return studio.save(model, folder / f"{name}.safetensors", name=name, dtype=dtype)


@pytest.fixture
def reads(monkeypatch) -> list[Path]:
    """The files whose tensors are read from the disk."""
    found = []
    read = source.read_tensors

    def noted(file, *rest):
        found.append(file)
        return read(file, *rest)

    monkeypatch.setattr(source, "read_tensors", noted)
    return found


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_the_second_time_is_the_same_to_the_bit_and_reads_nothing(tmp_path, reads, dtype):
    file = written(tmp_path, dtype=dtype)
    first, second = open_source(file), open_source(file)
    assert reads == [file]
    assert (
        first.infos == second.infos
        and first.metadata == second.metadata
        and list(first.tensors) == list(second.tensors)
    )
    for key, tensor in first.tensors.items():
        assert torch.equal(tensor, second.tensors[key]) and tensor.dtype == second.tensors[key].dtype
        assert second.tensors[key].data_ptr() % 64 == 0  # where torch puts tensors
    assert second.payload is not None and second.payload.agrees()


def test_nothing_that_is_done_to_tensors_reaches_what_is_kept(tmp_path, reads):
    file = written(tmp_path)
    whole = {key: tensor.clone() for key, tensor in open_source(file).tensors.items()}
    for _ in range(2):
        for tensor in open_source(file).tensors.values():
            tensor.zero_()
    model = net()
    studio.load(model, file, name="dog", trainable=True)
    for tensor in studio.state(model, "dog").values():
        tensor.data.fill_(7.0)
    assert all(torch.equal(whole[key], tensor) for key, tensor in open_source(file).tensors.items())
    assert len(reads) == 1


def test_a_changed_file_is_read_anew(tmp_path, reads):
    file, other = written(tmp_path), written(tmp_path, "ink", seed=1)
    before = open_source(file).tensors
    os.utime(other, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    assert other.stat().st_size == file.stat().st_size
    other.replace(file)  # of the same size and time
    after = open_source(file).tensors
    assert len(reads) == 2 and not all(torch.equal(before[key], after[key]) for key in before)
    with file.open("r+b") as stream:  # in its place
        stream.seek(-4, os.SEEK_END)
        stream.write(b"\0\0\x80?")
    last = open_source(file).tensors
    assert len(reads) == 3 and any(not torch.equal(after[key], last[key]) for key in after)
    assert sum(key[0].place == os.path.realpath(file) for key in CACHE._held) == 1


def test_what_was_written_just_now_is_not_kept(tmp_path, reads, monkeypatch):
    monkeypatch.setattr(cache, "_JUST_NOW", 10**9)
    file = written(tmp_path)
    open_source(file)
    open_source(file)
    assert len(reads) == 2 and CACHE.bytes == 0
    time.sleep(1.05)
    open_source(file)
    open_source(file)
    assert len(reads) == 3


def test_links_lead_to_one_file_and_the_name_is_the_callers(tmp_path, reads):
    file = written(tmp_path)
    link = tmp_path / "link.safetensors"
    link.symlink_to(file)
    assert open_source(file).file == file and open_source(link).file == link
    assert reads == [file]


def test_a_check_is_asked_every_time(tmp_path):
    file = written(tmp_path)
    open_source(file)

    def refuse(infos):
        raise DoesNotFit(f"{len(infos)} tensors")

    with pytest.raises(DoesNotFit, match="4 tensors"):
        open_source(file, check=refuse)


def test_the_config_beside_is_read_every_time(tmp_path, reads):
    model = net()
    studio.attach(model, studio.LoRA(rank=2, init="gaussian", targets=("0",)), name="dog")
    folder = studio.save(model, tmp_path / "dog", name="dog", format="peft")
    open_source(folder)
    config = folder / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 2', '"lora_alpha": 4'))
    assert open_source(folder).peft["lora_alpha"] == 4 and len(reads) == 1


def test_the_hashes_of_a_file_are_remembered(tmp_path, monkeypatch):
    file, other = written(tmp_path), written(tmp_path, "ink", seed=1)
    first, hashed = sources.source_of(file), []
    assert first.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    made = sources._hashed
    monkeypatch.setattr(sources, "_hashed", lambda inner: hashed.append(inner) or made(inner))
    assert sources.source_of(file) == first and hashed == []
    other.replace(file)
    assert sources.source_of(file).sha256 == hashlib.sha256(file.read_bytes()).hexdigest() != first.sha256


def test_an_adapter_that_is_loaded_again_acts_the_same(tiny_base, tmp_path, reads):
    pipe = ImagePipeline.open(tiny_base)
    studio.attach(pipe.pipe, studio.LoRA(rank=2, init="gaussian"), name="dog")
    for tensor in studio.state(pipe.pipe, "dog").values():
        tensor.data.normal_(generator=torch.Generator().manual_seed(1))
    file = studio.save(pipe.pipe, tmp_path / "dog.safetensors", name="dog")
    studio.detach(pipe.pipe, "dog")
    pictures, states = [], []
    for _ in range(3):
        pipe.load(file)
        states.append({key: tensor.clone() for key, tensor in studio.state(pipe.pipe, "dog").items()})
        pictures.append(pipe.generate("a dog", steps=2)[0].tobytes())
        pipe.unload("dog")
    assert len(reads) == 1 and len(set(pictures)) == 1
    assert all(torch.equal(states[0][key], state[key]) for state in states for key in states[0])


def test_the_least_recently_used_goes_first(monkeypatch):
    monkeypatch.setenv("STUDIO_LIMITS", "cached-adapter-bytes=10000")
    held, stamps = Cache(), [Stamp(name, 0, 0, 0, 0, 0) for name in "abc"]
    for stamp in stamps[:2]:
        held.put(stamp, "tensors", Kept(stamp.place, bytes(3000)), read_at=1)
    held.get(stamps[0], "tensors")
    held.put(stamps[2], "tensors", Kept("c", bytes(3000)), read_at=1)
    assert [held.get(stamp, "tensors") is None for stamp in stamps] == [False, True, False]
    held.put(stamps[1], "tensors", Kept("b", bytes(20_000)), read_at=1)
    assert held.bytes == 0 and not held.takes(20_000)


def test_without_room_nothing_is_kept(tmp_path, reads, monkeypatch):
    monkeypatch.setenv("STUDIO_LIMITS", "cached-adapter-bytes=1")
    file = written(tmp_path)
    open_source(file)
    open_source(file)
    assert len(reads) == 2 and CACHE.bytes == 0


def test_threads_share_it(tmp_path):
    files = [written(tmp_path, name, seed) for seed, name in enumerate("abcd")]
    wanted = {file: open_source(file).tensors for file in files}
    wrong = []

    def load(file):
        for _ in range(20):
            found = open_source(file).tensors
            if not all(torch.equal(found[key], wanted[file][key]) for key in found):
                wrong.append(file)

    threads = [threading.Thread(target=load, args=(file,)) for file in files * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_file_that_is_gone_is_not_there(tmp_path):
    file = written(tmp_path)
    open_source(file)
    file.unlink()
    assert stamp_of(file) is None
    with pytest.raises(studio.errors.BadFile, match="there is no file"):
        open_source(file)
