"""What virtual tokens act on a model now: the adapters that are on, for which rows and tasks, and what they share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from studio.adapters.hosting.mount import Mount
from studio.adapters.sites.language import ModelSite, Stack
from studio.adapters.tokens.contract import PrefixAdapter, PromptAdapter, TokenAdapter
from studio.errors import DoesNotFit

__all__ = ["Acting", "Coefficient", "TokenState"]

Coefficient: TypeAlias = "float | Tensor"
Acting: TypeAlias = "list[tuple[str, TokenAdapter, Coefficient]]"


class TokenState:
    """What the hooks of one model ask while it runs.

    Args:
        mount: what the model carries.

    Attributes:
        chosen_tasks: the tasks of the samples, as a context around the calls names them; tasks: those of this call.
        generating: whether ``generate`` runs, in which a sample's rows are its beams.
        whole: whether what comes out has the columns of the virtual tokens too, as PEFT gives it.
    """

    def __init__(self, mount: Mount) -> None:
        self.mount, self.site = mount, cast(ModelSite, mount.site)
        self.tasks: Tensor | None = None
        self.chosen_tasks: Tensor | None = None
        self.generating = self.whole = False
        self._kept: dict[tuple[Any, ...], tuple[Tensor, tuple[Any, ...]]] = {}

    def forget(self) -> None:
        """Drops what attentions shared in an earlier call."""
        self._kept.clear()

    def kept(self, key: tuple[Any, ...], make: Callable[[], Tensor], *alive: Any) -> Tensor:
        """Returns ``make()``, once for all attentions that ask under the same key while the model runs.

        Args:
            key: what the tensor depends on; of a tensor its ``id``. make: makes it.
            alive: the tensors whose ids are in the key, which then belong to nothing else meanwhile.
        """
        if key not in self._kept:
            self._kept[key] = (make(), alive)
        return self._kept[key][0]

    def acting(self) -> Acting:
        """Name, adapter and strength of all that is on."""
        mount = self.mount
        names = {id(adapter): name for name, adapter in mount.adapters._modules.items()}
        return [(names[id(adapter)], cast(TokenAdapter, adapter), number) for adapter, number in mount.prepare().others]

    def strength(self, name: str, path: str) -> Coefficient:
        """Returns the strength of an adapter at the attention ``path``: a number, or one per sample, on the CPU."""
        return self.mount.levels.coefficient(name, path)

    def note_called(self) -> None:
        """Notes that virtual tokens have been let act."""
        self.mount.note_called()

    def prompts(self, role: str) -> list[tuple[str, PromptAdapter, Coefficient]]:
        """The soft prompts that stand before the stack of a role."""
        return [
            (name, adapter, number)
            for name, adapter, number in self.acting()
            if isinstance(adapter, PromptAdapter) and adapter.stands_before(role)
        ]

    def prefixes(self, place: str) -> list[tuple[str, PrefixAdapter, Coefficient]]:
        """The prefixes that the attentions of a place read."""
        return [
            (name, adapter, number)
            for name, adapter, number in self.acting()
            if isinstance(adapter, PrefixAdapter) and place in adapter.places
        ]

    def rows(self, value: Coefficient, batch: int, device: torch.device) -> Tensor:
        """Spreads a number, or one per sample, over the rows of a batch ``(B,)``.

        Raises:
            DoesNotFit: as many numbers as the batch has no rows.
        """
        if not isinstance(value, Tensor):
            return torch.full((batch,), value, device=device)
        value = value.to(device)
        if value.shape[0] == batch:
            return value
        if self.generating and batch % value.shape[0] == 0:  # generate() repeats each sample for its beams
            return value.repeat_interleave(batch // value.shape[0])
        raise DoesNotFit(
            f"{value.shape[0]} samples are named (by the blend or task_ids), and {type(self.site.module).__name__} was "
            f"called with {batch} rows; name one per row, or use sample_rows(...)"
        )

    def task_of(self, batch: int, device: torch.device) -> Tensor | None:
        """The task of each row ``(B,)``, or None where none is named."""
        return None if self.tasks is None else self.rows(self.tasks.reshape(-1), batch, device)

    def check_room(self, stack: Stack, length: int, virtual: int) -> None:
        """Checks that text and virtual tokens fit into the context.

        Raises:
            DoesNotFit: they do not.
        """
        context = self.site.context
        if context is not None and length + virtual > context:
            raise DoesNotFit(
                f"{virtual} virtual tokens and {length} of text are more than the context of "
                f"{type(self.site.module).__name__}, {context} tokens; shorten the text to {context - virtual}"
            )
