"""How a list is drawn: what holds for all of its jobs, and may be handed to another process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from studio.config import own_number
from studio.errors import BadConfig
from studio.limits import limit, too_many

__all__ = ["Setting"]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a list is drawn.

    Args:
        batch_size: pictures that are computed together, recorded as ``rows``.
        device: where to compute; None and ``"auto"``: the best there is.
        dtype: the base's number format; None and ``"auto"``: as :meth:`ImagePipeline.open` has it.
        config_of: whose configs a checkpoint of one file is opened with.
        allow_partial: load what fits of an adapter.
        pickled: read ``.pt`` and ``.bin`` adapters too.
        offline: never ask the hub.
        saving: what saves memory, as arguments of :meth:`ImagePipeline.open`.
        kind: the format of the pictures' files, as Pillow names it.

    Raises:
        BadConfig: a number of pictures that cannot be.
    """

    batch_size: int = 1
    device: str | None = None
    dtype: str | None = None
    config_of: str | None = None
    allow_partial: bool = False
    pickled: bool = False
    offline: bool = False
    saving: Mapping[str, Any] = field(default_factory=dict)
    kind: str = "PNG"

    def __post_init__(self) -> None:
        rows = own_number(self.batch_size)
        if not isinstance(rows, int) or isinstance(rows, bool) or not 1 <= rows <= limit("rows"):
            raise BadConfig(f"batch_size={self.batch_size!r}: give a whole number from 1 on, and {too_many('rows')}")
        object.__setattr__(self, "batch_size", rows)

    @property
    def decisive(self) -> dict[str, Any]:
        """What of it decides a picture's pixels."""
        auto = self.dtype in (None, "auto")
        saving = {name: value for name, value in self.saving.items() if name != "offload" and value}
        return {
            "rows": self.batch_size, **({} if auto else {"dtype": str(self.dtype)}), **saving,
            **({"allow_partial": True} if self.allow_partial else {}),
        }  # fmt: skip
