"""The watch: an adapter that is active on a layer which the model never calls is an error, not a silence.

Every mount notes that it was called. When the model returns, the watch looks for mounts that were not, and leaves out
those that had a reason: items of a list that a router or a dropped layer skipped, and what an earlier call computed.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

import torch
from torch import nn

from studio.adapters.hosting.levels import Levels
from studio.adapters.hosting.mount import Mount
from studio.adapters.hosting.turns import check_turn
from studio.adapters.sites.read import module_at
from studio.errors import DoesNotFit, NoEffect
from studio.families import named_parts

__all__ = ["Watch"]

_GIVEN: Final = ("past_key_values", "encoder_outputs")
"""Arguments that hold what an earlier call made: layers whose results are in them need not run again."""


class Watch:
    """The hooks of one model that notice what was called.

    Args:
        root: the model. mounts: path -> mount, as it stands at each call. levels: whether anything acts live.
    """

    def __init__(self, root: nn.Module, mounts: Mapping[str, Mount], levels: Levels) -> None:
        self.root, self.mounts, self.levels = root, mounts, levels
        self._items: dict[str, Any] = {}  # path of an item of a list with adapters in it -> its hook
        self._calls: dict[int, Call] = {}  # thread -> the call that runs in it
        self._handles = [
            root.register_forward_pre_hook(self._begin, with_kwargs=True),
            root.register_forward_hook(self._end),
        ]
        for _, module in named_parts(root):  # a hook takes torch's encoder layer off the path that reads weights itself
            if isinstance(module, nn.TransformerEncoderLayer):
                self._handles.append(module.register_forward_pre_hook(_nothing))

    def remove(self) -> None:
        """Takes all hooks off."""
        for handle in (*self._handles, *self._items.values()):
            handle.remove()

    def index(self) -> None:
        """Notices which items of a list run: a router calls some of its experts, training may drop whole layers."""
        wanted: dict[str, nn.Module] = {}
        for above in dict.fromkeys(above for path in self.mounts for above, _ in _splits(path)):
            holder = self._list_at(above)
            items = {} if holder is None else holder._modules
            wanted |= {_joined(above, name): item for name, item in items.items() if item is not None}
        for path in self._items.keys() - wanted.keys():
            self._items.pop(path).remove()
        for path in wanted.keys() - self._items.keys():
            self._items[path] = wanted[path].register_forward_pre_hook(functools.partial(self._note_item, path))

    def _list_at(self, path: str) -> nn.ModuleList | None:
        found = module_at(self.root, path)
        return found if isinstance(found, nn.ModuleList) else None

    def _note_item(self, path: str, module: nn.Module, args: Any) -> None:
        if not torch.compiler.is_compiling() and threading.get_ident() in self._calls:
            self._calls[threading.get_ident()].ran.add(path)

    def _skipped(self, path: str, ran: Collection[str]) -> bool:
        """Whether a layer is in an item of a list that did not run, while another item of its class did."""
        for above, name in _splits(path):
            holder = self._list_at(above)
            if holder is not None and not self._has_run(_joined(above, name), ran):
                kind = _class_of(holder._modules[name])
                beside = [other for other, item in holder._modules.items() if _class_of(item) is kind]
                if any(self._has_run(_joined(above, other), ran) for other in beside):
                    return True
        return False

    def _has_run(self, item: str, ran: Collection[str]) -> bool:
        """Whether an item of a list was called, or a layer in it was."""
        inside = f"{item}."
        return item in ran or any(m.was_called() and path.startswith(inside) for path, m in self.mounts.items())

    def _begin(self, root: nn.Module, args: Any, kwargs: Mapping[str, Any] | None = None) -> None:
        if torch.compiler.is_compiling():
            return
        check_turn(self.levels)
        resumes = kwargs is not None and any(kwargs.get(name) is not None for name in _GIVEN)
        self._calls[threading.get_ident()] = Call(resumes, self.levels.version)
        for mount in self.mounts.values():  # by a part of the model, since the last call of it (generate's encoder)
            mount.seen |= mount.was_called()
            mount.begin_call()

    def _end(self, root: nn.Module, args: Any, output: Any) -> None:
        if torch.compiler.is_compiling():
            return
        call = self._calls.pop(threading.get_ident(), None)
        if call is None:
            return
        self._check_blend(root, call)
        if self.levels.baked is not None or not self.levels.acting:
            return
        missed = self._missed(call)
        if missed:
            more = f" and {len(missed) - 1} more" if len(missed) > 1 else ""
            raise NoEffect(
                f"the adapters on {missed[0]}{more} are active, and {type(root).__name__} ran without calling that "
                "layer (fused projections, or code that reads the weight itself): they have no effect; exclude these "
                "layers, undo the fusion, or bake the blend"
            )

    def _check_blend(self, root: nn.Module, call: Call) -> None:
        """Refuses what was computed while another thread changed the blend."""
        if self.levels.version != call.version and self.levels.changed_by != threading.get_ident():
            raise DoesNotFit(
                f"another thread changed the blend while {type(root).__name__} ran, so that what it returned is of "
                "neither; call it inside blended(...), where threads take turns"
            )

    def _missed(self, call: Call) -> list[str]:
        """Layers on which something acts, and which were not called although nothing explains it."""
        missed = [path for path, mount in self.mounts.items() if not mount.was_called() and mount.acts()]
        if missed:  # of layers that hold one weight, some are there for the others alone (T5's "shared")
            reached = {id(mount.site.weight) for mount in self.mounts.values() if mount.was_called()}
            missed = [path for path in missed if not self.mounts[path].follows(reached)]
        missed = [path for path in missed if not self._skipped(path, call.ran)]
        for mount in self.mounts.values():
            mount.seen |= mount.was_called()
        return [path for path in missed if not self.mounts[path].seen] if call.resumes else missed


class Call:
    """One call of the model: whether it goes on from an earlier one, the blend's version, the items that ran."""

    __slots__ = ("ran", "resumes", "version")

    def __init__(self, resumes: bool, version: int) -> None:
        self.resumes, self.version = resumes, version
        self.ran: set[str] = set()


def _splits(path: str) -> Iterator[tuple[str, str]]:
    """Splits a path at each of its words: what is above it, and the word."""
    words = path.split(".")
    for at, word in enumerate(words):
        yield ".".join(words[:at]), word


def _joined(above: str, name: str) -> str:
    return f"{above}.{name}" if above else name


def _class_of(module: nn.Module | None) -> type:
    return vars(type(module)).get("hosts", type(module))


def _nothing(module: nn.Module, args: Any) -> None:
    return None
