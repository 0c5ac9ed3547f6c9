"""How the changes of several adapters lie to each other: inner products of their deltas, layer by layer.

All that is told about a blend follows from the Gram matrix ``G_ij = ⟨Δ_i, Δ_j⟩`` of each layer, where ``Δ_i`` is the
change ``(ΔW_i, Δb_i)`` of adapter ``i`` at strength 1 as one long vector: with strengths ``s`` its norm is
``s_i √G_ii``, the cosine of two is ``G_ij / √(G_ii G_jj)``, and the norm of the sum is ``√(sᵀ G s)``. Blocks and the
whole model are sums of such matrices.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from studio.adapters.blend import check_constant, current_blend, read_blend
from studio.adapters.contract.strength import Strength, StrengthLike
from studio.adapters.gram import Carried, grams
from studio.adapters.hosting.attached import assemblies, check_unbaked, whole_path
from studio.adapters.sites.site import Site

__all__ = ["Overlap", "block_of", "by_block", "joined", "measured", "one_blend", "overlaps", "without_change"]


@dataclass(frozen=True, eq=False)
class Overlap:
    """What the adapters of a blend do at one place: a layer, a block, or the whole model.

    Attributes:
        place: path of the layer or block; ``""`` is the whole model.
        sites: layers there that any of them changes.
        names: the adapters of the blend that change weights.
        own: ``⟨Δ_i, Δ_j⟩`` at strength 1, ``(names, names)`` in fp64.
        acting: ``⟨s_i Δ_i, s_j Δ_j⟩`` at the strengths of the blend, ``(names, names)``.
        base: norm of the base's weights and biases there; None where it was not asked for.
    """

    place: str
    sites: int
    names: tuple[str, ...]
    own: Tensor
    acting: Tensor
    base: float | None = None

    @property
    def norms(self) -> dict[str, float]:
        """``‖s_i Δ_i‖`` of each adapter that acts here."""
        return {name: float(norm) for name, norm in zip(self.names, self._norms(), strict=True) if norm > 0}

    @property
    def cosines(self) -> dict[tuple[str, str], float]:
        """The cosine of each two that act here: 1 they do the same, 0 they do not meet, -1 they undo each other."""
        norms, found = self._norms(), {}
        for i, first in enumerate(self.names):
            for j in range(i + 1, len(self.names)):
                if norms[i] > 0 and norms[j] > 0:
                    cosine = float(self.acting[i, j] / (norms[i] * norms[j]))
                    found[first, self.names[j]] = max(-1.0, min(1.0, cosine))
        return found

    @property
    def total(self) -> float:
        """``‖Σ s_i Δ_i‖``: how far the blend as a whole moves the weights."""
        return float(self.acting.sum().clamp(min=0).sqrt())

    @property
    def kept(self) -> float:
        """``‖Σ s_i Δ_i‖ / Σ ‖s_i Δ_i‖``: 1 all add up, 1/√n is n that do not meet, 0 they undo each other."""
        apart = float(self._norms().sum())
        return self.total / apart if apart else 1.0

    @property
    def growth(self) -> float:
        """``‖Σ s_i Δ_i‖ / max_i max(1, s_i) ‖Δ_i‖``: how far they go together, of what the strongest does by itself.

        An adapter was trained at strength 1, so what it moves there is what the model is known to bear.
        """
        norms, own = self._norms(), self.own.diagonal().clamp(min=0).sqrt()
        strongest = float(torch.where(norms > 0, torch.maximum(norms, own), 0.0).max()) if self.names else 0.0
        return self.total / strongest if strongest else 1.0

    def relative(self, norm: float) -> float | None:
        """Returns a norm as a part of the base's; None where that is not known or 0.

        Args:
            norm: one of :attr:`norms`, or :attr:`total`.
        """
        return norm / self.base if self.base else None

    def _norms(self) -> Tensor:
        return self.acting.diagonal().clamp(min=0).sqrt()


def overlaps(
    model: Any, strengths: Mapping[str, Strength], *, base: bool = True, exact: bool = True
) -> Iterator[Overlap]:
    """Yields what the adapters of a blend do, layer by layer; a pipeline's paths have the component in front.

    Args:
        model: the model or pipeline.
        strengths: the blend, as :func:`one_blend` reads it.
        base: whether the base's norms are computed as well, which reads all of its adapted weights.
        exact: see :func:`~studio.adapters.gram.grams`.

    Raises:
        DoesNotFit: a blend is baked into the weights, or a weight that a method's change is made of is offloaded.
    """
    check_unbaked(model, "look at a blend")
    silent = without_change(model, strengths)
    names = tuple(name for name in strengths if name not in silent)
    places, layers, levels = _acting(model, strengths, names)
    if layers:
        yield from measured(places, layers, levels, names, base=base, exact=exact)


def measured(
    places: Sequence[str],
    layers: Sequence[Carried],
    levels: Sequence[Sequence[float]],
    names: tuple[str, ...],
    *,
    base: bool = True,
    exact: bool = True,
) -> Iterator[Overlap]:
    """Yields what adapters do at layers that need not be of a model.

    Args:
        places: paths of the layers. layers: the layers, with the adapters that act there by their place in ``names``.
        levels: the strengths at each layer, one for each name. names: the adapters.
        base: whether the base's norms are computed as well. exact: see :func:`~studio.adapters.gram.grams`.

    Raises:
        DoesNotFit: a weight that a method's change is made of is offloaded, or not at hand.
    """
    own, each = grams(layers, len(names), exact=exact), torch.tensor(levels, dtype=torch.float64)
    acting = own * each[:, :, None] * each[:, None, :]
    for place, (site, _), one, moved in zip(places, layers, own, acting, strict=True):
        yield Overlap(place, 1, names, one, moved, _base_norm(site) if base else None)


def _acting(
    model: Any, strengths: Mapping[str, Strength], names: Sequence[str]
) -> tuple[list[str], list[Carried], list[list[float]]]:
    """The layers where any of these adapters acts: paths, layers with those that act, and the strength of each."""
    places: list[str] = []
    layers: list[Carried] = []
    levels: list[list[float]] = []
    for component, assembly in assemblies(model).items():
        for path, mount in assembly.mounts.items():
            own = {i: mount.adapters.get(name) for i, name in enumerate(names)}
            here = {i: one for i, one in own.items() if one is not None}
            numbers = {i: assembly.levels.number(names[i], strengths[names[i]], path) for i in here}
            here = {i: one for i, one in here.items() if numbers[i]}
            if here:
                places.append(whole_path(component, path))
                layers.append((mount.site, here))
                levels.append([numbers.get(i, 0.0) for i in range(len(names))])
    return places, layers, levels


def by_block(sites: Iterable[Overlap]) -> tuple[Overlap, ...]:
    """Returns layers as blocks (:func:`block_of`), in the order of the layers.

    Args:
        sites: the layers of one blend.
    """
    found: dict[str, list[Overlap]] = {}
    for site in sites:
        found.setdefault(block_of(site.place), []).append(site)
    return tuple(joined(inside, block) for block, inside in found.items())


def joined(places: Iterable[Overlap], place: str) -> Overlap:
    """Returns several places as one.

    Args:
        places: of one blend, at least one. place: what it is called.
    """
    found = list(places)
    bases = [one.base for one in found if one.base is not None]
    return Overlap(
        place,
        sum(one.sites for one in found),
        found[0].names,
        torch.stack([one.own for one in found]).sum(0),
        torch.stack([one.acting for one in found]).sum(0),
        sum(base * base for base in bases) ** 0.5 if bases else None,
    )


def one_blend(model: Any, blend: Mapping[str, StrengthLike] | str | None) -> dict[str, Strength]:
    """Reads a blend that is the same for all samples; None is the current one.

    Raises:
        UnknownName: an adapter that is not attached. BadConfig: an impossible strength.
        DoesNotFit: strengths differ by sample.
    """
    strengths = current_blend(model) if blend is None else read_blend(model, blend)
    for name, strength in strengths.items():
        check_constant(name, strength, "give the blend of one sample, moment and place at a time")
    return strengths


def without_change(model: Any, names: Iterable[str]) -> dict[str, str]:
    """Returns the adapters that change no weight, and their methods."""
    found = {}
    for name in names:
        for assembly in assemblies(model).values():
            members = assembly.records[name].config.members if name in assembly.records else ()
            silent = [member.method for member in members if not member.adapter.bakes]
            if silent:
                found[name] = silent[0]
    return found


def block_of(path: str) -> str:
    """Returns the block that a layer is in: its path up to the first number, or to a name that ends in ``block``.

    Example:
        >>> block_of("unet.up_blocks.1.attentions.0.to_q"), block_of("unet.mid_block.attentions.0.to_q")
        ('unet.up_blocks.1', 'unet.mid_block')
        >>> block_of("text_encoder.text_model.encoder.layers.11.mlp.fc1"), block_of("unet.conv_in")
        ('text_encoder.text_model.encoder.layers.11', 'unet.conv_in')
    """
    parts = path.split(".")
    ends = (index + 1 for index, part in enumerate(parts) if part.isdigit() or part.endswith("block"))
    return ".".join(parts[: next(ends, len(parts))])


def _base_norm(site: Site) -> float | None:
    """Norm of the weight and the bias of a layer; None where they are offloaded, or not at hand."""
    held = [tensor for tensor in (site.weight, site.bias) if tensor is not None]
    if any(tensor.device.type == "meta" for tensor in held):
        return None
    return float(sum(float(torch.linalg.vector_norm(tensor.detach().float())) ** 2 for tensor in held)) ** 0.5
