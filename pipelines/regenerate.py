"""A picture made again from what it says about itself."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from studio.adapters.contract.mask import MaskLike, as_mask
from studio.errors import BadFile, DoesNotFit, UnknownName
from studio.families import BASES, Base
from studio.families.saving import Saving
from studio.given import given_path
from studio.pipelines.asking import Wanted
from studio.pipelines.image import ImagePipeline
from studio.pipelines.making import read_tags
from studio.pipelines.metadata import read_metadata, strength_from_json, strength_to_json
from studio.pipelines.naming import adapter_file
from studio.pipelines.pictures import given_picture, picture_facts
from studio.pipelines.prompting.escaping import escape_prompt
from studio.pipelines.remarks import Remark
from studio.pipelines.schedulers import sampler_from_record
from studio.pipelines.sources import source_of, state_hash
from studio.pipelines.word_uses import check_words

__all__ = ["as_made", "load_again", "regenerate", "start_of"]


def regenerate(
    picture: str | Path | Image.Image,
    *,
    pipe: ImagePipeline | None = None,
    base: str | Path | Any | None = None,
    adapters: Iterable[str | Path] = (),
    image: str | Path | Image.Image | None = None,
    mask: str | Path | Image.Image | None = None,
    masks: Iterable[MaskLike] = (),
    device: torch.device | str | None = None,
    pickled: bool = False,
) -> Image.Image:
    """Makes a picture again: on the same kind of machine, with equal pixels.

    Args:
        picture: a PNG that :func:`save_png` wrote, or a picture of :meth:`ImagePipeline.generate`.
        pipe: a pipeline that has the base and the adapters already; it is given back as it was.
        base: where the base is, unless it is an embedded one.
        adapters: files of the adapters, and folders to look for them in; they are recognised by their hash, whatever
            they are called now.
        image: the picture that it started from, where it started from one. mask: the mask, likewise.
        masks: those of the strengths that act in parts of the picture; they are recognised by their hash.
        device: where to compute.
        pickled: allow ``.pt`` and ``.bin`` files, whose tensors alone are read.

    Returns:
        The picture.

    Raises:
        BadFile: no such picture, one that the studio did not make, or whose text was damaged.
        UnknownName: an adapter, a base or a picture to start from is not among those given.
        DoesNotFit: the base or an adapter has other weights than those that made the picture, the base is quantised
            otherwise, or the picture that it started from is another one.
    """
    content = read_metadata(picture)
    if pipe is None:
        pipe = _open(content, base, device)
        load_again(pipe, content, [given_path(file) for file in adapters], pickled=pickled)
    _check(pipe, content)
    start = start_of(pipe, content, image, mask)
    with as_made(pipe, content, masks) as wanted, warnings.catch_warnings():
        warnings.simplefilter("ignore", Remark)  # was said when it was made
        (made,) = pipe.make([replace(wanted, **start)], batch_size=content["rows"])
    return made.image


@contextlib.contextmanager
def as_made(pipe: ImagePipeline, content: Mapping[str, Any], masks: Iterable[MaskLike] = ()) -> Iterator[Wanted]:
    """Yields what a picture says about itself as one that is wanted, while the pipeline is as it was then.

    Args:
        pipe: which has the picture's adapters; it is given back as it was.
        content: of the picture, from :func:`~studio.pipelines.metadata.read_metadata`. What it started from is not in
            the wanted picture: its text has no more than a hash of that.
        masks: those of the strengths that act in parts of the picture.

    Yields:
        The picture; changed, it is another one that is like it.

    Raises:
        UnknownName: an adapter, or a mask, is not there. DoesNotFit: this diffusers cannot make its scheduler.
    """
    held = {mask.digest: mask for mask in map(as_mask, masks)}
    blend = {use["name"]: strength_from_json(use["strength"], held) for use in content["adapters"]}
    bakes = any(use.get("baked") for use in content["adapters"])
    standing, own = any(info.baked for info in pipe.adapters.values()), pipe.base
    if bakes and not standing:
        pipe.bake(blend)
    try:
        pipe.base = own.sparing(**{field.name: content.get(field.name) or field.default for field in fields(Saving)})
        yield Wanted(
            prompt=content["prompt"], negative=content["negative"] or None, resolved=_resolved(content),
            blend=None if bakes else blend, seed=content["seed"], steps=content["steps"],
            guidance=content["guidance"], embedded_guidance=content.get("embedded_guidance"),
            width=content["width"], height=content["height"],
            scheduler=sampler_from_record(content["scheduler"]), **_again(content),
        )  # fmt: skip
    finally:
        pipe.base = own
        if bakes and not standing:
            pipe.unbake()


def _resolved(content: Mapping[str, Any]) -> tuple[str, str]:
    """What its prompts became by their choices; older pictures were drawn from the texts as they stand."""
    if content.get("resolved") is None:
        return escape_prompt(content["prompt"]), escape_prompt(content["negative"] or "")
    return content["resolved"], content.get("resolved_negative") or ""


def start_of(pipe: ImagePipeline, content: Mapping[str, Any], image: Any, mask: Any) -> dict[str, Any]:
    """Returns what a picture started from, as arguments of generate.

    Args:
        pipe: which draws. content: of the picture. image: that it started from. mask: likewise.

    Raises:
        UnknownName: one is not given. DoesNotFit: one is another than the picture started from.
    """
    wanted = content.get("start")
    if wanted is None:
        return {}
    if image is None or (wanted.get("mask") and mask is None):
        what = "image" if image is None else "mask"
        raise UnknownName(f"the picture was made from another one; give it too: {what}=...")
    given = given_picture(pipe.base, image, mask, wanted["strength"], (content["width"], content["height"]))
    assert given is not None, "there is an image"
    if picture_facts(given) != {key: value for key, value in wanted.items() if value is not None}:
        raise DoesNotFit("the picture was made from another picture or mask than those given; give the right ones")
    return {"image": image, "mask": mask, "strength": wanted["strength"]}


def _again(content: Mapping[str, Any]) -> dict[str, Any]:
    """Its second pass, as arguments of generate."""
    upscale = content.get("upscale")
    if upscale is None:
        return {}
    return {
        "upscale": upscale["factor"], "upscale_strength": upscale["strength"], "upscale_steps": upscale.get("steps")
    }  # fmt: skip


def _open(content: dict[str, Any], base: Any | None, device: torch.device | str | None) -> ImagePipeline:
    made_by = content["base"]
    if base is None and made_by["id"] not in BASES:
        raise UnknownName(
            f"the picture was made by the base {made_by['id']!r}, which is not an embedded one ({', '.join(BASES)}); "
            "say where it is: base=folder"
        )
    return ImagePipeline.open(
        made_by["id"] if base is None else base, dtype=made_by["dtype"], device=device,
        quantize=None if isinstance(base, Base) and base.quantized else made_by.get("quantize"),
    )  # fmt: skip


def load_again(
    pipe: ImagePipeline, content: Mapping[str, Any], places: Sequence[Path], *, pickled: bool = False
) -> list[Path]:
    """Loads a picture's adapters in the order in which they stood: it decides the last bits of a sum; then its words.

    Args:
        pipe: loads them. content: of the picture. places: their files, and folders to look for them in.
        pickled: allow ``.pt`` and ``.bin`` files.

    Returns:
        The places where none of them is.

    Raises:
        UnknownName: one is not among them, or has no file. BadFile: there is no such place. DoesNotFit: it is for
            another base.
    """
    found = {source_of(file).sha256: (file, place) for place in places for file in _files_at(place)}
    used = set()
    for use in (*content["adapters"], *(content.get("embeddings") or ())):
        name, digest = use["name"], use.get("sha256")
        what = "adapter" if "strength" in use else "embedding"
        if what == "embedding" and name in pipe.embeddings:
            continue  # an adapter brought it
        if digest is None:
            raise UnknownName(
                f"the {what} {name!r} of the picture was attached, not loaded from a file; only the pipeline that has "
                "it can make the picture again: pipe=..."
            )
        if digest not in found:
            looked = ", ".join(str(place) for place in places) or "no file was given"
            raise UnknownName(
                f"the {what} {name!r} of the picture ({use['file']}, sha256 {digest[:12]}…) is not among those given "
                f"({looked}); give its file or a folder that holds it: adapters=[...]"
            )
        file, place = found[digest]
        pipe.load(file, name=name, pickled=pickled)
        used.add(place)
    return [place for place in places if place not in used]


def _files_at(place: Path) -> list[Path]:
    place = adapter_file(place)
    if not place.exists():
        raise BadFile(f"there is no adapter file or folder {place}")
    if place.is_file() or (place / "adapter_model.safetensors").is_file():
        return [place]
    folders = sorted(file.parent for file in place.glob("*/adapter_model.safetensors"))
    return [*sorted(place.glob("*.safetensors")), *folders]


def _check(pipe: ImagePipeline, content: dict[str, Any]) -> None:
    made_by = content["base"]
    standing = [info for info in pipe.adapters.values() if info.baked]
    if made_by["hash"] and not standing and pipe.base.hash != made_by["hash"]:
        raise DoesNotFit(
            f"the picture was made by the base {made_by['id']!r} with weights {made_by['hash'][:12]}…, and "
            f"{pipe.base.id!r} has {pipe.base.hash[:12]}…; give the one that made it"
        )
    bits, own = made_by.get("quantize") or "", pipe.base.quantization
    if bits != own:
        raise DoesNotFit(
            f"the picture was made by a base quantised as {bits or 'nothing'}, and {pipe.base.id!r} is quantised as "
            f"{own or 'nothing'}; open it as that one was: quantize={bits or None!r}"
        )
    for use in content["adapters"]:
        name = use["name"]
        info = pipe.adapters.get(name)
        if info is None:
            loaded = ", ".join(pipe.adapters) or "none"
            raise UnknownName(f"the adapter {name!r} of the picture is not loaded (loaded: {loaded})")
        source = pipe.sources.get(name)
        same = source.sha256 == use.get("sha256") if source else state_hash(pipe.pipe, info) == use.get("state")
        if not same:
            raise DoesNotFit(f"the adapter {name!r} on the pipeline is not the picture's: their hashes differ")
    check_words(pipe.pipe, content, (read_tags(pipe.base, text).text for text in _resolved(content)))
    baked = {info.name: strength_to_json(info.strength) for info in standing}
    wanted = {use["name"]: use["strength"] for use in content["adapters"] if use.get("baked")}
    if standing and baked != wanted:
        raise DoesNotFit(f"the pipeline has {baked} baked into its weights, the picture {wanted}; call unbake first")
