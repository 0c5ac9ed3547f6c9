"""What an adapter changes at a layer, with the base's weight or without it."""

from __future__ import annotations

import torch
from torch import Tensor

from studio.adapters.contract.adapter import Adapter, Delta
from studio.adapters.sites.site import Site
from studio.errors import DoesNotFit

__all__ = ["change_of"]


def change_of(site: Site, adapter: Adapter) -> Delta:
    """Computes the change ``(ΔW, Δb)`` of an adapter at strength 1, in the widest of its layer's type and fp32.

    Where the weight has a shape alone (a public model without its weights), NaN stands for every number of it: what
    comes out finite does not depend on them, and is right; what does not is refused.

    Args:
        site: the layer. adapter: the adapter.

    Raises:
        DoesNotFit: the change is made of the base's own weight, and that is offloaded or not at hand.

    Example:
        >>> from studio.adapters import DoRA, Full, Site
        >>> from studio.adapters.sites.kinds import site_for
        >>> site = site_for("to_q", torch.nn.Linear(2, 2, bias=False, device="meta"))
        >>> full = Full(targets=("to_q",), use_bias=False)
        >>> change_of(site, full.adapter(site, full, {"weight": torch.ones(2, 2)})).weight.sum()
        tensor(4., grad_fn=<SumBackward0>)
    """
    weight, bias = site.weight, site.bias
    unknown = weight.device.type == "meta"
    if unknown and "_hf_hook" in site.holder.__dict__:
        raise DoesNotFit(f"the weight of {site.path} is offloaded; stop offloading first")
    exact = torch.promote_types(weight.dtype, torch.float32)
    given = [None if one is None else _nothing(one, exact) if unknown else one.to(exact) for one in (weight, bias)]
    delta: Delta = adapter(type(adapter).delta, *given)
    if unknown and any(one is not None and bool(one.isnan().any()) for one in delta):
        raise DoesNotFit(
            f"what {adapter.config.method} changes at {site.path} is made of the base's own weight, which is not at "
            "hand: name the base (base=..., --base BASE)"
        )
    return delta


def _nothing(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """NaN of a shape, which takes no memory."""
    return torch.full((), torch.nan, dtype=dtype, device="cpu").expand(tensor.shape)
