"""Adapters of several methods: files in which some layers are of one method and some of another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from studio.adapters.contract.adapter import AdapterConfig
from studio.errors import BadConfig

__all__ = ["Mixed"]


@dataclass(frozen=True, kw_only=True)
class Mixed(AdapterConfig):
    r"""One adapter whose layers are of several methods, each of one: ``W' = W + s · ΔW`` with that method's ΔW.

    LyCORIS' ``train_norm`` makes such files (pairs, and the change of the norms), Flux' control LoRAs are such, and so
    are many that were extracted. They are loaded, blended, baked and saved as one adapter. So is what trains a
    classifier: pairs in its body, and the change of its head.

    Attributes:
        parts: the configs of the methods. Once attached, or read from a file, their targets name the layers of each by
            their whole paths inside the component; before, they may be presets and patterns, and no layer may be in
            two.

    Raises:
        BadConfig: fewer than two parts, or a layer that is in two.

    Example:
        >>> from studio import Full, LoRA
        >>> both = Mixed(parts=(LoRA(targets=("a.to_q", "a.to_k")), Full(targets=("a.norm",))))
        >>> both.label, both.at("a.norm").method
        ('lora+full', 'full')
    """

    method: ClassVar[str] = "mixed"
    parts: tuple[AdapterConfig, ...] = ()

    def __post_init__(self) -> None:
        if len(self.parts) < 2:
            raise BadConfig(f"Mixed(parts={self.parts!r}): it is of at least two methods")
        object.__setattr__(self, "parts", tuple(member for part in self.parts for member in part.members))
        owners: dict[str, AdapterConfig] = {}
        for part in self.parts:
            for path in (part.targets,) if isinstance(part.targets, str) else part.targets:
                if owners.setdefault(path, part) is not part:
                    raise BadConfig(f"Mixed: {path} is in {owners[path].method} and in {part.method}")
        object.__setattr__(self, "targets", tuple(owners))
        self.__dict__["_owners"] = owners

    @property
    def data_driven(self) -> bool:
        return any(part.data_driven for part in self.parts)

    @property
    def restores(self) -> bool:
        return any(part.restores for part in self.parts)

    @property
    def members(self) -> tuple[AdapterConfig, ...]:
        return self.parts

    def at(self, path: str) -> AdapterConfig:
        owners: Mapping[str, AdapterConfig] = self.__dict__["_owners"]
        if path not in owners:
            raise BadConfig(f"{path} is in no part of this adapter ({self.label})")
        return owners[path]
