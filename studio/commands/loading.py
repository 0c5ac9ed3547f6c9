"""What the commands that use adapters share: a base and files named on the command line become a pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from studio.commands.show import Show
from studio.commands.words import AdapterWord
from studio.errors import BadConfig, BadFile, NoEffect, PartialLoad

if TYPE_CHECKING:
    import torch

    from studio.files import LoadReport
    from studio.pipelines.pipeline import Pipeline

__all__ = ["kind_of_adapters", "load_adapter", "open_pipeline"]

AnyPipeline = TypeVar("AnyPipeline", bound="Pipeline")


def open_pipeline(
    pipeline: type[AnyPipeline],
    base: str,
    *,
    device: str | None,
    dtype: str | None,
    show: Show,
    config_of: str | None = None,
    saving: Mapping[str, Any] | None = None,
    as_kind: Mapping[str, Any] | None = None,
) -> AnyPipeline:
    """Opens a base where and as the options say.

    Args:
        pipeline: the pipeline's class.
        base: what was named.
        device: where to compute; None takes the best there is.
        dtype: number format; None takes that of the base's files, or the device's usual one.
        show: takes a line where another format is used than asked for.
        config_of: the folder or the hub id whose configs a checkpoint of one file is opened with.
        saving: what saves memory, as arguments of its ``open``.
        as_kind: what a language base is opened as, in the same way; see :func:`kind_of_adapters`.

    Raises:
        UsageError: the base, the device or the format is not there.
    """
    from studio.device import choose_device, choose_dtype

    place = choose_device(device)
    given = click.get_current_context(silent=True)
    wished = (given.obj or {}).get("quantize") if given is not None else None
    own: dict[str, Any] = {**(saving or {}), **({} if config_of is None else {"config_of": config_of})}
    own |= as_kind or {}
    own |= {} if wished is None else {"quantize": wished}
    if dtype in (None, "auto"):
        opened = _told(pipeline.open(base, dtype="auto", device=place, **own), show)
        for line in _slow(opened, place):
            show.note(line)
        return opened
    numbers = choose_dtype(dtype, place)
    if numbers.note:
        show.note(numbers.note)
    return _told(pipeline.open(base, dtype=numbers.dtype, device=place, **own), show)


def kind_of_adapters(adapters: Sequence[AdapterWord]) -> dict[str, Any]:
    """Returns what the first adapter that says so was trained on a language base as: its kind, and its labels.

    Args:
        adapters: what the command line names.

    Raises:
        UsageError: a file that is not there or cannot be read.
    """
    from studio.files import inspect
    from studio.files.source import PICKLED
    from studio.pipelines.kinds import stated_kind
    from studio.pipelines.naming import adapter_file

    files = (adapter_file(word.file) for word in adapters)
    stated = (stated_kind(inspect(file).facts) for file in files if file.suffix not in PICKLED)
    return next(filter(None, stated), {})


def _slow(pipe: Pipeline, device: torch.device) -> list[str]:
    """Returns a line for each type of its weights that the device has to emulate."""
    from studio.device import DTYPES, choose_dtype
    from studio.families import components

    held = {weight.dtype for part in components(pipe).values() for weight in part.parameters()}
    choices = [choose_dtype(name, device) for name in ("bf16", "fp16") if DTYPES[name] in held]
    return [choice.note for choice in choices if choice.note]


def _told(pipe: AnyPipeline, show: Show) -> AnyPipeline:
    """Says what was quantised."""
    for part, done in pipe.base.quantized.items():
        show.tell(f"{part or 'the model'}: {done}")
    return pipe


def load_adapter(
    pipe: Pipeline, word: AdapterWord, show: Show, *, allow_partial: bool, pickled: bool = False
) -> dict[str, Any]:
    """Loads an adapter and says what was loaded.

    Args:
        pipe: loads it.
        word: the file, with a strength and maybe a name.
        show: takes lines for the user.
        allow_partial: load what fits, and name the rest.
        pickled: allow files that may hold more than tensors.

    Returns:
        What the JSON output says about it.

    Raises:
        BadConfig: its name is taken by another adapter of this call.
        NoEffect: its tensors change nothing.
        PartialLoad: a part of the file does not fit.
    """
    from studio.adapters import Strength
    from studio.adapters.effect import has_effect
    from studio.files.embedding import METHOD

    strength = word.strength if word.schedule is None else Strength(schedule=word.schedule)
    if word.name is not None and word.name in pipe.adapters:
        raise BadConfig(f"two adapters are called {word.name!r}: name one of them, --adapter other={word.file}")
    try:
        report = pipe.load(
            word.file, name=word.name, strength=strength, allow_partial=allow_partial, pickled=pickled
        )  # fmt: skip
    except (PartialLoad, BadFile) as error:
        raise type(error)(_in_options(str(error))) from None
    name = report.name
    if word.blocks is not None:
        _weigh(pipe, name, word)
    if report.method != METHOD and not has_effect(pipe.carrier, name):
        raise NoEffect(
            f"{word.file} changes nothing: in each of its {len(report.sites)} layers the change is zero, so what "
            "is made would be the base's own; it was saved before it was trained, or its tensors were lost"
        )
    if strength == 0:
        show.note(f"{name} has strength 0 and does not act, but where a prompt tags it")
    _tell(show, word, report, [] if report.method == METHOD else _other_weights(pipe, name))
    said = word.strength if word.plain else word.said
    return {
        "name": name, "file": word.file, "strength": said, "method": report.method, "format": report.format,
        "sites": len(report.sites), "ignored": dict(report.ignored),
    }  # fmt: skip


def _other_weights(pipe: Pipeline, name: str) -> list[str]:
    """Says where an adapter was trained on other weights than those of the base, as far as its file tells."""
    stated = pipe.adapters[name].metadata
    theirs = stated.get("base_hash")
    if theirs is None or theirs == pipe.base.hash:
        return []
    return [f"it was trained on other weights ({stated.get('base', 'another base')}) than those of {pipe.base.id}"]


def _tell(show: Show, word: AdapterWord, report: LoadReport, further: Sequence[str]) -> None:
    """Says what was loaded, what of it is not applied, and what is worth knowing about it."""
    file, ignored = word.file.name, report.ignored
    for key, reason in list(ignored.items())[:5]:
        show.note(f"{file}: {key} is not applied: {reason}")
    if len(ignored) > 5:
        show.note(f"{file}: and {len(ignored) - 5} more keys are not applied")
    for note in (*report.notes, *further):
        show.tell(f"{report.name}: {note}")
    where = f"layers, strength {word.said}" if report.embeddings != (report.name,) else "encoders"
    show.tell(f"{report.name}: {report.method} in {len(report.sites)} {where}, from {word.file}")


def _weigh(pipe: Pipeline, name: str, word: AdapterWord) -> None:
    """Gives an adapter that is loaded the weights of its blocks."""
    from studio.adapters import Strength, blend, block_weights, current_blend

    number = 1.0 if word.schedule is not None else word.strength
    blocks = block_weights(pipe.carrier, name, word.blocks or "")
    blend(pipe.carrier, {**current_blend(pipe.carrier), name: Strength(number, blocks=blocks, schedule=word.schedule)})


def _in_options(sentence: str) -> str:
    """The same sentence with options for arguments."""
    return sentence.replace("pass allow_partial=True", "give --allow-partial").replace("pickled=True", "--pickled")
