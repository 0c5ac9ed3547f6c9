"""Every method in every format of every family, there and back: ``python -m benchmarks.conversions [FAMILY ...]``.

A cell is one method in one format, on layers of a denoiser of one family: some that are one layer natively (``qkv``),
and one by itself. Its file A is converted to every other format and back. What becomes of it is one of four:

* *exact*: the file that comes back is A, each tensor to the bit and in its dtype;
* *same change*: ``ΔW`` comes back, in other factors, where layers of other alphas are one natively;
* *as* another method, where the format's programs have the same change under that name (AdaLoRA as a LoRA);
* refused, by a sentence that says why, and no file is left.

``ΔW`` of every file on the way, computed in float64 from what is read out of it, is that of the adapter that it was
made from. The outcomes are kept in ``benchmarks/conversions.json``; docs/conversions.md is made from them.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import studio
from benchmarks.conversions_page import PAGE, page
from benchmarks.denoisers import DENOISERS
from studio.adapters import METHODS, AdapterConfig, adapters, install
from studio.errors import DoesNotFit
from studio.files import FORMATS, common_formats
from studio.files.convert import convert
from studio.files.loose import Loose, read_loose, write_loose

__all__ = ["KEPT", "ROWS", "main", "outcomes"]

KEPT: Final = Path(__file__).with_suffix(".json")
MOST: Final = 1e-6
"""How far ΔW may be from what it was, as a part of it."""

ROWS: Final[Mapping[str, AdapterConfig]] = {
    **{name: config.example() for name, config in METHODS.items() if "linear" in config.adapter.kinds},
    "lora, ranks and alphas by layer": studio.LoRA(
        rank=4, alpha=3, alpha_pattern={"*to_k": 1.5}, rank_pattern={"*to_v": 2}
    ),
    "dora, by inputs": studio.DoRA(rank=2, alpha=3, axis="inputs"),
    "ia3, weights alone": studio.IA3(with_bias=False),
    "oft, of outputs": studio.OFT(block_size=4, outputs=True),
    "boft, of outputs": studio.BOFT(block_size=2, factors=2, outputs=True),
}
"""Row -> config; methods for whole language models have no layers, and their files one form."""


def outcomes(family: str, rows: Mapping[str, AdapterConfig] = ROWS) -> dict[str, dict[str, str]]:
    """Converts every row on a family's denoiser, and returns row -> format -> what became of it.

    Args:
        family: of FAMILIES. rows: name -> config.

    Raises:
        AssertionError: a file changes something else than it was made from, or comes back as another one.
    """
    base = DENOISERS[family].make()
    targets = tuple(_layers(base))
    found = {}
    for row, config in rows.items():
        loose = _made(base, dataclasses.replace(config, targets=targets))
        with tempfile.TemporaryDirectory() as folder:
            found[row] = dict(_row(loose, Path(folder)))
    return found


def _layers(base: nn.Module) -> Iterator[str]:
    """Queries, keys and values of the first attention, and the first layer after them."""
    linear = [path for path, module in base.named_modules() if isinstance(module, nn.Linear)]
    of_attention = [path for path in linear if path.endswith(("to_q", "to_k", "to_v"))][:3]
    yield from of_attention
    yield next(path for path in linear if path.endswith("to_out.0") and path.rpartition(".to_")[0] in of_attention[0])


def _made(base: nn.Module, config: AdapterConfig) -> Loose:
    """An adapter of random numbers, off the model."""
    studio.attach(base, config)
    draws = torch.Generator().manual_seed(0)
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in studio.state(base).items():
        path, _, name = key.rpartition(".")
        moved = tensor.detach().clone()
        moved += 0.1 * torch.randn(moved.shape, generator=draws) if moved.is_floating_point() else 0
        layers.setdefault(path, {})[name] = moved
    chosen = adapters(base)["default"].config
    studio.detach(base)
    return Loose(
        file=Path("made"),
        model=base,
        base="made",
        name="dog",
        format="diffusers",
        config=chosen,
        layers=layers,
        facts={},
    )


def _row(loose: Loose, folder: Path) -> Iterator[tuple[str, str]]:
    held: dict[str, Path] = {}
    for format in common_formats():
        place = folder / (format if FORMATS[format].folder else f"{format}.safetensors")
        try:
            held[format] = write_loose(loose, place, format=format)
        except DoesNotFit as refusal:
            assert not place.exists()
            yield format, str(refusal)
    wanted = changes(loose)
    for format, file in held.items():
        found = read_loose(file, base=loose.model)
        assert apart(changes(found), wanted) <= MOST, format
        if found.config.method != loose.config.method:
            yield format, f"as {found.config.method}"
            continue
        others = [other for other in held if other != format]
        same = all([_comes_back(loose.model, file, format, other) for other in others])
        yield format, "exact" if same else "same change"


def _comes_back(base: nn.Module, file: Path, format: str, other: str) -> bool:
    """Whether a file comes back from another format to the bit; its change does, or it is an error."""
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        there, back = (
            Path(folder) / (name if FORMATS[one].folder else f"{name}.safetensors")
            for name, one in (("there", other), ("back", format))
        )
        convert(file, there, format=other, base=base)
        convert(there, back, format=format, base=base)
        before, between, after = (read_loose(one, base=base) for one in (file, there, back))
        wanted = changes(before)
        assert apart(changes(between), wanted) <= MOST, f"{format} to {other}"
        assert apart(changes(after), wanted) <= MOST, f"{format} to {other} and back"
        return between.config.method != before.config.method or _equal(file, back)


def _equal(one: Path, other: Path) -> bool:
    first, second = (load_file(file if file.is_file() else file / "adapter_model.safetensors") for file in (one, other))
    return first.keys() == second.keys() and all(
        torch.equal(first[key], second[key]) and first[key].dtype == second[key].dtype for key in first
    )


def changes(loose: Loose) -> dict[str, Tensor]:
    """Path -> what the adapter adds to its layer's output for each input alone, float64: ``ΔWᵀ``, and the bias's part.

    Shapes: ``(cols + 1, rows)``; the last row is of the input 0.
    """
    layers = {path: loose.model.get_submodule(path) for path in loose.layers}
    little = nn.Module()
    for path, layer in layers.items():
        *heads, last = path.split(".")
        where = little
        for head in heads:
            if head not in where._modules:
                where.add_module(head, nn.Module())
            where = where.get_submodule(head)
        where.add_module(last, copy.deepcopy(layer).double())
    inputs = {
        path: torch.cat([torch.eye(layer.in_features), torch.zeros(1, layer.in_features)]).double()
        for path, layer in layers.items()
    }
    with torch.no_grad():
        before = {path: little.get_submodule(path)(x) for path, x in inputs.items()}
        install(little, loose.config, loose.layers, name="dog")
        return {path: little.get_submodule(path)(x) - before[path] for path, x in inputs.items()}


def apart(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> float:
    """The largest ``‖ΔW' − ΔW‖ / ‖ΔW‖`` of all layers."""
    assert found.keys() == wanted.keys()
    return max(float((found[path] - change).norm() / change.norm()) for path, change in wanted.items())


def main() -> int:
    """Converts the families that were asked for, or all, and writes the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.conversions")
    parser.add_argument("families", nargs="*", help="of FAMILIES; none: all image families")
    asked = parser.parse_args().families or list(DENOISERS)
    kept = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
    kept |= {family: outcomes(family) for family in asked}
    KEPT.write_text(json.dumps(kept, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    PAGE.write_text(page(kept), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
