"""What loading did: every key of the file is either applied or ignored, and an ignored one has a reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["LoadReport"]


@dataclass(frozen=True)
class LoadReport:
    """What :func:`studio.load` did with a file.

    Attributes:
        name: the adapter's name on the model. method: its method. format: the file's format.
        applied: keys of the file that act now, sorted.
        ignored: keys that do not -> why, sorted; empty unless a partial load was allowed.
        sites: paths of the layers that carry the adapter.
        notes: what else is worth knowing (a pattern of the file's config that matches nothing, ...).
        embeddings: names of the learned words that were in it.

    Example:
        >>> print(LoadReport("dog", "lora", "kohya", ("a.lora_up.weight",), {"b.alpha": "no such layer"}, ("a",)))
        'dog': lora from a kohya file, 1 layers, 1 keys applied, 1 ignored
          ignored b.alpha: no such layer
    """

    name: str
    method: str
    format: str
    applied: tuple[str, ...] = field(repr=False)
    ignored: Mapping[str, str]
    sites: tuple[str, ...] = field(repr=False)
    notes: tuple[str, ...] = field(default=())
    embeddings: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        where = "encoders" if self.embeddings == (self.name,) else "layers"
        head = (
            f"{self.name!r}: {self.method} from a {self.format} file, {len(self.sites)} {where}, "
            f"{len(self.applied)} keys applied, {len(self.ignored)} ignored"
        )
        lines = [f"  ignored {key}: {reason}" for key, reason in self.ignored.items()]
        return "\n".join([head, *lines, *(f"  note: {note}" for note in self.notes)])
