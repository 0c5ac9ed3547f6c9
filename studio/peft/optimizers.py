"""Optimizers for LoRA's two factors: LoRA+ and LoRA-FA."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from studio.adapters import Adapter
from studio.adapters.contract.ranked import RankedConfig
from studio.adapters.lorafa import LoRAFA
from studio.peft.model.names import names_of_tensors
from studio.peft.model.state import KEY, State, state_of
from studio.peft.model.tuner import base_of
from studio.peft.terms.errors import Wrong

__all__ = ["LoraFAOptimizer", "create_lorafa_optimizer", "create_loraplus_optimizer"]


__path__: list[str] = []  # PEFT has modules below this one


def _pairs(model: nn.Module) -> Iterator[Adapter]:
    """The layers of the adapters that act and are low-rank pairs."""
    state: State | None = base_of(model).__dict__.get(KEY)
    for name, one in () if state is None else [(name, state) for name in state.active]:
        for _, adapter in one.layers(name):
            if {"down", "up"} <= set(adapter.tensors()):
                yield adapter


def create_loraplus_optimizer(
    model: nn.Module, optimizer_cls: type[torch.optim.Optimizer], *, lr: float, loraplus_lr_ratio: float, **kwargs: Any
) -> torch.optim.Optimizer:
    """Makes an optimizer that trains ``lora_B`` with a larger rate than ``lora_A``.

    It has four groups: what is neither of the others, pairs on embeddings, ``lora_B`` and vectors, and those of them
    that never decay (biases, norms).

    Args:
        model: a PEFT model, or any. optimizer_cls: the optimizer's class. lr: the rate of the first group.
        loraplus_lr_ratio: how many times larger the rate of ``lora_B`` is.
        kwargs: for the optimizer; ``loraplus_weight_decay`` and ``loraplus_lr_embedding`` (1e-6) are LoRA+'s own.

    Raises:
        Wrong: nothing of the model is trained.

    References:
        | LoRA+: Efficient Low Rank Adaptation of Large Models (Hayou et al., 2024), https://arxiv.org/abs/2402.12354
    """
    decay = float(kwargs.pop("loraplus_weight_decay", kwargs.pop("weight_decay", 0.0)))
    embedding_rate = float(kwargs.pop("loraplus_lr_embedding", 1e-6))
    groups = _grouped(model)
    if not any(groups.values()):
        raise Wrong("nothing of the model is trained; set_adapter names what is")
    rates = {"A": lr, "embedding": embedding_rate}
    make: Any = optimizer_cls
    return make(
        [
            {
                "params": found,
                "lr": rates.get(name, lr * loraplus_lr_ratio),
                "weight_decay": 0.0 if name == "B without decay" else decay,
            }
            for name, found in groups.items()
        ],
        lr=lr,
        **kwargs,
    )


def _grouped(model: nn.Module) -> dict[str, list[Tensor]]:
    """What is trained, in LoRA+'s four groups."""
    ups = {id(adapter.tensor("up")) for adapter in _pairs(model)}
    rows = {id(p) for adapter in _pairs(model) if adapter.site.kind == "embedding" for p in adapter.parameters()}
    groups: dict[str, list[Tensor]] = {"A": [], "embedding": [], "B": [], "B without decay": []}
    plain = {id(p) for module in model.modules() if "Norm" in type(module).__name__ for p in module.parameters(False)}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in rows:
            groups["embedding"].append(parameter)
        elif id(parameter) in ups or parameter.dim() == 1:
            groups["B without decay" if "bias" in name or id(parameter) in plain else "B"].append(parameter)
        else:
            groups["A"].append(parameter)
    return groups


class LoraFAOptimizer(LoRAFA):
    """AdamW along the gradient that comes nearest to full fine-tuning's for ``lora_B``, and plain for all else.

    Args:
        params: tensors, or groups of them. Where a group has ``names`` and ``scaling_factors``, one for each tensor,
            a ``lora_B`` is trained as LoRA-FA says by the ``lora_A`` of the same name, and by ``pairs`` in any case.
        lr: the rate. betas, eps, weight_decay: as in AdamW. correct_bias: whether the averages are corrected.
        pairs: ``(lora_A, lora_B, scale)`` of layers; the group's own factor replaces the scale.

    Raises:
        Wrong: a rate, a beta or an epsilon out of bounds.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        correct_bias: bool = True,
        *,
        pairs: Sequence[tuple[Tensor, Tensor, float]] = (),
    ) -> None:
        for what, value, sound in (
            ("learning rate", lr, lr >= 0), ("epsilon", eps, eps >= 0),
            *((f"beta {place}", beta, 0 <= beta < 1) for place, beta in enumerate(betas)),
        ):  # fmt: skip
            if not sound:
                raise Wrong(f"Invalid {what}: {value}")
        given = list(params)
        groups = given if given and isinstance(given[0], dict) else [{"params": given}]
        groups = [{"lr": lr, "correct_bias": correct_bias, **group} for group in groups]
        named = [pair for group in groups for pair in _named_pairs(group)]
        super().__init__(groups, [*named, *pairs], betas=betas, eps=eps, weight_decay=weight_decay)
        self._told = False

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Does a step."""
        for group in self.param_groups:
            if "scaling_factor" in group and "scaling_factors" not in group and not self._told:
                said = "`scaling_factor` is deprecated: give `scaling_factors`, one for each tensor"
                warnings.warn(said, FutureWarning, stacklevel=2)
                self._told = True
            for tensor, factor in zip(group["params"], group.get("scaling_factors", ()), strict=False):
                if id(tensor) in self._pairs and factor is not None:
                    self._pairs[id(tensor)] = (self._pairs[id(tensor)][0], float(factor))
        return super().step(closure)


def _named_pairs(group: Mapping[str, Any]) -> Iterator[tuple[Tensor, Tensor, float]]:
    """The pairs of a group by the names of its tensors."""
    tensors, names = list(group["params"]), list(group.get("names", ()))
    factors = group.get("scaling_factors") or [group.get("scaling_factor", 1.0)] * len(tensors)
    held = {name: (tensor, factor) for name, tensor, factor in zip(names, tensors, factors, strict=False)}
    for name, (tensor, factor) in held.items():
        other = name.replace("lora_B", "lora_A")
        if other != name and other in held and tensor.dim() > 1:
            yield held[other][0], tensor, float(factor)


def create_lorafa_optimizer(
    model: nn.Module, r: int, lora_alpha: float, lr: float, weight_decay: float = 0.0, use_rslora: bool | None = None
) -> LoraFAOptimizer:
    """Freezes ``lora_A`` and makes an optimizer for ``lora_B`` and whatever else is trained: heads, biases, tokens.

    Args:
        model: a PEFT model. r, lora_alpha, use_rslora: as in the adapters' configs, where the scale is read from.
        lr: the rate. weight_decay: as in AdamW.

    Raises:
        Wrong: r, lora_alpha or use_rslora is not what an adapter has, or there is no LoRA.

    References:
        | LoRA-FA: Memory-efficient Low-rank Adaptation for Large Language Models Fine-tuning (Zhang et al., 2023),
          https://arxiv.org/abs/2308.03303
    """
    state = state_of(base_of(model))
    _check_asked(state, {"r": r, "lora_alpha": lora_alpha, "use_rslora": use_rslora})
    pairs: list[tuple[Tensor, Tensor, float]] = []
    scales: dict[int, float] = {}
    for adapter in _pairs(model):
        down, up, config = adapter.tensor("down"), adapter.tensor("up"), adapter.config
        assert isinstance(down, nn.Parameter) and up is not None, "_pairs has seen to it"
        assert isinstance(config, RankedConfig), "a pair has a rank"
        scale = config.scale_at(adapter.site.path)
        scales |= dict.fromkeys(map(id, (down, up)), scale)
        if adapter.site.kind != "embedding":  # whose ``lora_embedding_A`` starts at zero: both are trained
            down.requires_grad_(False)
            pairs.append((down, up, scale))
    if not scales:
        raise Wrong("the model has no active LoRA, so there is nothing for LoRA-FA to train")
    theirs = names_of_tensors(state)
    named = {theirs.get(f"base_model.model.{name}", f"base_model.model.{name}"): parameter
             for name, parameter in state.model.named_parameters() if parameter.requires_grad}  # fmt: skip
    group = {
        "params": list(named.values()), "names": list(named), "lr": lr,
        "scaling_factors": [scales.get(id(one)) for one in named.values()],
    }  # fmt: skip
    return LoraFAOptimizer([group], lr, weight_decay=weight_decay, pairs=pairs)


def _check_asked(state: State, asked: Mapping[str, Any]) -> None:
    for name in state.active:
        for field, value in asked.items():
            have = getattr(state.configs[name], field, value)
            if value is not None and value != have:
                raise Wrong(
                    f"`{field}={value!r}` was passed to create_lorafa_optimizer, but the adapter {name!r} has "
                    f"{field}={have!r}"
                )
