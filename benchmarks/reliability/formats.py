"""Attack: adapter files of every format, changed at random; what loads must be what the formulas make of the file."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import struct
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

import studio
from benchmarks.reliability._changes import changed, doubled
from benchmarks.reliability._good import CONFIG, Good, Words, goods, words
from benchmarks.reliability._subject import packed, write_raw
from benchmarks.reliability._worlds import World
from benchmarks.reliability.mutations import damaged
from benchmarks.reliability.trial import Trial, attempt
from studio.files.embedding_file import read_embeddings

__all__ = ["LONG", "SHORT", "TITLE", "right", "trials"]

TITLE: Final = "adapter files of every format, changed at random"
SHORT: Final = 400
LONG: Final = 20_000
SEED: Final = 17
SECONDS: Final = 5.0
BYTES: Final = 1_000_000_000
LOOKED_AT: Final = 6  # layers of a file whose change is computed in a trial
WORDS: Final = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool, "C64": torch.complex64, "F8_E4M3": torch.float8_e4m3fn,
}  # fmt: skip


def trials(folder: Path, long: bool) -> Iterator[Trial]:
    """Changes one file after the other.

    Args:
        folder: where they are made. long: as many as the page states.
    """
    draw = random.Random(SEED)
    files = goods()
    learned = words()
    for good in files:
        yield attempt(f"unchanged: {good.name}", partial(_loaded, good, packed(good.tensors), folder, must=True))
    for word in learned:
        yield attempt(
            f"unchanged: {word.name}", partial(_read, word, packed(word.tensors, word.metadata), folder, True)
        )
    for number in range(LONG if long else SHORT):
        if number % 10 == 9:
            word = draw.choice(learned)
            content, what = _spoiled(word.tensors, word.metadata, word.known, draw)
            yield _within(attempt(f"{number}: {word.name}: {what}", partial(_read, word, content, folder)))
            continue
        (good,) = draw.choices(files, weights=[file.share for file in files])
        content, what = _spoiled(good.tensors, {"format": "pt"}, sorted(good.world.names), draw)
        yield _within(attempt(f"{number}: {good.name}: {what}", partial(_loaded, good, content, folder)))


def _within(trial: Trial) -> Trial:
    """The same trial, a fault where it took more than a file of this size may."""
    if not trial.fault and trial.seconds > SECONDS:
        return dataclasses.replace(trial, fault=f"it took {trial.seconds:.0f} s")
    if not trial.fault and trial.memory > BYTES:
        return dataclasses.replace(trial, fault=f"it took {trial.memory / 1e9:.1f} GB")
    return trial


def _spoiled(
    tensors: dict[str, Tensor], metadata: dict[str, str], known: Sequence[str], draw: random.Random
) -> tuple[bytes, str]:
    """Changes of what a file says (most often), or of its bytes."""
    kind = draw.random()
    if kind < 0.15:
        return damaged(packed(tensors, metadata), draw)
    if kind < 0.18:
        return doubled(tensors, metadata, draw), "doubled"
    content, what = changed((tensors, metadata), known, draw)
    return packed(*content), what


def _read(word: Words, content: bytes, folder: Path, must: bool = False) -> str:
    """Reads a file of learned words; returns what is wrong with the outcome, "" if nothing.

    Args:
        word: what it was. content: its bytes. folder: where it is put. must: whether it may not be refused.

    Raises:
        StudioError: it is refused, which is right for all but good files.
    """
    file = write_raw(folder / word.name.replace(" ", "-") / "cat.safetensors", content)
    with contextlib.suppress(studio.StudioError):
        studio.inspect(file)
    try:
        found = read_embeddings(file)
    except studio.StudioError as error:
        if must:
            return f"a good file is refused: {error}"
        raise
    tensors = _tensors(content)
    if tensors is None:
        return "it loads, and no other reader can read it"
    used = [key for one in found for key in one.keys.values()]
    if sorted(used) != sorted(tensors):
        return f"{len(used)} of {len(tensors)} keys are used, silently"
    for one in found:
        for label, key in one.keys.items():
            vectors, own = one.vectors[label], tensors[key]
            if vectors.dim() != 2 or not torch.isfinite(vectors.float()).all():
                return f"{key} gives vectors of {tuple(vectors.shape)}, or NaN"
            if vectors.dtype != own.dtype or not torch.equal(vectors.reshape(-1), own.reshape(-1)):
                return f"{key} gives other vectors than it has"
    return ""


def _loaded(good: Good, content: bytes, folder: Path, must: bool = False) -> str:
    """Loads a file; returns what is wrong with the outcome, "" if nothing.

    Args:
        good: what it was. content: its bytes. folder: where it is put. must: whether it may not be refused.

    Raises:
        StudioError: it is refused, which is right for all but good files.
    """
    place = folder / good.name.replace(" ", "-").replace(",", "")
    file = write_raw(place / ("adapter_model.safetensors" if good.folder else "a.safetensors"), content)
    if good.folder:
        write_raw(place / "adapter_config.json", json.dumps(CONFIG).encode())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(studio.StudioError):
            found = studio.inspect(file)
            f"{found.metadata} {found.facts} {found.unread}".encode()
        model = good.world.model
        try:
            report = studio.load(model, place if good.folder else file, name="x")
        except studio.StudioError as error:
            if must:
                return f"a good file is refused: {error}"
            raise
        try:
            return right(good.world, content, report)
        finally:
            studio.detach(model)


def right(world: World, content: bytes, report: Any) -> str:
    """Says what is wrong with a file that was loaded, "" if nothing.

    Args:
        world: the base. content: the file's bytes. report: what loading it gave.
    """
    tensors = _tensors(content)
    if tensors is None:
        return "it loads, and no other reader can read it"
    meaning = world.meaning(tensors)
    if meaning is None:
        return "it loads, and what it says has no meaning"
    if report.ignored or set(report.applied) != tensors.keys():
        return f"{len(report.applied)} of {len(tensors)} keys are applied, silently"
    if not set(report.sites) <= meaning.keys():
        return f"it changes {sorted(set(report.sites) - meaning.keys())[0]}, which is not in it"
    paths = sorted(meaning)
    draw = random.Random(len(content))
    for path in draw.sample(paths, min(LOOKED_AT, len(paths))):
        fault = _differs(world, path, *meaning[path], _rounded(tensors))
        if fault:
            return fault
    return ""


def _rounded(tensors: Mapping[str, Tensor]) -> float:
    """How far fp32 may be off, as a part of the largest output: ``(I + Q)(I − Q)⁻¹`` is as ill-conditioned as ‖Q‖."""
    skews = [
        float(one.float().abs().max()) for key, one in tensors.items() if key.endswith("oft_blocks") and one.numel()
    ]
    return max([1e-4, *(1e-6 * size for size in skews)])


def _differs(world: World, path: str, weight: Tensor, bias: Tensor | None, rounded: float) -> str:
    layer: Any = world.model.get_submodule(path)
    shape = (3, layer.in_features) if isinstance(layer, torch.nn.Linear) else (1, layer.in_channels, 5, 5)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = layer(x).double()
        whole = world.weight(path) + weight
        own = None if layer.bias is None else layer.bias.double() + (0 if bias is None else bias)
        if isinstance(layer, torch.nn.Linear):
            wanted = torch.nn.functional.linear(x.double(), whole, own)
        else:
            wanted = torch.nn.functional.conv2d(x.double(), whole, own, layer.stride, layer.padding)
    largest = float(wanted.abs().max())
    if not bool(torch.isfinite(found).all()):
        return f"{path} computes NaN or infinities"
    if not torch.allclose(found, wanted, rtol=1e-3, atol=rounded * largest + 1e-5):
        return f"{path} computes something else: off by {float((found - wanted).abs().max()):.1e} of {largest:.1e}"
    return ""


def _tensors(content: bytes) -> dict[str, Tensor] | None:
    """The tensors of a file by the plainest reader there is; None where it cannot be read."""

    def single(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            raise ValueError
        return table

    try:
        (length,) = struct.unpack("<Q", content[:8])
        head: Mapping[str, Any] = json.loads(content[8 : 8 + length], object_pairs_hook=single)
        made: dict[str, Tensor] = {}
        for name, entry in head.items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            data = bytearray(content[8 + length + begin : 8 + length + end])
            dtype = WORDS[entry["dtype"]]
            empty = torch.empty(0, dtype=dtype)
            flat = torch.frombuffer(data, dtype=dtype) if data else empty
            made[name] = flat.reshape(entry["shape"])
        return made
    except (ValueError, KeyError, TypeError, RuntimeError, RecursionError, struct.error, AttributeError):
        return None
