"""Paths that are no adapter file: pipes, devices, names, and files of sizes that nobody trained."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from benchmarks.reliability._subject import load_and_look, packed, raw, write_raw

__all__ = ["places"]

CONFIG = b'{"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["lin"]}'
PAIR = {"base_model.model.lin.lora_A.weight": torch.ones(2, 8), "base_model.model.lin.lora_B.weight": torch.ones(12, 2)}


def places(folder: Path, long: bool) -> Iterator[tuple[str, Callable[[], str]]]:
    """Makes the paths, and says what to do with each.

    Args:
        folder: where. long: also files of tens of megabytes.
    """
    folder.mkdir(parents=True)
    for name, path in (*special(folder), *named(folder), *sized(folder), *(large(folder) if long else ())):
        for pickled in (False, True):
            yield f"{name}{', pickled' if pickled else ''}", partial(_refused, path, pickled)


def _refused(path: Path, pickled: bool) -> str:
    return load_and_look(path, None, pickled=pickled) or "it loads"


def special(folder: Path) -> Iterator[tuple[str, Path]]:
    """Pipes, devices, links and folders, by themselves and in a PEFT folder."""
    for name in ("adapter_model.safetensors", "adapter_config.json", "adapter_model.bin"):
        for kind, make in (("pipe", os.mkfifo), ("folder", os.mkdir), ("zeros", _zeros), ("dangling", _dangling)):
            inside = folder / f"{kind}-{name}"
            write_raw(inside / "adapter_config.json", CONFIG)
            write_raw(inside / "adapter_model.safetensors", packed(PAIR))
            if name.endswith(".bin"):
                (inside / "adapter_model.safetensors").unlink()
            else:
                (inside / name).unlink()
            make(inside / name)
            if (kind, name) != ("dangling", "adapter_config.json"):
                yield f"{name} is a {kind}", inside
    for suffix in (".safetensors", ".pt"):
        for kind, make in (("pipe", os.mkfifo), ("zeros", _zeros), ("dangling", _dangling), ("loop", _loop)):
            make(folder / f"{kind}{suffix}")
            yield f"a {kind}{suffix}", folder / f"{kind}{suffix}"
    yield "an empty folder", Path(os.path.realpath(folder / "zeros-adapter_config.json" / "..")) / "nothing"


def named(folder: Path) -> Iterator[tuple[str, Path]]:
    """Names that no system takes, or that a terminal would act on."""
    for name in ("a" * 5000, "a\0b", "\x1b]0;x\x07.safetensors", "x/" * 3000, "", "~nobody/x", "caf\udce9.safetensors"):
        yield f"name {name[:20]!a}", folder / name


def sized(folder: Path) -> Iterator[tuple[str, Path]]:
    """Files that say little and want much."""
    for name, count in (("sparse", 5 * 10**9), ("sparse-small", 3 * 10**8)):
        entry = {"dtype": "F32", "shape": [2, count // 2], "data_offsets": [0, 4 * count]}
        file = write_raw(folder / f"{name}.safetensors", raw(json.dumps({"lin.lora_A.weight": entry}).encode()))
        os.truncate(file, file.stat().st_size + 4 * count)
        yield f"{name} of {4 * count:,} bytes", file
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    for name, shape in (("axes", [1] * 1_000_000), ("digits", [int("1" * 4200)] * 100), ("nothing", [0, 2**62, 2**62])):
        text = json.dumps({"x": {**entry, "shape": shape}}).encode()
        yield name, write_raw(folder / f"{name}.safetensors", raw(text, b"\0" * 4))
    yield from many(folder)


def many(folder: Path) -> Iterator[tuple[str, Path]]:
    """Many keys, long keys, and one that stands twice."""
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    for name, keys in (
        ("1e5 unknown keys", [f"key{number}.strange" for number in range(100_000)]),
        ("1e5 layers", [f"layer{number}.lora_A.weight" for number in range(100_000)]),
        ("a name of dots", ["." * 200_000]),
        ("names of dots", ["." * 900 + str(number) for number in range(3000)]),
    ):
        yield (
            name,
            write_raw(
                folder / f"{len(keys)}-{len(keys[0])}.safetensors", raw(json.dumps(dict.fromkeys(keys, empty)).encode())
            ),
        )
    text = json.dumps(dict.fromkeys((f"key{number}" for number in range(100_000)), empty))
    yield (
        "a duplicate behind 1e5 names",
        write_raw(folder / "twice.safetensors", raw((text[:-1] + f', "key99999": {json.dumps(empty)}}}').encode())),
    )
    bomb = folder / "bomb.pt"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed_file:
        packed_file.writestr("archive/data.pkl", b"\0" * 50_000_000)
    yield "a zip that unpacks to more", bomb


def large(folder: Path) -> Iterator[tuple[str, Path]]:
    """Headers and configs of tens of megabytes."""
    for name, part in (("lists", b"[],"), ("tables", b"{},"), ("numbers", b"1,")):
        text = b'{"x":[' + part * (95_000_000 // len(part)) + b"0]}"
        yield f"95 MB header of {name}", write_raw(folder / f"95-{name}.safetensors", raw(text))
        text = b'{"x":[' + part * (16_000_000 // len(part)) + b"0]}"
        yield f"16 MB header of {name}", write_raw(folder / f"16-{name}.safetensors", raw(text))
        for size in (60_000_000, 4_000_000):
            inside = folder / f"config-{size}-{name}"
            write_raw(inside / "adapter_model.safetensors", packed(PAIR))
            write_raw(inside / "adapter_config.json", CONFIG[:-1] + b', "x": [' + part * (size // len(part)) + b"0]}")
            yield f"a config of {size:,} bytes of {name}", inside


def _zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _dangling(path: Path) -> None:
    path.symlink_to("nowhere-at-all")


def _loop(path: Path) -> None:
    path.symlink_to(path.name)
