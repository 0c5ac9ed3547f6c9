"""Adapters by sample: a call in which each row of the batch has an adapter of its own (``adapter_names``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from torch import Tensor, nn

from studio.adapters import Strength
from studio.peft.model.state import State
from studio.peft.terms.errors import Wrong, refusals

__all__ = ["batch_of", "by_sample", "check_tasks", "repeated_rows", "rows_of"]

BASE: Final = "__base__"
"""What stands in ``adapter_names`` for a sample without an adapter."""

_BATCHES: Final = ("input_ids", "inputs_embeds", "decoder_input_ids", "decoder_inputs_embeds", "pixel_values", "X")


def check_tasks(state: State, kwargs: Mapping[str, Any]) -> None:
    """Checks that a call with a prompt of several tasks says which task each sample is of.

    Args:
        state: what is on the model. kwargs: of the call.

    Raises:
        Wrong: it does not.
    """
    asks = [name for name in state.active if getattr(state.configs[name], "num_tasks", None)]
    if asks and kwargs.get("task_ids") is None and not state.disabled:
        raise Wrong(
            f"task_ids cannot be None: {asks[0]!r} has tasks; give each sample's number, task_ids=tensor([0, …])"
        )


def batch_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int | None:
    """Returns the rows of a call, where a tensor among its arguments shows them."""
    for name in _BATCHES:
        if isinstance(kwargs.get(name), Tensor):
            return int(kwargs[name].shape[0])
    first = next((one for one in args if isinstance(one, Tensor) and one.dim()), None)
    return None if first is None else int(first.shape[0])


@contextmanager
def by_sample(state: State, names: Sequence[str] | None, batch: int | None) -> Iterator[None]:
    """Lets each sample have its own adapter while the context lasts.

    Args:
        state: what is on the model. names: the adapter of each sample, "__base__" for none; None changes nothing.
        batch: the rows of the call, where they are known.

    Raises:
        Wrong: a name that no adapter has, another number of names than rows, merged adapters, or adapters that stand
            in for biases, of which a batch can have only one.
    """
    if names is None:
        yield
        return
    before, now = state.samples, list(names)
    with refusals():
        if not state.disabled:
            _check(state, now)
        if state.merged:
            raise Wrong(
                "Cannot pass `adapter_names` when there are merged adapters, please call `unmerge_adapter` first."
            )
        if batch is not None and batch != len(now):
            raise Wrong(
                "Length of `adapter_names` should be the same as the number of inputs, but got "
                f"{len(now)} and {batch} respectively."
            )
    levels = state.assembly.levels
    strengths, muted = levels.strengths, levels.muted
    state.samples, levels.muted = now, {}
    try:
        with refusals():
            state.assembly.set(_strengths(state, now))
            yield
    finally:
        state.samples, levels.muted = before, muted
        levels.set(strengths)


def _check(state: State, names: Sequence[str]) -> None:
    unknown = sorted({name for name in names if name != BASE and name not in state.configs})
    if unknown:
        raise Wrong(
            f"Trying to infer with non-existing adapter(s): {', '.join(unknown)} (there are: "
            f"{', '.join(state.configs)}, and {BASE})"
        )
    bare = next((path for name in {*names} - {BASE} for path, one in state.own_layers(name).items()
                 if one.site.hosting == "owner"), None)  # fmt: skip
    if bare is not None:
        raise Wrong(
            f"lora.ParamWrapper does not support mixed adapter batches yet. ({bare} is a bare parameter, which its "
            "module uses for all samples at once: give one adapter for all)"
        )
    if any(state.extras[name].parameters for name in {*names, *state.active} - {BASE}):
        raise Wrong("adapter_names cannot be mixed in a batch with adapters that replace biases of the base")


def _strengths(state: State, names: Sequence[str]) -> dict[str, Strength]:
    """The blend in which sample i has the adapter ``names[i]`` alone."""
    return {
        core: Strength(samples=[float(one == name) for one in names])
        for name in dict.fromkeys(names)
        for core in state.cores(name)
    }


def rows_of(state: State, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[str]:
    """Returns the adapter of each row of a module's call; beams of a sample stand in a row.

    Args:
        state: what is on the model, while :func:`by_sample` lasts. args, kwargs: what the module is called with.

    Raises:
        Wrong: another number of rows than there are samples.
    """
    samples = state.samples or []
    x = next(one for one in (*args, *kwargs.values()) if isinstance(one, Tensor))
    times, rest = divmod(x.shape[0], len(samples))
    if rest or (times != 1 and not state.repeats):
        raise Wrong(f"adapter_names names {len(samples)} samples, and a module was called with {x.shape[0]}")
    return [name for name in samples for _ in range(times)]


@contextmanager
def repeated_rows(state: State, samples: int) -> Iterator[None]:
    """While it lasts, a batch with several rows per sample has them in a row, as generation makes beams.

    Args:
        state: what is on the model. samples: how many samples the batch has.
    """
    base: Any = state.model
    encoder = base.get_encoder() if getattr(getattr(base, "config", None), "is_encoder_decoder", False) else None
    levels, before = state.assembly.levels, []

    def begin(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        times = (batch_of(args, kwargs) or samples) // samples
        before.append(levels.rows)
        levels.rows = tuple(row // times for row in range(samples * times)) if times > 1 else None
        levels.touch()

    def end(module: nn.Module, args: Any, output: Any) -> None:
        levels.rows = before.pop()
        levels.touch()

    handles = []
    for module in [base] if encoder is None else [base, encoder]:
        handles.append(module.register_forward_pre_hook(begin, with_kwargs=True, prepend=True))
        handles.append(module.register_forward_hook(end, always_call=True))
    state.repeats = True
    try:
        yield
    finally:
        state.repeats = False
        for handle in handles:
            handle.remove()
        while before:  # calls that an error has ended
            end(base, (), None)
