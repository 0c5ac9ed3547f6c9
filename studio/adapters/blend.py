"""blend: which adapters act now, and how strongly."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from studio.adapters.contract.schedule import When
from studio.adapters.contract.strength import Strength, StrengthLike, as_strength
from studio.adapters.hosting.attached import assemblies, check_known, check_unbaked, known_names, rows_of
from studio.adapters.hosting.turns import BlendContext, check_turn, turn
from studio.adapters.targets.block_weights import Blocks
from studio.adapters.targets.unmatched import check_blocks
from studio.errors import BadConfig, DoesNotFit
from studio.families import components, family_of, named_parts

__all__ = [
    "at_progress",
    "blend",
    "blended",
    "block_weights",
    "check_constant",
    "current_blend",
    "move",
    "moving",
    "read_blend",
    "read_strength",
    "sample_rows",
    "scheduled",
]


def read_blend(model: Any, wanted: Mapping[str, StrengthLike] | str) -> dict[str, Strength]:
    """Reads a blend and checks that all it names is there.

    Raises:
        UnknownName: an adapter that is not attached. BadConfig: an impossible strength, one of a component that the
            model does not have, or of blocks that no layer of the adapter is in.
    """
    if not isinstance(wanted, (str, Mapping)):
        raise BadConfig(f"a blend is a name, or a table of names and strengths such as {{'dog': 0.8}}, not {wanted!r}")
    given = {wanted: 1.0} if isinstance(wanted, str) else wanted
    strengths = {name: read_strength(model, name, strength) for name, strength in given.items()}
    present = assemblies(model)
    known = {name for assembly in present.values() for name in assembly.records}
    for name, strength in strengths.items():
        if name not in known:
            check_known(model, name)
        if strength.blocks or strength.components:
            check_blocks(name, strength, {one: assembly.places(name) for one, assembly in present.items()})
    return strengths


def read_strength(model: Any, name: str, value: StrengthLike) -> Strength:
    """Reads the strength of one adapter; block weights, as other tools write them, become patterns of its layers.

    Args:
        model: the model or pipeline. name: the adapter. value: a number, a :class:`~studio.Strength`, one number per
            sample, or diffusers' table of blocks.

    Raises:
        UnknownName: an adapter that is not attached. BadConfig: an impossible strength.
    """
    if not isinstance(value, Mapping):
        return as_strength(value)
    return Strength(blocks=block_weights(model, name, value))


def block_weights(model: Any, name: str, said: str | Sequence[float] | Mapping[str, Any]) -> dict[str, float]:
    """Turns block weights as other tools write them into patterns, for ``Strength(blocks=...)``.

    Args:
        model: the model or pipeline. name: the adapter, for whose layers they are.
        said: a preset of lora-block-weight (``"OUTALL"``) or of B-LoRA (``"content"``, ``"style"``), a list of numbers
            or its text (``"1,0,0,1,…"``), numbers by block and glob (``"IN04=0.5,OUT03-OUT05=0,*.attn2.*=0"``), or
            diffusers' table (``{"unet": {"down": 0.5, "up": {"block_1":
            [0, 1, 1]}}}``; globs in place of ``down`` and ``up``, for transformers: ``{"transformer":
            {"transformer_blocks[0:2]": [0.5, 1]}}``).

    Raises:
        UnknownName: an adapter that is not attached. BadConfig: blocks that are not there, or no finite numbers.
    """
    check_known(model, name)
    present, family = assemblies(model), family_of(model)
    layers = {one: list(assembly.places(name)) for one, assembly in present.items() if name in assembly.records}
    parts = components(model)
    denoiser = parts.get("" if family is None else family.denoiser, parts.get(""))
    modules = [] if denoiser is None else [path for path, _ in named_parts(denoiser) if path]
    return Blocks(layers, modules, family).weights(said)


def check_constant(name: str, strength: Strength, reason: str) -> None:
    """Checks that a strength is one for all samples, moments and places.

    Args:
        name: the adapter. strength: its strength. reason: why it must be, as a clause.

    Raises:
        DoesNotFit: it is not.
    """
    if not strength.constant:
        differs = {"sample": strength.samples, "moment of the denoising": strength.schedule, "place": strength.mask}
        ways = " and ".join(way for way, held in differs.items() if held is not None)
        raise DoesNotFit(f"the strength of {name!r} differs by {ways}; {reason}")


def blend(model: Any, wanted: Mapping[str, StrengthLike] | str) -> None:
    """Sets which adapters act and how strongly: ``y = base(x) + Σ s_i · change_i(x)``.

    Args:
        model: the model or pipeline.
        wanted: adapter name to strength (a number, a :class:`~studio.Strength`, one number per sample, or diffusers'
            table of blocks), or one name for strength 1; ``{}`` is the base alone. Adapters that are not named are off.

    Raises:
        UnknownName: an adapter that is not attached. BadConfig: an impossible strength.
        DoesNotFit: a blend is baked into the weights.

    Example:
        >>> import torch, studio
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 8))
        >>> _ = studio.attach(net, studio.LoRA(rank=2, targets=("0",)), name="dog")
        >>> studio.blend(net, {"dog": 0.8})
        >>> studio.adapters(net)["dog"].strength
        0.8
    """
    with turn(model):
        _set(model, wanted)


def _set(model: Any, wanted: Mapping[str, StrengthLike] | str) -> None:
    check_unbaked(model, "blend")
    strengths = read_blend(model, wanted)
    present = list(assemblies(model).values())
    for assembly in present:
        check_turn(assembly.levels)
    for assembly in present:
        assembly.set({name: strength for name, strength in strengths.items() if name in assembly.records})


def current_blend(model: Any) -> dict[str, Strength]:
    """Returns the current blend: the strengths of the adapters that act."""
    found: dict[str, Strength] = {}
    for assembly in assemblies(model).values():
        found.update(assembly.levels.strengths)
    return {name: found[name] for name in known_names(model) if name in found}


@contextmanager
def blended(model: Any, wanted: Mapping[str, StrengthLike] | str) -> Iterator[None]:
    """Sets a blend while the context lasts, and gives the former one back, after an error too.

    Threads that share a model take turns: another thread's ``blended`` waits until this one has ended.

    Args:
        model: the model or pipeline. wanted: as for :func:`blend`.

    Raises:
        UnknownName: an adapter that is not attached. BadConfig: an impossible strength.
        DoesNotFit: a blend is baked into the weights, another task of this thread is inside a context on the same
            model, or contexts that do not end in the opposite order of their beginning.

    Example:
        >>> import torch, studio
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 8))
        >>> _ = studio.attach(net, studio.LoRA(rank=2, targets=("0",)), name="dog")
        >>> with studio.blended(net, {}):
        ...     studio.adapters(net)["dog"].strength
        0.0
        >>> studio.adapters(net)["dog"].strength
        1.0
    """
    with turn(model):
        context = BlendContext(assembly.levels for assembly in assemblies(model).values())
        try:
            _set(model, wanted)
            yield
        finally:
            restored = context.leave()
            for assembly in assemblies(model).values():
                if assembly.baked is None and assembly.levels in restored:
                    before = restored[assembly.levels]
                    assembly.set({name: before[name] for name in before if name in assembly.records})


@contextmanager
def sample_rows(model: Any, rows: Sequence[int] | None) -> Iterator[None]:
    """Says which sample every row of a batch belongs to, while the context lasts.

    Strengths per sample need it where a sample has several rows: guidance that puts the unconditional rows before the
    others has ``rows = [0, 1, 0, 1]`` for two samples.

    Args:
        model: the model or pipeline. rows: sample index of every row; None: every row is its own sample.

    Raises:
        BadConfig: a negative sample index.
    """
    if rows is not None and any(row < 0 for row in rows):
        raise BadConfig(f"rows={list(rows)!r} has a negative sample index")
    with turn(model), rows_of(model, rows):
        yield


@contextmanager
def at_progress(model: Any, progress: float, noise: float | None = None) -> Iterator[None]:
    """Says where in the denoising a model is called, while the context lasts; strengths with a schedule need it.

    Args:
        model: the model or pipeline.
        progress: the part of the denoising that is done, from 0 to 1.
        noise: how much of the latents is noise, ``σ / (α + σ)``; None: ``1 - progress``.

    Raises:
        BadConfig: a number out of [0, 1].

    Example:
        >>> import torch, studio
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 8))
        >>> _ = studio.attach(net, studio.LoRA(rank=2, targets=("0",)), name="dog")
        >>> _ = studio.state(net, "dog")["0.up"].data.fill_(1.0)
        >>> studio.blend(net, {"dog": studio.Strength(schedule=[(0.5, 0), (0.5, 1)])})
        >>> x = torch.ones(1, 8)
        >>> with studio.at_progress(net, 0.2):
        ...     early = net(x)
        >>> with studio.at_progress(net, 0.7):
        ...     late = net(x)
        >>> studio.blend(net, {}); torch.equal(early, net(x)), torch.equal(late, net(x))
        (True, False)
    """
    for name, number in (("progress", progress), ("noise", noise)):
        if number is not None and not 0 <= number <= 1:
            raise BadConfig(f"{name}={number!r} is a part of the denoising, from 0 to 1")
    with turn(model), moving(model):
        move(model, When(progress, 1 - progress if noise is None else noise))
        yield


@contextmanager
def moving(model: Any) -> Iterator[None]:
    """Lasts while a model moves through a denoising; where it stood before, it stands again afterwards."""
    before = {assembly.levels: assembly.levels.when for assembly in assemblies(model).values()}
    try:
        yield
    finally:
        for levels, when in before.items():
            levels.move(when)


def scheduled(model: Any, components: Collection[str], when: When) -> tuple[float | None, ...]:
    """Returns the factors that schedules come to in some components at a moment; equal ones mean the same blend there.

    Args:
        model: the pipeline. components: of it. when: the moment.
    """
    found = [assembly for name, assembly in assemblies(model).items() if name in components]
    blends = [blend for assembly in found for blend in assembly.levels.blends()]
    return tuple(strength.then(when) for blend in blends for strength in blend.values())


def move(model: Any, when: When | None) -> None:
    """Says where in the denoising a model stands from now on; who calls it has the turn.

    Args:
        model: the model or pipeline. when: where; None: it denoises nothing.
    """
    for assembly in assemblies(model).values():
        assembly.levels.move(when)
