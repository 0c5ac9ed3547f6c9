"""Loading an adapter file onto a model: completely accounted for, and all of it or nothing."""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from studio.adapters import METHODS, install
from studio.adapters.contract.strength import StrengthLike
from studio.adapters.slots import Slots
from studio.device import on_cpu
from studio.errors import BadFile, DoesNotFit, PartialLoad, StudioError
from studio.families import components
from studio.files.alphas import alpha_form
from studio.files.detect import Contents, guess_family, sort_keys
from studio.files.embedding_file import words_in
from studio.files.embedding_load import check_plain, load_brought, load_words
from studio.files.format import Source
from studio.files.header import TensorInfo
from studio.files.metadata import Entry, doubts, facts_of, own_entry
from studio.files.mixture import methods_of, read_mixture
from studio.files.names import Names
from studio.files.peft import CONFIG_FILE
from studio.files.peft_settings import flagged_method, refuse_unknown_type
from studio.files.reading import Reading
from studio.files.report import LoadReport
from studio.files.soft import FORMAT as SOFT
from studio.files.soft import read_soft, soft_method
from studio.files.sound import check_finite, fitting
from studio.files.source import open_source
from studio.given import given_path
from studio.limits import limit

__all__ = ["drop_misfits", "judge", "load", "load_source", "read_source"]


def load(
    model: Any,
    file: str | Path,
    *,
    name: str | None = None,
    strength: StrengthLike = 1.0,
    allow_partial: bool = False,
    trainable: bool = False,
    pickled: bool = False,
    into: Slots | None = None,
) -> LoadReport:
    """Loads an adapter file and attaches it at ``strength``; other adapters stay as they are.

    The format is found from the keys, and files that mix formats are read too. On any error the model is as it was.

    Args:
        model: any module, or a diffusers pipeline. A file that covers one component loads into that component by itself
            as well as into a pipeline.
        file: a ``.safetensors`` file of diffusers, kohya, A1111, LyCORIS or the studio, a PEFT folder, or a file of
            learned words (textual inversion), for a pipeline: they act where a prompt has them.
        name: the adapter's name; None: the one in the file, else "default".
        strength: its strength in the blend: a number, or a :class:`studio.Strength`.
        allow_partial: apply what fits, and list the rest in the report.
        trainable: whether its tensors require gradients, to go on training.
        pickled: allow ``.pt`` and ``.bin`` files, whose tensors alone are read.
        into: slots of the model (:func:`studio.slots`), one of which it is put into instead: nothing is compiled anew.

    Returns:
        A report that accounts for every key.

    Raises:
        BadFile: the file is missing, truncated, hostile, or of no known format.
        DoesNotFit: nothing in it fits this model, it was made for another family or is far larger than the model, the
            name is taken, or a blend is baked.
        Refused: a tensor holds NaN, or numbers with which nothing finite can be computed.
        PartialLoad: some of its keys fit and others do not; the message names them and the nearest right layer.
        BadConfig: a name with other characters than letters, digits, ``_`` and ``-``.

    Example:
        >>> import tempfile, torch, studio
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 8))
        >>> _ = studio.attach(net, studio.LoRA(rank=2, targets=("0",)), name="dog")
        >>> file = studio.save(net, Path(tempfile.mkdtemp()) / "dog.safetensors", name="dog")
        >>> studio.detach(net)
        >>> print(studio.load(net, file, strength=0.8))
        'dog': lora from a diffusers file, 1 layers, 2 keys applied, 0 ignored
    """
    with _collector_paused(), on_cpu():
        source = open_source(given_path(file), pickled=pickled, check=lambda infos: _check_size(model, file, infos))
        words = words_in(source)
        if words is not None:
            check_plain(source, strength == 1.0 and not trainable and into is None)
            return load_words(model, source, *words, name=name, allow_partial=allow_partial)
        attach = partial(
            load_source, model, name=name, strength=strength, allow_partial=allow_partial, trainable=trainable,
            into=into,
        )  # fmt: skip
        return load_brought(model, source, attach, allow_partial=allow_partial)


def _check_size(model: Any, file: str | Path, infos: Mapping[str, TensorInfo]) -> None:
    """Refuses, before its tensors are read, a file that is far larger than the model."""
    own = sum(tensor.numel() for part in components(model).values() for tensor in part.parameters())
    found = sum(math.prod(info.shape) for info in infos.values())
    most = 8 * own + limit("spare-numbers")  # 4-bit weights are stored two and more in a number
    if found > most:
        raise DoesNotFit(f"{file} holds {found:,} numbers, and the model itself has {own:,}: it is no adapter for it")


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Keeps Python's cycle collector from running: a full pass over the process costs more than loading does."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def load_source(
    model: Any,
    source: Source,
    *,
    name: str | None = None,
    strength: StrengthLike = 1.0,
    allow_partial: bool = False,
    trainable: bool = False,
    into: Slots | None = None,
) -> LoadReport:
    """Attaches what an opened file holds.

    Args:
        model: as of :func:`load`, with ``name``, ``strength``, ``allow_partial``, ``trainable`` and ``into``.
        source: the opened file.

    Raises:
        BadFile: it holds no adapter that can be read, or does not say its scale. The others as :func:`load`.
    """
    own = own_entry(source.metadata)
    refuse_unknown_type(source.peft or {}, f"{CONFIG_FILE} of {source.file}")
    soft = soft_method(source, own)
    if into is not None:
        _check_slot(source, soft, trainable)
    if soft:
        return _load_soft(model, source, own, soft, name, strength, allow_partial, trainable)
    names, found, reading = read_source(model, source, own)
    taken = name if name is not None else (own.name if own is not None and own.name else "default")
    facts = {**facts_of(source.metadata), **_dtype(source, reading), **alpha_form(source, reading.applied())}

    def put() -> None:
        with fitting(f"the tensors of {source.file}"):
            placed = reading.placed(names)
            if into is not None:
                into.fill(reading.config, placed, name=taken, strength=strength)
                return
            install(model, reading.config, placed, name=taken, strength=strength, trainable=trainable, metadata=facts)

    judge(source, found, names, reading, own, allow_partial)
    try:
        put()
    except StudioError:
        if not drop_misfits(names, reading):
            raise  # it is not about the tensors
        judge(source, found, names, reading, own, allow_partial)
        put()
    return _report(taken, found.format(), reading)


def _check_slot(source: Source, soft: str, trainable: bool) -> None:
    if soft or trainable:
        raise DoesNotFit(
            f"{source.file} cannot go into a slot: slots hold changes of layers that are not trained; load it without "
            "into"
        )


def read_source(model: Any, source: Source, own: Entry | None) -> tuple[Names, Contents, Reading]:
    """Reads what a file means on a model, and puts nothing on it.

    Args:
        model: what it is for. source: the file. own: the studio's entry in it.

    Raises:
        BadFile: it holds no adapter that can be read. DoesNotFit: it asks for something that the studio does not do.
        Refused: tensors that are used hold NaN, or numbers that nothing can be computed with.
    """
    found = sort_keys(source.infos, flagged_method(source.peft) if own is None else own.method)
    methods = methods_of(source, found, own)
    if not methods:
        raise BadFile(f"{source.file} holds no adapter that can be read: {_first(_reasons(found))}")
    names = Names(model)
    return names, found, read_mixture(names, source, found, methods, own)


def _report(name: str, format: str, reading: Reading) -> LoadReport:
    return LoadReport(
        name=name,
        method=reading.method,
        format=format,
        applied=reading.applied(),
        ignored=dict(sorted(reading.ignored.items())),
        sites=tuple(sorted(reading.layers)),
        notes=tuple(reading.notes),
    )


def _load_soft(
    model: Any,
    source: Source,
    own: Entry | None,
    method: str,
    name: str | None,
    strength: StrengthLike,
    allow_partial: bool,
    trainable: bool,
) -> LoadReport:
    """Attaches virtual tokens, which belong to a language model as a whole."""
    METHODS[method].adapter.whole(components(model), None)
    with fitting(f"the config and the tensors of {source.file}"):
        reading = read_soft(model, source, own, method)
    check_finite(source.tensors, reading.applied(), source.file)
    reading.notes += doubts(source, own)
    if reading.ignored and not allow_partial:
        raise PartialLoad(
            f"{len(reading.ignored)} of the {len(source.infos)} keys of {source.file} cannot be applied: "
            f"{_first(reading.ignored)}; pass allow_partial=True to apply the others"
        )
    taken = name if name is not None else (own.name if own is not None and own.name else "default")
    metadata = {**facts_of(source.metadata), **_dtype(source, reading)}
    layers = {path: {key: tensor.float() for key, tensor in found.items()} for path, found in reading.layers.items()}
    with fitting(f"the tensors of {source.file}"):
        install(model, reading.config, layers, name=taken, strength=strength, trainable=trainable, metadata=metadata)
    return LoadReport(
        name=taken,
        method=method,
        format=SOFT if source.peft is None else "peft",
        applied=tuple(sorted(key for keys in reading.keys.values() for key in keys)),
        ignored=dict(sorted(reading.ignored.items())),
        sites=("",),
        notes=tuple(reading.notes),
    )


def _check_scale(source: Source, found: Contents, own: Entry | None) -> None:
    """Refuses tensors of PEFT's without the config that says their scale."""
    if found.format() == "peft" and source.peft is None and (own is None or own.config is None):
        raise BadFile(
            f"{source.file} has PEFT's keys, and no adapter_config.json beside it says their scale; put it there, or "
            "pass allow_partial=True to take alpha = rank"
        )


def _dtype(source: Source, reading: Reading) -> dict[str, str]:
    """The dtype of a file that is narrower than ours, so that saving again gives the same file."""
    words = {
        source.infos[key].dtype
        for keys in reading.keys.values()
        for key in keys
        if source.infos[key].dtype in ("F32", "F16", "BF16", "F64", "F8_E4M3", "F8_E5M2") and not key.endswith("alpha")
    }
    return {"dtype": words.pop()} if len(words) == 1 and words != {"F32"} else {}


def drop_misfits(names: Names, reading: Reading) -> bool:
    """Ignores the layers whose tensors do not fit; says whether there was any.

    Args:
        names: of the model. reading: what the file means there.
    """
    config = reading.config
    misfits: dict[str, str] = {}
    for path, tensors in reading.layers.items():
        part = config.at(names.paths[path][1])
        try:
            with fitting(f"the tensors { {name: tuple(one.shape) for name, one in tensors.items()} } of its layer"):
                part.adapter(names.site(path, part.adapter.kinds), part, tensors, trainable=False)
        except StudioError as error:
            misfits[path] = str(error)
    for path, reason in misfits.items():
        reading.drop(path, reason)
    return bool(misfits)


def _reasons(found: Contents) -> dict[str, str]:
    reasons = dict(found.strangers)
    for layer in found.layers.values():
        reasons |= dict.fromkeys(layer.parts.values(), str(layer.spelling()))
    return reasons


def judge(
    source: Source, found: Contents, names: Names, reading: Reading, own: Entry | None, allow_partial: bool
) -> None:
    """Refuses a file that does not fit, wholly or in part.

    Args:
        source: the file. found: its keys. names: of the model. reading: what it means there. own: our entry in it.
        allow_partial: whether it is enough that a part fits.

    Raises:
        BadFile: PEFT's tensors without what says their scale. DoesNotFit: nothing of it fits. PartialLoad: a part.
    """
    if reading.ignored or not reading.layers:
        _check_fit(source, found, names, reading, allow_partial)
    if not allow_partial:
        _check_scale(source, found, own)


def _check_fit(source: Source, found: Contents, names: Names, reading: Reading, allow_partial: bool) -> None:
    """Refuses a file of which something fits no layer."""
    family, title = guess_family(found, source.infos)
    used = len(reading.layers)
    mine = names.family
    if mine is not None and family and family != mine.name and 2 * used <= len(found.layers):
        raise DoesNotFit(
            f"{source.file} is an adapter for {title}, the model is {mine.title}: {used} of its {len(found.layers)} "
            f"layers fit; load it on {title}"
        )
    count = len(source.infos)
    if not used:
        what = "the model" if mine is None else mine.title
        made_for = f" (it looks like one for {title})" if family and (mine is None or family != mine.name) else ""
        raise DoesNotFit(f"nothing in {source.file}{made_for} fits {what}: {_first(reading.ignored)}")
    if not allow_partial:
        raise PartialLoad(
            f"{len(reading.ignored)} of the {count} keys of {source.file} cannot be applied: "
            f"{_first(reading.ignored)}; correct the file, or pass allow_partial=True to apply the others"
        )


_CONSEQUENCES: Final = ("of the same layer", "its layer also has")


def _first(ignored: Mapping[str, str], count: int = 3) -> str:
    """The first keys and why, each reason once."""
    by_reason: dict[str, list[str]] = {}
    # the most telling reasons first: a misspelt layer leaves its partner incomplete
    for key in sorted(ignored, key=lambda key: (any(word in ignored[key] for word in _CONSEQUENCES), key)):
        by_reason.setdefault(ignored[key], []).append(key)
    parts = [f"{keys[0]!r}{f' and {len(keys) - 1} more' if keys[1:] else ''}: {why}" for why, keys in by_reason.items()]
    more = f"; and {len(parts) - count} more reasons" if len(parts) > count else ""
    return "; ".join(parts[:count]) + more if parts else "it has no tensors"
