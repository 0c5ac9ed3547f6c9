"""How the changes of several adapters lie to each other: inner products of their deltas, layer by layer.

All that is told about a blend follows from the Gram matrix ``G_ij = ⟨Δ_i, Δ_j⟩`` of each layer, where ``Δ_i`` is the
change ``(ΔW_i, Δb_i)`` of adapter ``i`` at strength 1 as one long vector: with strengths ``s`` its norm is
``s_i √G_ii``, the cosine of two is ``G_ij / √(G_ii G_jj)``, and the norm of the sum is ``√(sᵀ G s)``. Blocks and the
whole model are sums of such matrices.

A factor pair is never multiplied out: ``⟨U_1 D_1, U_2 D_2⟩ = tr(U_1ᵀ U_2 · D_2 D_1ᵀ)``, from products as small as the
ranks. Other methods give their delta, one layer at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from studio.adapters.blend import current_blend, read_blend
from studio.adapters.contract.adapter import Adapter, Delta, Factors
from studio.adapters.contract.strength import Strength, StrengthLike
from studio.adapters.hosting.attached import assemblies, check_unbaked, whole_path
from studio.adapters.hosting.mount import Mount
from studio.device import has_dtype
from studio.errors import DoesNotFit

__all__ = ["Overlap", "block_of", "joined", "one_blend", "overlaps", "without_change"]


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
        """``‖Σ s_i Δ_i‖ / max ‖s_i Δ_i‖``: how much further they go together than the strongest by itself."""
        strongest = float(self._norms().max()) if self.names else 0.0
        return self.total / strongest if strongest else 1.0

    def relative(self, norm: float) -> float | None:
        """Returns a norm as a part of the base's; None where that is not known or 0.

        Args:
            norm: one of :attr:`norms`, or :attr:`total`.
        """
        return norm / self.base if self.base else None

    def _norms(self) -> Tensor:
        return self.acting.diagonal().clamp(min=0).sqrt()


def overlaps(model: Any, strengths: Mapping[str, Strength], *, base: bool = True) -> Iterator[Overlap]:
    """Yields what the adapters of a blend do, layer by layer; a pipeline's paths have the component in front.

    Args:
        model: the model or pipeline.
        strengths: the blend, as :func:`one_blend` reads it.
        base: whether the base's norms are computed as well, which reads all of its adapted weights.

    Raises:
        DoesNotFit: a blend is baked into the weights, or a weight that a method's change is made of is offloaded.
    """
    check_unbaked(model, "look at a blend")
    silent = without_change(model, strengths)
    names = tuple(name for name in strengths if name not in silent)
    for component, assembly in assemblies(model).items():
        for path, mount in assembly.mounts.items():
            here = [name for name in names if name in mount.adapters.names()]
            numbers = [assembly.levels.number(name, strengths[name], path) for name in here]
            if not any(numbers):
                continue
            own, place = torch.zeros(len(names), len(names), dtype=torch.float64), [names.index(one) for one in here]
            own[torch.tensor(place)[:, None], torch.tensor(place)] = _gram(mount, here)
            levels = torch.zeros(len(names), dtype=torch.float64)
            levels[place] = torch.tensor(numbers, dtype=torch.float64)
            acting = own * levels[:, None] * levels
            yield Overlap(whole_path(component, path), 1, names, own, acting, _base_norm(mount) if base else None)


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
        if strength.samples is not None:
            raise DoesNotFit(f"the strength of {name!r} differs by sample; give the blend of one sample at a time")
    return strengths


def without_change(model: Any, names: Iterable[str]) -> dict[str, str]:
    """Returns the adapters that change no weight, and their methods."""
    found = {}
    for name in names:
        for assembly in assemblies(model).values():
            if name in assembly.records and not assembly.records[name].config.adapter.bakes:
                found[name] = assembly.records[name].config.method
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


def _base_norm(mount: Mount) -> float | None:
    """Norm of the weight and the bias of a layer; None where they are offloaded."""
    held = [tensor for tensor in (mount.site.weight, mount.site.bias) if tensor is not None]
    if any(tensor.device.type == "meta" for tensor in held):
        return None
    return float(sum(float(torch.linalg.vector_norm(tensor.detach().float())) ** 2 for tensor in held)) ** 0.5


@torch.no_grad()
def _gram(mount: Mount, names: Sequence[str]) -> Tensor:
    """``⟨Δ_i, Δ_j⟩`` of these adapters at one layer, ``(names, names)`` in fp64 on the CPU."""
    adapters = [mount.adapters.get(name) for name in names]
    pairs = {i: _exact(one(type(one).factors)) for i, one in enumerate(adapters) if one is not None and one.fused}
    dense = {i: _delta(mount, one) for i, one in enumerate(adapters) if one is not None and not one.fused}
    gram = torch.zeros(len(names), len(names), dtype=torch.float64)
    if pairs:
        _add(gram, list(pairs), list(pairs), _of_pairs(mount, list(pairs.values())))
    weights = {i: mount.site.matrix(delta.weight) for i, delta in dense.items() if delta.weight is not None}
    if weights:
        flat = torch.stack([weight.flatten() for weight in weights.values()])
        _add(gram, list(weights), list(weights), flat @ flat.t())
    for i, weight in weights.items():
        for j, (down, up, _, _) in pairs.items():
            product = ((up.mT @ weight) * down).sum()
            _add(gram, [i, j], [i, j], torch.stack([product * 0, product, product, product * 0]).reshape(2, 2))
    biases = {i: part.bias for i, part in {**pairs, **dense}.items() if part.bias is not None}
    if biases:
        flat = torch.stack([bias.flatten() for bias in biases.values()])
        _add(gram, list(biases), list(biases), flat @ flat.t())
    return gram


def _add(gram: Tensor, rows: list[int], columns: list[int], part: Tensor) -> None:
    gram[torch.tensor(rows)[:, None], torch.tensor(columns)] += part.to("cpu", torch.float64)


def _of_pairs(mount: Mount, pairs: list[Factors]) -> Tensor:
    """``tr(U_iᵀ U_j · D_j D_iᵀ)``, ``(pairs, pairs)``: all at once, from the stacked factors."""
    up, down = torch.cat([pair.up for pair in pairs], dim=-1), torch.cat([pair.down for pair in pairs], dim=-2)
    products = (up.mT @ up) * (down @ down.mT)
    products = products.flatten(0, -3).sum(0) if products.dim() > 2 else products
    ranks = torch.tensor([pair.up.shape[-1] for pair in pairs], device=up.device)
    owner = torch.eye(len(pairs), dtype=up.dtype, device=up.device).repeat_interleave(ranks, dim=0)
    return owner.t() @ products @ owner


def _exact(factors: Factors) -> Factors:
    """The pair as matrices ``(..., r, cols)`` and ``(..., rows, r)``, the scale in ``up``, in the widest type."""
    down, up, scale, bias = factors
    lead = up.dim() - 2
    return Factors(_wide(down.flatten(1 + lead)), _wide(up) * scale, 1.0, None if bias is None else _wide(bias) * scale)


def _delta(mount: Mount, adapter: Adapter) -> Delta:
    weight, bias = mount.site.weight, mount.site.bias
    if weight.device.type == "meta":
        raise DoesNotFit(f"the weight of {mount.site.path} is offloaded or on the meta device; stop offloading first")
    exact = torch.promote_types(weight.dtype, torch.float32)
    delta = adapter(type(adapter).delta, weight.to(exact), None if bias is None else bias.to(exact))
    return Delta(*(None if tensor is None else _wide(tensor) for tensor in delta))


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float64 if has_dtype(torch.float64, tensor.device) else torch.float32)
