"""Optimizers for LoRA's two factors: LoRA+ and LoRA-FA."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from studio.adapters import Adapter
from studio.adapters.contract.ranked import RankedConfig
from studio.adapters.lorafa import LoRAFA
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

    Args:
        model: a PEFT model. optimizer_cls: the optimizer's class. lr: the rate of all but ``lora_B``.
        loraplus_lr_ratio: how many times larger the rate of ``lora_B`` is.
        kwargs: for the optimizer; ``loraplus_weight_decay`` and ``loraplus_lr_embedding`` (1e-6) are LoRA+'s own.

    Raises:
        Wrong: nothing of the model is trained.

    References:
        | LoRA+: Efficient Low Rank Adaptation of Large Models (Hayou et al., 2024), https://arxiv.org/abs/2402.12354
    """
    decay = float(kwargs.pop("loraplus_weight_decay", kwargs.pop("weight_decay", 0.0)))
    embedding_rate = float(kwargs.pop("loraplus_lr_embedding", 1e-6))
    part = {id(adapter.tensor("up")): "up" for adapter in _pairs(model)}
    part |= {
        id(p): "rows" for adapter in _pairs(model) if adapter.site.kind == "embedding" for p in adapter.parameters()
    }
    groups: dict[tuple[str, bool], list[Tensor]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups.setdefault((part.get(id(parameter), "other"), parameter.dim() > 1), []).append(parameter)
    if not groups:
        raise Wrong("nothing of the model is trained; set_adapter names what is")
    rates = {"rows": embedding_rate, "up": lr * loraplus_lr_ratio, "other": lr}
    make: Any = optimizer_cls
    return make(
        [
            {"params": found, "lr": rates[name], "weight_decay": decay if decays else 0.0}
            for (name, decays), found in groups.items()
        ],
        lr=lr,
        **kwargs,
    )


class LoraFAOptimizer(LoRAFA):
    """AdamW along the gradient that comes nearest to full fine-tuning's for ``lora_B``, and plain for all else."""


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
    asked = {"r": r, "lora_alpha": lora_alpha, "use_rslora": use_rslora}
    state = state_of(base_of(model))
    for name in state.active:
        for field, value in asked.items():
            have = getattr(state.configs[name], field, value)
            if value is not None and value != have:
                raise Wrong(f"create_lorafa_optimizer({field}={value!r}): the adapter {name!r} has {field}={have!r}")
    pairs = []
    for adapter in _pairs(model):
        if adapter.site.kind == "embedding":
            continue  # its ``lora_embedding_A`` starts at zero: both are trained
        down, up, config = adapter.tensor("down"), adapter.tensor("up"), adapter.config
        assert isinstance(down, nn.Parameter) and up is not None, "_pairs has seen to it"
        assert isinstance(config, RankedConfig), "a pair has a rank"
        down.requires_grad_(False)
        pairs.append((down, up, config.scale_at(adapter.site.path)))
    if not pairs and not list(_pairs(model)):
        raise Wrong("the model has no active LoRA, so there is nothing for LoRA-FA to train")
    groups = [{"params": [one for one in model.parameters() if one.requires_grad], "lr": lr}]
    return LoraFAOptimizer(groups, pairs, weight_decay=weight_decay)
