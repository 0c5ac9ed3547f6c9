"""Random matrices that all layers of an adapter share: drawn once from a key, frozen, and held by one of the layers."""

from __future__ import annotations

import dataclasses
import hashlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar, cast

from torch import Tensor

from studio.adapters.contract.adapter import Adapter, AdapterConfig
from studio.adapters.contract.foreign import Layers, Tables
from studio.adapters.sites.site import Site
from studio.errors import DoesNotFit

__all__ = ["ProjectedAdapter", "ProjectionConfig"]

Projected = TypeVar("Projected", bound="ProjectionConfig")


class ProjectionConfig(AdapterConfig):
    """What the configs of the methods with shared random matrices have; each lists these fields after its own.

    Attributes:
        key: seed of the matrices, a whole number in [0, 2**63).
        save_projection: whether files hold them. Without them a file is small, and they are drawn anew from the key at
            loading, which another version of torch could do differently.
        checksums: what the matrices of a file without them have to be; saving fills it in.

    Raises:
        BadConfig: a field with an impossible value.
    """

    key: int
    save_projection: bool
    checksums: tuple[str, ...]

    def check(self) -> None:
        whole = isinstance(self.key, int) and not isinstance(self.key, bool)
        self.require(whole and 0 <= self.key < 2**63, "key", "a whole number in [0, 2**63)")
        object.__setattr__(self, "checksums", tuple(self.checksums))


class ProjectedAdapter(Adapter[Projected]):
    """An adapter on one site whose frozen matrices ``A`` and ``B`` belong to one of the layers, the owner."""

    frozen: ClassVar[tuple[str, ...]] = ("A", "B")
    owner: ProjectedAdapter[Projected]

    @classmethod
    @abstractmethod
    def projection(cls, config: Projected, sites: Sequence[Site]) -> dict[str, Tensor]:
        """Draws ``A`` and ``B`` for these layers from ``config.key``.

        Args:
            config: the method's config. sites: the layers.
        """

    @abstractmethod
    def check_pair(self) -> None:
        """Checks the owner's matrices against the layer.

        Raises:
            DoesNotFit: they are too small for it.
        """

    @classmethod
    def common(cls, sites: Mapping[str, Site], config: Projected) -> dict[str, Tensor]:
        return cls.projection(config, list(sites.values()))

    @classmethod
    def link(cls, adapters: Mapping[str, Any]) -> None:
        owner = next((one for one in adapters.values() if one.tensor("A") is not None), None)
        if owner is None and adapters:
            owner = next(iter(adapters.values()))
            made = cls.projection(owner.config, [one.site for one in adapters.values()])
            known = owner.config.checksums
            if known and _checksum(made) not in known:
                name = type(owner.config).__name__
                raise DoesNotFit(
                    f"the projections of this {name} adapter cannot be drawn anew from key={owner.config.key}: not the "
                    "ones it was trained with come out (a layer is missing, or torch draws differently here); save it "
                    "with save_projection=True where it was trained"
                )
            owner._buffers |= {name: tensor.to(owner.tensor(cls.trained[0])) for name, tensor in made.items()}
        for one in adapters.values():
            one.__dict__["owner"] = owner
            one.check_pair()

    @classmethod
    def to_save(cls, config: Projected, layers: Layers) -> tuple[Projected, Tables]:
        """Takes ``A`` and ``B`` out, unless they are to be saved, and notes what they were."""
        plain = {path: dict(tensors) for path, tensors in layers.items()}
        if config.save_projection:
            return dataclasses.replace(cast(Any, config), checksums=()), plain
        owners = [tensors for tensors in plain.values() if "A" in tensors]
        checksums = sorted(_checksum(tensors) for tensors in owners)
        for tensors in owners:
            del tensors["A"], tensors["B"]
        return dataclasses.replace(cast(Any, config), checksums=tuple(checksums)), plain

    def fit(self) -> None:
        self.__dict__["owner"] = self

    def _own_pair(self) -> tuple[Tensor, Tensor]:
        return cast(Tensor, self._buffers["A"]), cast(Tensor, self._buffers["B"])

    def pair(self) -> tuple[Tensor, Tensor]:
        """Returns the owner's ``A`` and ``B``, as they are."""
        # through a call of the module where it is another one's, so that hooks of others (offloading) see it
        return self._own_pair() if self.owner is self else self.owner(ProjectedAdapter._own_pair)


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in ("A", "B"):
        digest.update(tensors[name].float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
