"""Slots: places of a fixed rank on a model, into which adapters are put without a change of the model's structure.

A compiled model reads the tensors of its layers, whatever is in them; another adapter is then another content of the
same tensors, and nothing is compiled anew. A slot is a low-rank pair per layer, ``y + up · (c ⊙ (down · x))``. What is
put into one is written as such a pair: a pair of lower rank is filled up with zeros, and the change of any other method
is taken apart by its singular values, and refused where its rank is higher than the slot's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from studio.adapters.attach import attach, detach
from studio.adapters.blend import blend, current_blend, read_blend
from studio.adapters.contract.adapter import Adapter, AdapterConfig
from studio.adapters.contract.ranked import any_rank
from studio.adapters.contract.strength import StrengthLike
from studio.adapters.hosting.attached import assemblies, check_unbaked, whole_path
from studio.adapters.hosting.turns import turn
from studio.adapters.methods.lora import LoRA
from studio.adapters.sites.read import read_bias, read_weight
from studio.adapters.sites.site import Site
from studio.device import on_cpu
from studio.errors import BadConfig, DoesNotFit, UnknownName, nearest

__all__ = ["Slots", "slots"]

_NONE = 1e-6
"""Singular values below this part of the largest one are rounding."""


class Slots:
    """The slots of one model; :func:`slots` makes them.

    Args:
        model: the model or pipeline. names: of the adapters that are the slots. rank: of each.

    Attributes:
        taken: adapter -> the slot that it is in, under which the model knows it.
    """

    def __init__(self, model: Any, names: Sequence[str], rank: int) -> None:
        self.model, self.names, self.rank = model, tuple(names), rank
        self.taken: dict[str, str] = {}

    def blend(self, wanted: Mapping[str, StrengthLike]) -> None:
        """Sets which adapters act and how strongly: those in slots by their own names, others as they are named.

        Args:
            wanted: adapter name -> strength, as for :func:`studio.blend`.

        Raises:
            UnknownName: an adapter that is in no slot and not attached. BadConfig: an impossible strength.
            DoesNotFit: a blend is baked into the weights.
        """
        for name in wanted:
            if name not in self.taken and name in self.names:
                raise UnknownName(f"{name!r} is an empty slot; in slots are: {', '.join(self.taken) or 'none'}")
        blend(self.model, {self.taken.get(name, name): strength for name, strength in wanted.items()})

    def fill(
        self,
        config: AdapterConfig,
        tensors: Mapping[str, Mapping[str, Tensor]],
        *,
        name: str,
        strength: StrengthLike = 1.0,
    ) -> None:
        """Puts an adapter into a free slot, or in the place of the one of its name, and lets it act.

        Args:
            config: its method and settings.
            tensors: layer path (with its component in front for a pipeline) -> tensor name -> tensor.
            name: the adapter's name. strength: its strength in the blend.

        Raises:
            BadConfig: an impossible strength.
            DoesNotFit: all slots are taken, a layer without slots, or a change that a pair of their rank does not hold.
            UnsupportedLayer: a layer that the method cannot change.
        """
        check_unbaked(self.model, "fill a slot")
        free = [slot for slot in self.names if slot not in self.taken.values()]
        slot = self.taken.get(name) or next(iter(free), None)
        if slot is None:
            raise DoesNotFit(f"all {len(self.names)} slots are taken, by {', '.join(self.taken)}; empty one first")
        with turn(self.model), torch.no_grad(), on_cpu():
            read_blend(self.model, {slot: strength})
            pairs = self._pairs(config, tensors, slot)
            for whole, (_, held) in self._layers(slot).items():
                for key, axis in (("down", 0), ("up", 1)):
                    _write(held.tensors()[key], pairs[whole][axis] if whole in pairs else None, axis)
            self.taken[name] = slot
            blend(self.model, {**current_blend(self.model), slot: strength})

    def empty(self, name: str) -> None:
        """Takes an adapter out of its slot; the others act as before.

        Raises:
            UnknownName: it is in none.
        """
        if name not in self.taken:
            raise UnknownName(f"{name!r} is in no slot; in slots are: {', '.join(self.taken) or 'none'}")
        with turn(self.model):
            slot = self.taken.pop(name)
            blend(self.model, {one: how for one, how in current_blend(self.model).items() if one != slot})

    def remove(self) -> None:
        """Takes the slots off the model, which is compiled anew then."""
        for slot in self.names:
            detach(self.model, slot)
        self.names, self.taken = (), {}

    def _layers(self, slot: str) -> dict[str, tuple[Site, Adapter]]:
        return {
            whole_path(component, path): (assembly.mounts[path].site, adapter)
            for component, assembly in assemblies(self.model).items()
            if slot in assembly.records
            for path, adapter in assembly.adapters(slot)
        }

    def _pairs(
        self, config: AdapterConfig, tensors: Mapping[str, Mapping[str, Tensor]], slot: str
    ) -> dict[str, tuple[Tensor, Tensor]]:
        here, made = self._layers(slot), dict[str, Adapter]()
        for whole, own in tensors.items():
            if whole not in here:
                close = ", ".join(nearest(whole, list(here)))
                raise DoesNotFit(
                    f"the adapter is on {whole}, where there is no slot (the nearest are {close}); make the slots with "
                    "targets that name it"
                )
            site = here[whole][0]
            moved = {key: tensor.to(site.device) for key, tensor in own.items()}
            own_config = config.at(site.path)
            made[whole] = own_config.adapter(site, own_config, moved, trainable=False).eval()
        for member in config.members:
            member.adapter.link({whole: one for whole, one in made.items() if one.config is member})
        return {whole: _pair(here[whole][0], adapter, self.rank) for whole, adapter in made.items()}


def slots(
    model: Any,
    *,
    count: int = 1,
    rank: int = 16,
    targets: str | tuple[str, ...] = "attention",
    components: Sequence[str] | None = None,
) -> Slots:
    """Makes places for adapters of any rank up to ``rank``; compile the model after that.

    Adapters are put into them by ``studio.load(model, file, into=slots)``, and their strengths set by ``slots.blend``.

    Args:
        model: the model or pipeline.
        count: of adapters that can be there at once.
        rank: of the slots, at least 1.
        targets: which layers have slots, as in any config. components: of a pipeline; None: as the targets say.

    Raises:
        BadConfig: an impossible count or rank. NoTargets: the targets name no layer.
        DoesNotFit: a blend is baked into the weights.

    Example:
        >>> import studio
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 8))
        >>> places = studio.slots(net, count=2, rank=4, targets=("0",))
        >>> pair = {"0": {"down": torch.ones(1, 8), "up": torch.ones(8, 1)}}
        >>> places.fill(studio.LoRA(rank=1, targets=("0",)), pair, name="dog", strength=0.5)
        >>> places.taken, studio.adapters(net)["slot-0"].strength
        ({'dog': 'slot-0'}, 0.5)
    """
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise BadConfig(f"count={count!r}: the number of slots is a whole number from 1 on")
    before, names = current_blend(model), [f"slot-{index}" for index in range(count)]
    with any_rank():
        config = LoRA(rank=rank, alpha=float(rank), targets=targets)
        for done, name in enumerate(names):
            try:
                attach(model, config, name=name, components=components)
            except BaseException:
                for other in names[:done]:
                    detach(model, other)
                raise
    made = Slots(model, names, rank)
    for name in names:
        for _, adapter in made._layers(name).values():
            adapter.requires_grad_(False)
    for assembly in assemblies(model).values():
        if names[0] in assembly.records:
            assembly.levels.each = True
    blend(model, before)
    return made


def _write(held: Tensor, new: Tensor | None, axis: int) -> None:
    held.zero_()
    if new is not None:
        held.narrow(axis, 0, new.shape[axis]).copy_(new)


def _pair(site: Site, adapter: Adapter, rank: int) -> tuple[Tensor, Tensor]:
    """The change of an adapter as ``down`` ``(r, *inner_shape)`` and ``up`` ``(rows, r)``, with r at most ``rank``."""
    named = f"{type(adapter.config).__name__} on {site.path}"
    if type(adapter).fused:
        down, up, scale, bias = adapter.factors()
        up = up * scale
    else:
        matrix, bias = _matrix(site, adapter)
        down, up = _parted(site, matrix)
    if bias is not None and bool(bias.count_nonzero()):
        raise DoesNotFit(f"{named} changes the bias, which a slot does not hold; attach it, or bake it")
    if down.shape[0] > rank:
        raise DoesNotFit(
            f"{named} makes a change of rank {down.shape[0]}, and the slots have rank {rank}: make them with "
            f"rank={down.shape[0]}, or bake it"
        )
    return down, up


def _matrix(site: Site, adapter: Adapter) -> tuple[Tensor, Tensor | None]:
    weight = site.shaped(read_weight(site))
    delta = adapter.delta(weight, read_bias(site))
    change = torch.zeros(weight.shape) if delta.weight is None else delta.weight
    return site.matrix(change).float(), delta.bias


def _parted(site: Site, matrix: Tensor) -> tuple[Tensor, Tensor]:
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    count = int((values > _NONE * values[0]).sum()) if values[0] > 0 else 0
    down, up = right[:count], left[:, :count] * values[:count]
    return down.reshape(count, *site.inner_shape), up
