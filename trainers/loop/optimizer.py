"""The optimizers over an adapter's tensors, with a rate per component."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import torch
from torch import Tensor

from studio.adapters import Adapter
from studio.adapters.contract.starts import padded
from studio.adapters.lorafa import LoRAFA
from studio.errors import UnsupportedLayer
from studio.packages import need
from studio.trainers.loop.plan import Plan

__all__ = ["OPTIMIZERS", "Work", "adamw", "hand_on", "set_rates"]

BETA1: Final = 0.9  # decay of the gradients' average
BETA2: Final = 0.999  # of the squares', where neither plan nor recipe says otherwise

Group = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """What an optimizer is made for.

    Attributes:
        tensors: the adapter's tensors by ``"<component>.<path>.<tensor>"``, in a fixed order.
        layers: its layers by ``"<component>.<path>"``.
        rates: component -> learning rate; ``""`` is a model by itself.
        plan: the loop's settings.
    """

    tensors: Mapping[str, Tensor]
    layers: Mapping[str, Adapter]
    rates: Mapping[str, float]
    plan: Plan

    def trained(self, part: str) -> Iterator[tuple[Adapter, str, Tensor]]:
        """Iterates over what is trained in a component: layer, name of the tensor, tensor."""
        for key, tensor in self.tensors.items():
            if tensor.requires_grad and (not part or key.startswith(f"{part}.")):
                path, _, name = key.rpartition(".")
                yield self.layers[path], name, tensor

    @property
    def beta2(self) -> float:
        """The decay of the squared gradients."""
        return BETA2 if self.plan.beta2 is None else self.plan.beta2


def adamw(
    tensors: Mapping[str, Tensor], rates: Mapping[str, float], weight_decay: float = 1e-2, beta2: float = BETA2
) -> torch.optim.AdamW:
    """Returns AdamW with one group of tensors per component.

    Args:
        tensors: the trained tensors by ``"<component>.<path>.<tensor>"``, in a fixed order.
        rates: component -> learning rate; ``""`` is a model by itself.
        weight_decay: decay of every tensor.
        beta2: decay of the squared gradients; the gradients' own is 0.9.

    References:
        | Decoupled Weight Decay Regularization (Loshchilov & Hutter, 2019), arXiv:1711.05101
    """
    groups = [
        _group([tensor for key, tensor in tensors.items() if not part or key.startswith(f"{part}.")], rate)
        for part, rate in rates.items()
    ]
    return _adamw_over(groups, weight_decay, beta2)


def _group(tensors: Sequence[Tensor], rate: float) -> Group:
    return {"params": list(tensors), "lr": rate, "rate": rate}


def _adamw_over(groups: list[Group], weight_decay: float, beta2: float) -> torch.optim.AdamW:
    try:
        return torch.optim.AdamW(groups, betas=(BETA1, beta2), weight_decay=weight_decay, fused=True)
    except RuntimeError:  # a device without the fused kernel
        return torch.optim.AdamW(groups, betas=(BETA1, beta2), weight_decay=weight_decay)


def _plain(work: Work) -> torch.optim.Optimizer:
    """AdamW with the same rate for all tensors of a component."""
    trained = {key: tensor for key, tensor in work.tensors.items() if tensor.requires_grad}
    return adamw(trained, work.rates, work.plan.weight_decay, work.beta2)


def _lora_plus(work: Work) -> torch.optim.Optimizer:
    """AdamW with ``rate_ratio`` times the rate for the side that starts at zero, ``up``.

    Vectors (DoRA's magnitude, biases) belong to that side, and biases do not decay. The pairs of embeddings have
    ``embedding_rate``. So does the authors' program.

    References:
        | LoRA+: Efficient Low Rank Adaptation of Large Models (Hayou et al., 2024), arXiv:2402.12354
    """
    _require_pairs(work, "lora-plus", lambda adapter: {"down", "up"} <= set(adapter.trained) and adapter.bakes)
    plan, groups = work.plan, []
    for part, rate in work.rates.items():
        found: dict[tuple[float, float], list[Tensor]] = {(rate, plan.weight_decay): []}  # the plain rate stands first
        for adapter, name, tensor in work.trained(part):
            upper = name == "up" or tensor.dim() == 1
            own = plan.embedding_rate if adapter.site.kind == "embedding" else rate * (plan.rate_ratio if upper else 1)
            found.setdefault((own, 0.0 if name == "bias" else plan.weight_decay), []).append(tensor)
        groups += [
            {**_group(tensors, own), "weight_decay": decay} for (own, decay), tensors in found.items() if tensors
        ]
    return _adamw_over(groups, plan.weight_decay, work.beta2)


def _lora_fa(work: Work) -> torch.optim.Optimizer:
    """:class:`LoRAFA`; makes every ``down`` require no gradient, so that no input is kept for the backward pass."""

    def plain_pair(adapter: Adapter) -> bool:
        return set(adapter.trained) - {"bias"} == {"down", "up"} and adapter.bakes and _scale(adapter) != 0

    _require_pairs(work, "lora-fa", plain_pair)
    pairs = []
    for path, adapter in work.layers.items():
        down, up = adapter.tensor("down"), adapter.tensor("up")
        assert down is not None and up is not None, "looked at above"
        if not down.any():
            raise UnsupportedLayer(
                f"the optimizer 'lora-fa' keeps the lower side of a pair as it is, and that of {path} is zero, as it "
                "starts on an embedding: nothing would be trained there; exclude it, or use optimizer='adamw'"
            )
        pairs.append((down, up, _scale(adapter)))
    for down, _, _ in pairs:
        down.requires_grad_(False)
    groups = [_group([tensor for _, _, tensor in work.trained(part)], rate) for part, rate in work.rates.items()]
    return LoRAFA(groups, pairs, betas=(BETA1, work.beta2), weight_decay=work.plan.weight_decay)


def _scale(adapter: Adapter) -> float:
    return float(cast(Any, adapter).scale)


def _require_pairs(work: Work, optimizer: str, sound: Callable[[Adapter], bool]) -> None:
    for path, adapter in work.layers.items():
        if not sound(adapter):
            raise UnsupportedLayer(
                f"the optimizer {optimizer!r} trains the two sides of a LoRA pair differently, and "
                f"{type(adapter.config).__name__} at {path} has no such pair; use optimizer='adamw'"
            )


def _of_bitsandbytes(kind: str) -> Callable[[Work], torch.optim.Optimizer]:
    """AdamW with moments in 8 bits, or in memory that an accelerator may lend to the CPU, or both.

    Tensors of less than 4096 numbers keep moments of 32 bits. On a CPU there is nothing to lend, and the paged ones are
    the others: the numbers are the same.

    References:
        | 8-bit Optimizers via Block-wise Quantization (Dettmers et al., 2021), arXiv:2110.02861
    """

    def make(work: Work) -> torch.optim.Optimizer:
        library = need("bitsandbytes", f"the optimizer {kind!r}", extra="quant")
        groups = [_group([tensor for _, _, tensor in work.trained(part)], rate) for part, rate in work.rates.items()]
        on_cpu = all(tensor.device.type == "cpu" for group in groups for tensor in group["params"])
        made = getattr(library.optim, kind.removeprefix("Paged") if on_cpu else kind)
        found: torch.optim.Optimizer = made(
            groups, lr=1e-3, betas=(BETA1, work.beta2), weight_decay=work.plan.weight_decay
        )
        return found

    return make


OPTIMIZERS: Final[Mapping[str, Callable[[Work], torch.optim.Optimizer]]] = {
    "adamw": _plain,
    "lora-plus": _lora_plus,
    "lora-fa": _lora_fa,
    "adamw-8bit": _of_bitsandbytes("AdamW8bit"),
    "paged-adamw": _of_bitsandbytes("PagedAdamW32bit"),
    "paged-adamw-8bit": _of_bitsandbytes("PagedAdamW8bit"),
}
"""Name -> what makes it; it may also make tensors require no gradient."""


def hand_on(content: Mapping[str, Any], new: torch.optim.Optimizer) -> None:
    """Gives ``new`` the state of an optimizer over the same tensors before some of them have grown.

    The moments of numbers that are new are zero.

    Args:
        content: the old one's ``state_dict()``. new: the new one.
    """
    tensors = [tensor for group in new.param_groups for tensor in group["params"]]

    def fitting(value: Any, tensor: Tensor) -> Any:
        moment = isinstance(value, Tensor) and value.dim() == tensor.dim() and value.shape != tensor.shape
        return padded(value, torch.zeros_like(tensor)) if moment else value

    state = {
        index: {name: fitting(value, tensors[index]) for name, value in entries.items()}
        for index, entries in content["state"].items()
    }
    new.load_state_dict({**content, "state": state})


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Sets every group's learning rate to ``factor`` times its full one; returns the first group's."""
    for group in optimizer.param_groups:
        group["lr"] = group["rate"] * factor
    return float(optimizer.param_groups[0]["lr"])
