"""How virtual tokens join a language model while it runs: hooks on the model, its stacks and their attentions.

Nothing is replaced: the model keeps its classes, forwards and signatures, and its cache holds what it always holds,
plus the virtual tokens of soft prompts. A prefix is never in a cache: every attention puts it before its keys when it
runs. So generation, beam search, padding and gradient checkpointing (which runs layers without any cache) need nothing.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor, nn

from studio.adapters.hosting.assembly import assembly_at
from studio.adapters.hosting.attached import assemblies
from studio.adapters.hosting.host import HOOKS
from studio.adapters.hosting.mount import Mount
from studio.adapters.tokens.prefixing import AttentionWire
from studio.adapters.tokens.prompting import StackWire, named
from studio.adapters.tokens.state import TokenState
from studio.errors import DoesNotFit

__all__ = ["Wiring", "for_tasks", "with_virtual"]


class Wiring:
    """All hooks of one model.

    Args:
        mount: what the model carries.
    """

    def __init__(self, mount: Mount) -> None:
        self.state = state = TokenState(mount)
        root = state.site.module
        self.handles = [root.register_forward_pre_hook(self._begin, with_kwargs=True)]
        self.wires = [StackWire(state, stack) for stack in state.site.stacks]
        for stack, wire in zip(state.site.stacks, self.wires, strict=True):
            self.handles.append(stack.module.register_forward_pre_hook(wire.before, with_kwargs=True))
            self.handles.append(stack.module.register_forward_hook(wire.after, with_kwargs=True))
        for attention in state.site.found_attentions():
            hook = AttentionWire(state, attention).before
            self.handles.append(attention.module.register_forward_pre_hook(hook, with_kwargs=True))
        self.own_generate = root.__dict__.get("generate")
        if callable(getattr(type(root), "generate", None)):
            original = self.own_generate or MethodType(cast(Any, type(root)).generate, root)
            root.__dict__["generate"] = functools.partial(_generate, state, original)

    def remove(self) -> None:
        """Takes all hooks off."""
        for handle in self.handles:
            handle.remove()
        root = self.state.site.module
        root.__dict__.pop("generate", None)
        if self.own_generate is not None:
            root.__dict__["generate"] = self.own_generate

    def _begin(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        state, given = self.state, kwargs.get("task_ids")
        state.forget()
        if not state.generating:
            state.tasks = state.chosen_tasks if given is None else torch.as_tensor(given)
        kept = {name: value for name, value in kwargs.items() if name != "task_ids"}
        if state.whole:
            args, kept = self._labelled(module, args, kept)
        return (args, kept) if len(kept) < len(kwargs) or state.whole else None

    def _labelled(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The call, with labels for all columns that will come out."""
        known = inspect.signature(module.forward).parameters.values()
        given = named([one.name for one in known if one.kind is one.POSITIONAL_OR_KEYWORD], args, kwargs)
        shifted = getattr(module, "loss_type", None) in (None, "ForCausalLM")  # None: transformers takes the latter
        labels = self.wires[0].labelled(given, shifted=shifted)
        if labels is None:
            return args, kwargs
        return (args, {**kwargs, "labels": labels}) if "labels" in kwargs else ((), {**given, "labels": labels})


HOOKS["hooks"] = Wiring


def _generate(state: TokenState, original: Any, *args: Any, task_ids: Any = None, **kwargs: Any) -> Any:
    """``generate`` of the model, in which a sample's rows are its beams; ``task_ids`` are the tasks of the samples."""
    before = state.tasks
    state.generating, state.tasks = True, state.chosen_tasks if task_ids is None else torch.as_tensor(task_ids)
    try:
        return original(*args, **kwargs)
    finally:
        state.generating, state.tasks = False, before


@contextmanager
def with_virtual(model: Any) -> Iterator[None]:
    """Lets calls give the columns of virtual tokens too, while the context lasts, with labels of the text beside them.

    Each row ends with its text, as without: padding on its left, virtual tokens, text. PEFT gives such logits; the
    loss then counts the first token of a text as well, which the last virtual token predicts. A classifier of whole
    texts and a model with an encoder and a decoder give what they always do.

    Args:
        model: the model; one without virtual tokens is left as it is.
    """
    assembly = assembly_at(model)
    mount = None if assembly is None else assembly.mounts.get("")
    state = mount.hooks.state if mount is not None and isinstance(mount.hooks, Wiring) else None
    if state is None:
        yield
        return
    before, state.whole = state.whole, True
    try:
        yield
    finally:
        state.whole = before


@contextmanager
def for_tasks(model: Any, tasks: Sequence[int] | Tensor) -> Iterator[None]:
    """Says which task each sample of a batch is of, while the context lasts (``MultitaskPrompt``).

    The same can be said in a call: ``model(**batch, task_ids=tasks)``, ``model.generate(..., task_ids=tasks)``.

    Args:
        model: the model. tasks: the number of the task of each sample.

    Raises:
        DoesNotFit: no method of virtual tokens is attached.
    """
    found = [
        mount.hooks.state
        for assembly in assemblies(model).values()
        for mount in assembly.mounts.values()
        if isinstance(mount.hooks, Wiring)
    ]
    if not found:
        raise DoesNotFit("no soft prompt is attached to this model, so tasks have no meaning; attach a MultitaskPrompt")
    before = [state.chosen_tasks for state in found]
    for state in found:
        state.chosen_tasks = torch.as_tensor(tasks)
    try:
        yield
    finally:
        for state, old in zip(found, before, strict=True):
            state.chosen_tasks = old
