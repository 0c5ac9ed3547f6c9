"""kohya's single file, which A1111 and ComfyUI read too: ``lora_unet_<path with underscores>.lora_down.weight``.

The path cannot be told from the flattened name by a rule ("to_q" has an underscore of its own); it is looked up among
the model's layers. Beside each pair stands ``alpha``, a number; without it alpha = rank. Methods other than LoRA are
spelled as LyCORIS does. A text encoder's names have ``text_model`` in them, whatever the library's version.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from torch import Tensor

from studio.adapters.sites.parameter import BARE
from studio.errors import DoesNotFit
from studio.files.components import is_flat
from studio.files.format import FORMATS, Draft, Format, Named, Source
from studio.files.fused import gathered, mixed_ranks
from studio.files.header import write_tensors
from studio.files.names import Names
from studio.files.spelling import first_spelling, is_part

__all__ = ["KOHYA"]


def _split(key: str) -> tuple[str, str] | None:
    module, _, part = key.partition(".")
    part = first_spelling(part)
    return (module, part) if is_part(part) else None


def _settings(source: Source, method: str, components: tuple[str, ...]) -> None:
    return None  # the tensors say everything


def _check(draft: Draft) -> None:
    if not draft.config.adapter.lycoris.tensors:
        raise DoesNotFit(
            f"neither kohya's tools nor LyCORIS have {type(draft.config).__name__}; save with format='diffusers'"
        )
    for path, site in draft.sites.items():
        if site.kind in BARE:
            raise DoesNotFit(f"{path} is a bare parameter, which kohya's format has not; save with format='diffusers'")
    if draft.names.untold:
        raise DoesNotFit(
            f"how kohya's tools name the layers of a {draft.names.untold} is not known here, so no program would find "
            "them in such a file; save with format='diffusers', or 'peft'"
        )
    _check_names(draft.names, draft.sites)


def _check_names(names: Names, paths: Iterable[str]) -> None:
    layers = {
        path: names.native[path].name if names.translates(path, "kohya") and path in names.native else path
        for path in names.paths
    }
    flat = Counter(name for name, _ in {(names.flat(path), layer) for path, layer in layers.items()})
    for path in paths:
        name = names.flat(path)
        if not name:
            raise DoesNotFit(f"kohya's tools have no name for the layer {path}; save with format='diffusers'")
        if flat[name] > 1:
            raise DoesNotFit(
                f"kohya's name for the layer {path}, {name}, is also that of another layer; save with "
                "format='diffusers'"
            )


def _gather(names: Names, layers: Named) -> Named:
    return gathered(names, layers, Names.flat, "kohya")


def _write(file: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str], draft: Draft) -> None:
    write_tensors(file, tensors, metadata | mixed_ranks(metadata, tensors))


KOHYA: Final = FORMATS.add(
    "kohya",
    Format(
        name="kohya",
        title="kohya file",
        dialect="lycoris",
        owns=is_flat,
        split=_split,
        find=Names.find_flat,
        spell=Names.flat,
        settings=_settings,
        write=_write,
        check=_check,
        gather=_gather,
    ),
)
