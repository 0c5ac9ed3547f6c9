"""What differs between two sets."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.golden.record import digest


def compare(old: Path, new: Path) -> int:
    """Prints every file that is missing, extra or different; returns the exit code."""
    before, after = files_of(old), files_of(new)
    found = {path: difference(old / path, new / path) for path in sorted(before & after)}
    for path in sorted(before - after):
        print(f"missing: {path}")
    for path in sorted(after - before):
        print(f"extra: {path}")
    for path, what in found.items():
        if what:
            print(f"different: {path}: {what}")
    same = sum(not what for what in found.values())
    counts = {"different": len(found) - same, "missing": len(before - after), "extra": len(after - before)}
    print(f"{same} identical, {', '.join(f'{count} {what}' for what, count in counts.items())}")
    return int(any(counts.values()))


def files_of(folder: Path) -> set[Path]:
    """Returns the files in a folder and below it, as paths in it."""
    return {file.relative_to(folder) for file in folder.rglob("*") if file.is_file()}


def difference(old: Path, new: Path) -> str:
    """Says in what two files differ, or "" if they are the same: in their bytes, a ``.bin`` in its tensors."""
    if old.read_bytes() == new.read_bytes():
        return ""
    if old.suffix in (".safetensors", ".bin"):
        before, after = tensors_of(old), tensors_of(new)
        keys = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
        same = "the header alone" if old.suffix == ".safetensors" else ""
        return f"{len(keys)} of {len(before)} tensors ({', '.join(keys[:4])})" if keys else same
    if old.suffix not in (".txt", ".json", ".jsonl", ".toml", ".md"):
        return "the bytes"
    lines = zip(old.read_text("utf-8").splitlines(), new.read_text("utf-8").splitlines(), strict=False)
    for number, (first, second) in enumerate(lines, 1):
        if first != second:
            return f"line {number}\n    {first[:300]}\n    {second[:300]}"
    return "the length"


def tensors_of(file: Path) -> dict[str, str]:
    """Returns a digest of each tensor in a file."""
    found = load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)
    return {key: digest({key: tensor}) for key, tensor in found.items()}
