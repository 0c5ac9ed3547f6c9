"""What the library saves, each way by name: adapters in every form, pictures."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import torch

import studio
from benchmarks.reliability._forked import End, ran
from benchmarks.reliability._jobs import contents
from benchmarks.reliability._subject import Net

__all__ = ["SAVES", "Save"]


@dataclass(frozen=True)
class Save:
    """A way to save.

    Args:
        name: in words.
        patterns: of the files that are written.
        save: saves to a folder what has a number.
    """

    name: str
    patterns: tuple[str, ...]
    save: Callable[[Path, int], object]

    def end(
        self, place: Path, number: int, prepare: Callable[[], None] = lambda: None, *, learn: bool = False
    ) -> End:  # fmt: skip
        """Saves in a process of its own; see :func:`ran`."""

        def action() -> None:
            try:
                self.save(place, number)
            except studio.StudioError as refused:
                sys.stderr.write(f"error: {' '.join(str(refused).split())}\n")
                sys.exit(refused.exit_code)

        return ran(action, prepare=prepare, learn=learn)

    def whole(self, beside: Path, number: int) -> dict[str, bytes]:
        """What it writes when nothing happens to it."""
        return _whole(self, beside.parent, number)


@cache
def _whole(save: Save, folder: Path, number: int) -> dict[str, bytes]:
    place = folder / f"{save.name}-{number}"
    place.mkdir()
    end = save.end(place, number, learn=True)
    assert end.code == 0, end.said
    return contents(place)


def _shaken(number: int) -> Net:
    model = Net()
    studio.attach(model, studio.LoRA(rank=2, alpha=2.0 * number, targets=("lin", "out")))
    generator = torch.Generator().manual_seed(number)
    with torch.no_grad():
        for tensor in studio.state(model).values():
            tensor += torch.randn(tensor.shape, generator=generator)
    return model


def _file(place: Path, number: int) -> None:
    studio.save(_shaken(number), place / "adapter.safetensors")


def _folder(place: Path, number: int) -> None:
    studio.save(_shaken(number), place / "adapter")


def _as_peft(place: Path, number: int, *, safe: bool = True) -> None:
    from studio.peft import LoraConfig, get_peft_model

    torch.manual_seed(number)
    config = LoraConfig(r=2, lora_alpha=2 * number, target_modules=["lin", "out"], init_lora_weights=False)
    get_peft_model(Net(), config).save_pretrained(place / "adapter", safe_serialization=safe)


def _as_bin(place: Path, number: int) -> None:
    _as_peft(place, number, safe=False)


def _picture(place: Path, number: int) -> None:
    from PIL import Image

    from studio.pipelines import save_png

    save_png(Image.new("RGB", (64, 64), (number, 0, 0)), place / "picture.png")


SAVES: Final = (
    Save("file", ("*/.adapter.safetensors.*",), _file),
    Save("folder", ("*adapter_config.json*", "*adapter_model.safetensors*"), _folder),
    Save("studio.peft", ("*adapter_config.json*", "*adapter_model.safetensors*", "*README.md*"), _as_peft),
    Save("studio.peft, torch's file", ("*adapter_model.bin*",), _as_bin),
    Save("picture", ("*picture.png*",), _picture),
)
