"""The texts of a picture: what made it, put together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from studio.adapters import adapters
from studio.adapters.contract.strength import as_strength
from studio.families import Base
from studio.pipelines.metadata import AdapterUse, strength_to_json, to_json
from studio.pipelines.parameters import parameters_text
from studio.pipelines.pictures import picture_facts
from studio.pipelines.request import Request
from studio.pipelines.schedulers import Sampler
from studio.pipelines.sources import Source, state_hash
from studio.pipelines.word_uses import words_said
from studio.version import __version__

__all__ = ["describe"]


def describe(
    base: Base,
    sources: Mapping[str, Source],
    request: Request,
    sampler: Sampler,
    *,
    rows: int,
    prompt: str,
    negative: str,
    resolved: tuple[str, str],
) -> dict[str, str]:
    """Returns the texts ``parameters`` and ``studio`` of one picture.

    Args:
        base: the base that made it.
        sources: the files of the adapters, by name.
        request: what was asked for.
        sampler: what denoised.
        rows: images per batch.
        prompt: the prompt as it was written, tags included.
        negative: the negative prompt as it was written.
        resolved: what the prompt and the negative prompt became by their choices.
    """
    family, uses, digest = base.family, _uses(base, sources, request), _base_hash(base)
    words = words_said(base.pipe, sources, request.prompt, request.negative)
    parameters = parameters_text(
        text=request.prompt, negative=request.negative, fields=_fields(base, digest, request, sampler),
        adapters=uses, encoders=family.readers, denoiser=family.denoiser, embeddings=words,
    )  # fmt: skip
    dtype = str(base.pipe.components[family.denoiser].dtype).removeprefix("torch.")
    content = to_json(
        version=__version__,
        base={"id": base.id, "family": family.name, "hash": digest, "dtype": dtype, **_quantization(base)},
        request={
            "prompt": prompt,
            "negative": negative,
            **dict(zip(("resolved", "resolved_negative"), resolved, strict=True)),
            "seed": request.seed,
            "steps": request.steps,
            "guidance": float(request.guidance),
            "width": request.width,
            "height": request.height,
            **_where_told(request),
            **base.saving.changes,
        },
        scheduler=sampler.record,
        rows=rows,
        device=base.pipe._execution_device.type,
        adapters=uses,
        embeddings=words,
    )
    return {"parameters": parameters, "studio": content}


def _where_told(request: Request) -> dict[str, Any]:
    """What only some pictures have: an embedded guidance, a picture that they started from, a second pass."""
    embedded = {} if request.embedded is None else {"embedded_guidance": float(request.embedded)}
    start = {} if request.given is None else {"start": picture_facts(request.given)}
    return embedded | start | ({} if request.upscale is None else {"upscale": asdict(request.upscale)})


def _fields(base: Base, digest: str | None, request: Request, sampler: Sampler) -> dict[str, str | int | float]:
    """What stands behind the prompts in A1111's text, in its order."""
    schedule = {"Schedule type": sampler.schedule} if sampler.schedule else {}
    model = {"Model hash": digest[:10]} if digest else {}
    return {
        "Steps": request.steps,
        "Sampler": sampler.title,
        **schedule,
        "CFG scale": request.guidance,
        **({} if request.embedded is None else {"Distilled CFG Scale": request.embedded}),
        "Seed": request.seed,
        "Size": f"{request.width}x{request.height}",
        **model,
        "Model": base.id,
        **_strengths(request),
        "Version": f"adapter-studio {__version__}",
    }


def _strengths(request: Request) -> dict[str, str | int | float]:
    """How much is drawn anew, of a given picture or in a second pass: A1111 has one field for both."""
    upscale, given = request.upscale, request.given
    if upscale is None:
        return {} if given is None else {"Denoising strength": given.strength}
    steps = {} if upscale.steps is None else {"Hires steps": upscale.steps}
    twice = {"Denoising strength": upscale.strength, "Hires upscale": upscale.factor, **steps}
    return {**twice, "Hires upscaler": "Lanczos"}


def _quantization(base: Base) -> dict[str, str]:
    return {"quantize": base.quantization} if base.quantized else {}


def _base_hash(base: Base) -> str | None:
    """The base's hash; ``None`` if something is baked into the weights and it was not taken before."""
    known = "hash" in vars(base) or not any(info.baked for info in adapters(base.pipe).values())
    return base.hash if known else None


def _uses(base: Base, sources: Mapping[str, Source], request: Request) -> list[AdapterUse]:
    """The adapters that acted, in the order in which they stand on the pipeline: it decides the last bits of a sum."""
    uses = []
    for name, info in adapters(base.pipe).items():
        strength = info.strength if request.blend is None else as_strength(request.blend.get(name, 0.0))
        content = strength_to_json(strength)
        if content == 0.0:
            continue
        source, baked = sources.get(name), info.baked or request.bake
        if source is None:
            use = AdapterUse(name=name, strength=content, baked=baked, state=state_hash(base.pipe, info))
        else:
            use = AdapterUse(name=name, strength=content, baked=baked, **vars(source))
        uses.append(use)
    return uses
