"""Opening a language base: a model and its tokenizer, by name, from a transformers folder or the hub."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from studio.errors import BadFile, DoesNotFit, UnknownName, UsageError, nearest
from studio.families.base import BASES, move
from studio.families.blocks import staying
from studio.families.language.base import LanguageBase
from studio.families.language.embedded import LANGUAGE_BASES
from studio.families.language.heads import head_layers, make_head
from studio.families.language.kinds import KINDS, Kind, model_kind, read_labels, usual_kind
from studio.families.opening import hub
from studio.families.opening.dtype import named, usual_dtype
from studio.families.opening.folder import chosen
from studio.families.opening.ids import hub_id, standing
from studio.families.opening.selection import language_files
from studio.families.opening.weights import header_of, held
from studio.families.quiet import quietly
from studio.quantization.parts import by_component, quantize_part
from studio.quantization.wishes import Wishes, read_wishes

__all__ = ["open_language_base"]


def open_language_base(
    base: str | Path | Any,
    *,
    kind: str | None = None,
    labels: Sequence[str] | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    offline: bool = False,
    quantize: Wishes | None = None,
    blocks_to_swap: int = 0,
) -> LanguageBase:
    """Opens a language base.

    Args:
        base: the name of an embedded base (``"facts"``), a transformers folder, a hub id (``"owner/name"``,
            ``"owner/name@revision"``, with a folder of the repository behind it), a pair of a model and its tokenizer,
            or a :class:`LanguageBase`, which is returned as it is (moved if ``dtype`` or ``device`` say so). A path
            that exists is never asked of the hub, and the hub only for what its cache on this machine does not have.
            In place of the tokenizer, a pair of a model of sounds or pictures has its processor.
        kind: what it is opened as, of :data:`KINDS`; ``None``: what its files were saved as.
        labels: what a classifier shall tell apart. Where the files have no head for these very labels, one is made
            (:mod:`studio.families.language.heads`). ``None``: what its config names.
        dtype: the weights' type, or its name (``"bf16"``); ``None``: what most of them are in the files, but fp32 for a
            small base on a CPU, unchanged for objects; ``"auto"``: the same, but what the device computes fastest in
            where the files hold fp32.
        device: where to; ``None``: the CPU for what is read from disk, unchanged for objects.
        offline: never ask the hub; ``HF_HUB_OFFLINE=1`` says so too.
        quantize: how the model is kept in fewer bits, such as ``"nf4"`` (:data:`studio.quantization.BACKENDS`): layer
            by layer, in place and for good; ``None``: as it is.
        blocks_to_swap: of what is read from disk, how many blocks do not move to ``device``: a training fetches them
            when they compute (:mod:`studio.families.blocks`).

    Returns:
        The base, its model in evaluation mode.

    Raises:
        UnknownName: neither a known name nor a folder nor an id that the hub has, or no such way to quantise.
        MissingPackage: what quantises is not installed.
        BadFile: what is there is not a whole transformers model with its tokenizer, or the hub does not give it.
        BadConfig: labels that are no texts or not all different, or labels for a base without a head.
        DoesNotFit: it is no model of that kind, cannot be quantised, or its tokenizer is another model's.

    Example:
        >>> open_language_base("fact")
        Traceback (most recent call last):
        ...
        studio.errors.UnknownName: no language base or folder is called 'fact'; did you mean 'facts'? (embedded language
        bases: facts, figures, speech, words)
    """
    dtype, wishes, sort = named(dtype), read_wishes(quantize), None if kind is None else KINDS[kind]
    if isinstance(base, (str, Path)):
        return _read(base, sort, labels, dtype, device, offline, wishes, blocks_to_swap)
    found = base if isinstance(base, LanguageBase) else _of_pair(base, sort)
    if sort is not None and found.kind is not sort:
        raise DoesNotFit(f"{found.id} was opened as {found.kind.one}, and {sort.one} is asked for")
    labels = read_labels(found.kind, labels)
    if labels is not None and set(labels) != set(found.labels):
        raise DoesNotFit(
            f"{found.id} tells {', '.join(found.labels)} apart, and not {', '.join(labels)}: give its folder, and a "
            "head for these is made"
        )
    move(found.model, dtype if isinstance(dtype, torch.dtype) else None, device)
    return _quantize(found, wishes)


def _of_pair(base: Any, kind: Kind | None) -> LanguageBase:
    """The base of a model and its tokenizer, or its processor."""
    if not isinstance(base, Sequence) or len(base) != 2 or not isinstance(base[0], torch.nn.Module):
        raise DoesNotFit(
            f"a language base is a name, a transformers folder or a pair of a model and its tokenizer, not a "
            f"{type(base).__name__}"
        )
    model, reader = base
    kind = model_kind(model, kind)
    tokenizer = getattr(reader, "tokenizer", reader)
    processor = None if tokenizer is reader else reader
    if kind.processor and processor is None:
        raise DoesNotFit(f"a {kind.title} is given as a pair of the model and its processor, not its tokenizer alone")
    found = LanguageBase(model, tokenizer, type(model).__name__, kind=kind, processor=processor)
    found.check_tokenizer()
    if kind.head and model.config.pad_token_id is None:
        model.config.pad_token_id = found.pad  # as of what is read from disk
    return found


def _quantize(base: LanguageBase, wishes: Mapping[str, str]) -> LanguageBase:
    """Quantises what is asked for; the base keeps the hash of what it was."""
    for name in by_component(wishes, ("",), "").values():
        _ = base.hash
        base.quantized[""] = quantize_part(base.id, base.model, name)
    return base


def _read(
    base: str | Path, kind: Kind | None, labels: Sequence[str] | None, dtype: torch.dtype | str | None,
    device: torch.device | str | None, offline: bool, wishes: Mapping[str, str], swapped: int,
) -> LanguageBase:  # fmt: skip
    name, folder = _place(base, offline)
    config = _config(folder)
    kind = kind or usual_kind(config)
    kind.check_knows(str(config["model_type"]), str(folder))
    labels = read_labels(kind, labels)
    files = chosen(folder, language_files)
    counts = held(header_of(folder / file) for file in files if file.endswith(".safetensors"))
    processor = _read_reader(folder, "AutoProcessor", "processor") if kind.processor else None
    tokenizer = _read_reader(folder, "AutoTokenizer", "tokenizer") if processor is None else processor.tokenizer
    own = usual_dtype(counts, torch.device("cpu" if device is None else device), dtype)
    model, made = _read_model(folder, kind, config, labels, own)
    if not tokenizer.is_fast:
        raise DoesNotFit(f"the tokenizer of {folder} cannot say which characters a token is of; save it as a fast one")
    found = LanguageBase(model.eval(), tokenizer, name, folder, kind=kind, processor=processor, made=tuple(made))
    found.check_tokenizer()
    if kind.head:
        model.config.pad_token_id = found.pad  # by which a decoder that classifies finds where a text ends
    _quantize(found, wishes)
    with staying(model, swapped):
        move(model, None, device)
    return found


def _place(base: str | Path, offline: bool) -> tuple[str, Path]:
    """Returns what a base is called, and the folder that was named."""
    if isinstance(base, str) and base in LANGUAGE_BASES:
        return base, LANGUAGE_BASES[base]
    folder = standing(base)
    if folder is not None and folder.is_dir():
        return folder.resolve().name, folder
    asked = hub_id(base) if isinstance(base, str) and folder is None else None
    if asked is None or asked.is_file:
        raise _no_folder(base, folder)
    return str(asked), hub.fetch(asked, language_files, away=offline)


def _no_folder(base: str | Path, folder: Path | None) -> UsageError:
    """The refusal of what is neither a known name nor a folder."""
    if base in BASES:
        return DoesNotFit(f"{base!r} draws pictures; a language base is asked for ({', '.join(LANGUAGE_BASES)})")
    if folder is not None and folder.is_file():
        return BadFile(f"{folder} is a single file; language bases are read from transformers folders")
    close = nearest(str(base), LANGUAGE_BASES, 1)[0]
    return UnknownName(
        f"no language base or folder is called {str(base)!r}; did you mean {close!r}? (embedded language bases: "
        f"{', '.join(LANGUAGE_BASES)})"
    )


def _read_reader(folder: Path, auto: str, what: str) -> Any:
    """Opens what makes numbers of texts, sounds or pictures."""
    import transformers

    try:
        with quietly():
            return getattr(transformers, auto).from_pretrained(folder, local_files_only=True)
    except Exception as problem:  # whatever a broken or missing one makes transformers raise
        raise BadFile(f"{folder} has no {what} that can be opened: {_sentence(problem)}") from problem


def _read_model(
    folder: Path, kind: Kind, config: Mapping[str, Any], labels: Sequence[str] | None, dtype: torch.dtype
) -> tuple[Any, Sequence[str]]:
    """Returns the model, and the layers of a head that was made for it."""
    import transformers

    named = list((config.get("id2label") or {}).values())
    own = {} if labels is None or sorted(named) == sorted(labels) else _labelled(labels)
    try:
        with quietly():
            model, told = getattr(transformers, kind.auto).from_pretrained(
                folder, dtype=dtype, local_files_only=True, output_loading_info=True, **own
            )
    except Exception as problem:
        raise BadFile(
            f"{folder} cannot be opened as a {config['model_type']} {kind.title}: {_sentence(problem)}"
        ) from problem
    missing = {*told["missing_keys"], *(key for key, *_ in told["mismatched_keys"])}
    if own:  # a head for other labels
        missing |= {
            f"{path}.{name}" for path in head_layers(model) for name, _ in model.get_submodule(path).named_parameters()
        }
    of_head = {key for key in missing if ".pooler." in f".{key}" or (kind.head and not _in_body(key, model))}
    if missing - of_head:  # transformers would go on with random numbers
        some = ", ".join(sorted(missing - of_head)[:3])
        raise BadFile(f"{folder} lacks {len(missing)} of the model's tensors ({some}); copy it again")
    return model, make_head(model, of_head)


def _in_body(key: str, model: Any) -> bool:
    return key.startswith(f"{model.base_model_prefix}.")


def _labelled(labels: Sequence[str]) -> dict[str, Any]:
    """What opens a classifier with these labels, whatever head its files have."""
    return {
        "id2label": dict(enumerate(labels)), "label2id": {label: number for number, label in enumerate(labels)},
        "ignore_mismatched_sizes": True,
    }  # fmt: skip


def _config(folder: Path) -> dict[str, Any]:
    """Reads ``config.json``."""
    if (folder / "model_index.json").is_file():
        raise DoesNotFit(f"{folder} is a diffusers pipeline, which draws pictures; a language base is asked for")
    file = folder / "config.json"
    if not file.is_file():
        found = ", ".join(sorted(file.name for file in folder.iterdir())[:5]) or "nothing"
        raise BadFile(f"{folder} is no transformers model: it has no config.json (it holds {found})")
    try:
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        _ = config["model_type"]
    except (ValueError, KeyError, TypeError) as problem:
        raise BadFile(f"{file} cannot be read as a transformers config ({problem!r}); copy it again") from None
    return config


def _sentence(problem: Exception) -> str:
    text = str(problem).strip()
    return text.splitlines()[0] if text else repr(problem)
