"""Which files of a folder or a repository are needed: small ones, and weights in safetensors, once.

A selection takes the names of all files and a function that reads a small one, and returns the names of those that are
needed. What cannot be used is refused with a sentence that completes "the folder ...".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, Final, Protocol

from studio.errors import BadFile
from studio.given import parse_json

__all__ = [
    "INDEX",
    "USUAL_ADAPTER",
    "Read",
    "Selection",
    "adapter_files",
    "config_files",
    "has_weights",
    "inside",
    "language_files",
    "one_file",
    "parts_of",
    "pipeline_files",
    "read_index",
    "variant_of",
    "weight_files",
]

Read = Callable[[str], bytes]

INDEX: Final = "model_index.json"
USUAL_ADAPTER: Final = "pytorch_lora_weights.safetensors"
_SMALL: Final = (".json", ".txt", ".model", ".jinja")
_PICKLES: Final = (".bin", ".ckpt", ".pt", ".pth", ".h5", ".msgpack")
_WEIGHTS: Final = re.compile(
    r"(?:diffusion_pytorch_model|model)(?P<variant>\.fp16)?(?:-(?P<shard>\d{5})-of-(?P<shards>\d{5}))?\.safetensors"
)
_WEIGHTLESS: Final = re.compile(r"Tokenizer|Processor|Scheduler|FeatureExtractor")
_CONVERT: Final = (
    "pickles can run programs and are not read; convert them once where you trust them, with diffusers' "
    "from_pretrained(...).save_pretrained(folder)"
)


class Selection(Protocol):
    """``(names of all files, reads a small one) -> names of those that are needed``."""

    def __call__(self, files: Collection[str], read: Read) -> list[str]: ...


def read_index(text: bytes) -> dict[str, Any]:
    """Reads a ``model_index.json``.

    Raises:
        BadFile: it is none.
    """
    try:
        index = parse_json(text)
        index["_class_name"]  # noqa: B018
    except (ValueError, KeyError, TypeError) as problem:
        raise BadFile(f"{INDEX} cannot be read as a diffusers index ({problem!r:.200}); copy it again") from None
    return dict(index)


def parts_of(index: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Returns the components that an index names: name -> library and class."""
    return {
        name: (str(value[0]), str(value[1]))
        for name, value in index.items()
        if isinstance(value, list) and len(value) == 2 and all(value)
    }


def has_weights(class_name: str) -> bool:
    """Whether a component of a class has weights: tokenizers, processors and schedulers have none."""
    return _WEIGHTLESS.search(class_name) is None


def pipeline_files(files: Collection[str], read: Read, *, half: bool = False) -> list[str]:
    """A :class:`Selection` of all that a diffusers pipeline needs.

    Args:
        files: names of all files. read: reads a small one.
        half: the fp16 variant is wanted, where there is one.

    Raises:
        BadFile: it is no diffusers pipeline, or a component has no weights that can be read.
    """
    return _chosen(files, read, half, lambda name: True)


def config_files(files: Collection[str], read: Read, *, weights: Collection[str] = (), half: bool = False) -> list[str]:
    """As :func:`pipeline_files`, with the weights of some components alone.

    Raises:
        BadFile: as there.
    """
    return _chosen(files, read, half, lambda name: name in weights)


def _chosen(files: Collection[str], read: Read, half: bool, wanted: Callable[[str], bool]) -> list[str]:
    if INDEX not in files:
        raise BadFile(f"is no diffusers pipeline: it has no {INDEX} (it holds {_some(files)}){_alone(files)}")
    needed = [INDEX]
    for name, (_, class_name) in parts_of(read_index(read(INDEX))).items():
        own = sorted(file for file in files if file.startswith(f"{name}/") and file.count("/") == 1)
        needed += [file for file in own if file.endswith(_SMALL)]
        if has_weights(class_name) and wanted(name):
            needed += weight_files(own, half=half, of=name)
    return needed


def weight_files(own: Sequence[str], *, half: bool, of: str) -> list[str]:
    """Returns the files with a component's weights: the plain ones, or those of the fp16 variant.

    Args:
        own: the component's files.
        half: the fp16 variant is wanted; else it is taken where there is nothing else.
        of: the component, for messages.

    Raises:
        BadFile: it has none, or none that can be read, or some are missing.

    Example:
        >>> weight_files(["unet/model.fp16.safetensors", "unet/model.safetensors"], half=True, of="unet")
        ['unet/model.fp16.safetensors']
    """
    found: dict[str, list[str]] = {"": [], ".fp16": []}
    shards: dict[str, int] = {}
    for file in own:
        parts = _WEIGHTS.fullmatch(file.rpartition("/")[2])
        if parts:
            variant = parts["variant"] or ""
            found[variant].append(file)
            shards[variant] = int(parts["shards"] or 1)
    whole = [variant for variant, named in found.items() if named and len(named) >= shards[variant]]
    if whole:
        return found[".fp16" if half and ".fp16" in whole else whole[0]]
    raise BadFile(_without(own, found, of))


def _without(own: Sequence[str], found: dict[str, list[str]], of: str) -> str:
    """Says what a component has in place of weights."""
    whose = f"the weights of its {of}" if of else "its weights"
    some = found[""] or found[".fp16"]
    if some:
        return f"is not whole: of {whose} some files are missing; copy or download them again"
    pickles = [file for file in own if file.endswith(_PICKLES)]
    if pickles:
        return f"has {whose} as {_listed(pickles)} alone, and {_CONVERT}"
    return f"is not whole: {whose} are missing (model.safetensors or diffusion_pytorch_model.safetensors)"


def variant_of(files: Collection[str]) -> str | None:
    """Returns the variant, as diffusers calls it, that chosen files belong to, if any does."""
    return "fp16" if any(".fp16" in file.rpartition("/")[2] for file in files) else None


def language_files(files: Collection[str], read: Read) -> list[str]:
    """A :class:`Selection` of all that a transformers model and its tokenizer need.

    Raises:
        BadFile: it is no transformers model, or has no weights that can be read.
    """
    own = sorted(file for file in files if "/" not in file)
    if "config.json" not in own:
        raise BadFile(f"is no transformers model: it has no config.json (it holds {_some(files)})")
    return [file for file in own if file.endswith(_SMALL)] + weight_files(own, half=False, of="")


def adapter_files(files: Collection[str], read: Read) -> list[str]:
    """A :class:`Selection` of the one adapter of a repository: PEFT's two files, or a safetensors file.

    Raises:
        BadFile: it has none, or several.
    """
    own = sorted(file for file in files if "/" not in file)
    if "adapter_config.json" in own and "adapter_model.safetensors" in own:
        return ["adapter_config.json", "adapter_model.safetensors"]
    found = [file for file in own if file.endswith(".safetensors")]
    usual = [file for file in found if file == USUAL_ADAPTER]
    if len(usual or found) == 1:
        return usual or found
    if found:
        raise BadFile(f"holds {len(found)} safetensors files; name one, with its name behind the id: {_listed(found)}")
    pickles = [file for file in own if file.endswith(_PICKLES)]
    if pickles:
        raise BadFile(f"has its weights as {_listed(pickles)} alone, and pickles are not read from the hub")
    raise BadFile(f"holds no adapter (it holds {_some(files)})")


def one_file(files: Collection[str], read: Read, *, name: str) -> list[str]:
    """A :class:`Selection` of one file.

    Raises:
        BadFile: it is not there, or neither a safetensors nor a GGUF file.
    """
    if name not in files:
        kind = [file for file in files if file.endswith((".safetensors", ".gguf"))]
        raise BadFile(f"has no file {name!r} (it holds {_listed(kind) if kind else _some(files)})")
    if not name.endswith((".safetensors", ".gguf")):
        raise BadFile(f"has {name!r}, which is no safetensors file: only these are taken from the hub")
    return [name]


def inside(folder: str, select: Selection) -> Selection:
    """Returns a selection that works below a folder."""
    return partial(_below, folder, select) if folder else select


def _below(folder: str, select: Selection, files: Collection[str], read: Read) -> list[str]:
    own = [file.removeprefix(f"{folder}/") for file in files if file.startswith(f"{folder}/")]
    if not own:
        raise BadFile(f"has no folder {folder!r} (it holds {_some(files)})")
    return [f"{folder}/{file}" for file in select(own, lambda name: read(f"{folder}/{name}"))]


def _alone(files: Collection[str]) -> str:
    """The way on where a repository holds checkpoints of one file."""
    found = sorted(file for file in files if "/" not in file and file.endswith(".safetensors"))
    return f"; a checkpoint of one file is named with its file: .../{found[0]}" if found else ""


def _some(files: Collection[str]) -> str:
    """What stands in a folder."""
    return _listed(sorted({file.partition("/")[0] for file in files}))


def _listed(names: Sequence[str]) -> str:
    more = [f"and {len(names) - 5} more"] if len(names) > 5 else []
    return ", ".join([*names[:5], *more]) or "nothing"
