"""The programs that a file is written for: the format that each reads, and what it would not read as it is meant.

A1111 and ComfyUI read kohya's files, with an alpha beside every pair. diffusers reads its own single files, of which
``load_lora_weights`` hands LoRA and DoRA to PEFT, for a pipeline's denoiser and its CLIP encoders; a file with anything
else it refuses, or leaves that out without a word. Rank and alpha of every layer stand in the file's metadata: in
kohya's names diffusers 0.42 takes the most common alpha for all attention layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from studio.adapters.contract.foreign import Peft
from studio.errors import DoesNotFit
from studio.families import Family
from studio.files.loose import Loose
from studio.files.names import Names
from studio.registry import Registry

__all__ = ["PROGRAMS", "Program"]


def _as_it_is(loose: Loose) -> Loose:
    return loose


@dataclass(frozen=True, kw_only=True)
class Program:
    """A program that reads adapter files.

    Attributes:
        title: its name in sentences. format: of FORMATS, in which it reads them.
        meant: an adapter -> the same change as the program reads it; raises DoesNotFit where it reads none or another.
    """

    title: str
    format: str
    meant: Callable[[Loose], Loose] = _as_it_is


def _of_diffusers(loose: Loose) -> Loose:
    """LoRA and DoRA where diffusers looks for them; methods that have the change of a pair as a LoRA.

    Raises:
        DoesNotFit: diffusers would refuse the file, or read another change out of it.
    """
    names = Names(loose.model)
    _check_components(loose, names)
    form = None if len(loose.config.members) > 1 else loose.config.adapter.lycoris.form
    if form is not None:
        loose = loose.changed(*form(loose.config, {path: dict(tensors) for path, tensors in loose.layers.items()}))
    for path in loose.layers:
        _check_layer(loose, names, path)
    return loose


def _check_components(loose: Loose, names: Names) -> None:
    """Refuses layers of a component that diffusers reads no LoRA of."""
    if names.family is None:
        return
    reads = _read_by_diffusers(names.family)
    for path in loose.layers:
        component = names.relative(path)[0]
        if component not in reads:
            only = f"reads LoRAs of {' and '.join(reads)} alone" if reads else "reads no LoRA"
            raise DoesNotFit(
                f"{path} is in {component}, and diffusers' {names.family.pipelines[0]} {only}: it would leave this "
                "out; write it for a1111 or comfyui, or with format='diffusers' for the studio itself"
            )


def _read_by_diffusers(family: Family) -> tuple[str, ...]:
    """The components that the family's pipeline loads LoRAs into: encoders of its list must be CLIP's."""
    import diffusers
    from diffusers.loaders.lora_base import LoraBaseMixin

    pipeline = getattr(diffusers, family.pipelines[0])
    if not issubclass(pipeline, LoraBaseMixin):
        return ()
    return tuple(one for one in pipeline._lora_loadable_modules if one == family.denoiser or one in family.levels)


def _check_layer(loose: Loose, names: Names, path: str) -> None:
    config = loose.config.at(names.paths[path][1])
    peft: Peft = config.adapter.peft
    if not peft.diffusers:
        raise DoesNotFit(
            f"diffusers reads LoRA and DoRA, and {loose.file.name} is of {config.method} at {path}: `studio combine "
            f"{loose.file.name} --rank N` makes a LoRA of it and says what that leaves out; format='diffusers' keeps "
            "it as it is, for the studio"
        )
    site = names.site(path, config.adapter.kinds)
    reason = peft.refusal(site) or peft.differs(site)
    if reason:
        raise DoesNotFit(f"diffusers computes by PEFT, which has no {config.method} like this on {path}: {reason}")
    peft.store(config, {path: site}, {path: loose.layers[path]})


PROGRAMS: Final[Registry[Program]] = Registry("program")
PROGRAMS.add("a1111", Program(title="A1111", format="kohya"))
PROGRAMS.add("comfyui", Program(title="ComfyUI", format="kohya"))
PROGRAMS.add("diffusers", Program(title="diffusers", format="diffusers", meant=_of_diffusers))
PROGRAMS.add("peft", Program(title="PEFT", format="peft"))
