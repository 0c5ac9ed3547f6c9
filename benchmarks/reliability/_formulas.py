"""What a layer's tensors change, by the formulas of the papers and of LyCORIS, in fp64: an attack's right answer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["Meaningless", "change"]

Parts = Mapping[str, Tensor]
_ALPHA = {"alpha"}
_DORA = {"dora_scale"}


class Meaningless(Exception):
    """The tensors make no change of that layer."""


def change(parts: Parts, weight: Tensor, scale: float | None) -> tuple[Tensor, Tensor | None]:
    """Returns ``ΔW`` and ``Δb`` of one layer.

    Args:
        parts: the tensors, by their names at LyCORIS. weight: ``(m, n, *kernel)``, fp64.
        scale: what a config says of the scale; None: alpha / r.

    Raises:
        Meaningless: they are of no method together, or of other sizes.
    """
    if any(one.is_complex() for one in parts.values()):
        raise Meaningless
    values = {name: one.to(torch.float64) for name, one in parts.items()}
    if not all(bool(torch.isfinite(one.float()).all()) for one in values.values()):
        raise Meaningless
    try:
        made, bias = _made(values, weight, scale)
    except (RuntimeError, IndexError, ValueError) as error:
        raise Meaningless from error
    if made.shape != weight.shape or not bool((made.abs() <= torch.finfo(torch.float32).max).all()):
        raise Meaningless
    return made, bias


def _made(values: Parts, weight: Tensor, scale: float | None) -> tuple[Tensor, Tensor | None]:
    own = values.keys() - _ALPHA - _DORA
    for names, formula in (
        ({"lora_down.weight", "lora_up.weight"}, _lora),
        ({"lora_down.weight", "lora_up.weight", "lora_mid.weight"}, _tucker),
        ({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}, _loha),
        ({"lokr_w1", "lokr_w2"}, _lokr),
        ({"lokr_w1", "lokr_w2_a", "lokr_w2_b"}, _lokr),
        ({"lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b"}, _lokr),
        ({"lokr_w1_a", "lokr_w1_b", "lokr_w2"}, _lokr),
    ):
        if own == names:
            made = formula(values, weight, scale).reshape(weight.shape)
            return (_decomposed(values["dora_scale"], made, weight) if "dora_scale" in values else made), None
    if "dora_scale" in values:
        raise Meaningless
    if own == {"a1.weight", "a2.weight", "b1.weight", "b2.weight"}:
        return _glora(values, weight), None
    if "alpha" in values and own != {"oft_blocks"}:
        raise Meaningless
    if own and own <= {"diff", "diff_b"}:
        return _full(values, weight)
    if own == {"weight", "on_input"}:
        return _ia3(values, weight), None
    if own == {"oft_blocks"}:
        return _oft(values, weight), None
    raise Meaningless


def _scale(values: Parts, rank: int, stated: float | None) -> float:
    alpha = values.get("alpha")
    if alpha is None:
        return 1.0 if stated is None else stated
    if alpha.numel() != 1:
        raise Meaningless
    return float(alpha.item()) / rank if rank else 0.0  # a pair of no rank changes nothing


def _lora(values: Parts, weight: Tensor, scale: float | None) -> Tensor:
    down, up = values["lora_down.weight"], values["lora_up.weight"]
    if down.dim() < 2 or up.dim() < 2 or len(up) != len(weight):
        raise Meaningless
    return _scale(values, len(down), scale) * up.flatten(1) @ down.flatten(1)


def _tucker(values: Parts, weight: Tensor, scale: float | None) -> Tensor:
    down, up, mid = (values[f"lora_{name}.weight"] for name in ("down", "up", "mid"))
    if mid.dim() < 2 or len(up) != len(weight) or mid.shape[:2] != (up.flatten(1).shape[1], len(down)):
        raise Meaningless
    mid = mid.reshape(*mid.shape[:2], *weight.shape[2:])
    made = torch.einsum("pi,ij...,jq->pq...", up.flatten(1), mid, down.flatten(1))
    return _scale(values, len(down), scale) * made


def _loha(values: Parts, weight: Tensor, scale: float | None) -> Tensor:
    one = values["hada_w1_a"] @ values["hada_w1_b"]
    two = values["hada_w2_a"] @ values["hada_w2_b"]
    if one.shape != two.shape or len(one) != len(weight):
        raise Meaningless
    return _scale(values, len(values["hada_w1_b"]), scale) * one * two


def _lokr(values: Parts, weight: Tensor, scale: float | None) -> Tensor:
    rank = 0
    factors = []
    for name in ("lokr_w1", "lokr_w2"):
        if name in values:
            factors.append(values[name])
            continue
        first, second = values[f"{name}_a"], values[f"{name}_b"]
        rank = len(second)
        factors.append(first @ second.flatten(1))
    one, two = factors
    two = two.flatten(1)
    made = torch.kron(one, two)
    if len(made) != len(weight) or one.dim() != 2:
        raise Meaningless
    whole = "lokr_w1" in values and "lokr_w2" in values
    if whole and values.get("alpha", torch.ones(())).numel() != 1:
        raise Meaningless
    if weight.dim() > 2:  # the kernel belongs to the second factor alone
        two = two.reshape(len(two), -1, *weight.shape[2:])
        made = torch.einsum("ab,cd...->acbd...", one, two)
    return (1.0 if whole else _scale(values, rank, scale)) * made


def _decomposed(magnitude: Tensor, made: Tensor, weight: Tensor) -> Tensor:
    whole = weight + made
    ones = (1,) * (weight.dim() - 2)
    by_row = {(len(weight),), (len(weight), 1, *ones), (len(weight), 1)}
    by_input = {(1, weight.shape[1], *ones), (1, weight.shape[1])}
    axis = 0 if tuple(magnitude.shape) in by_row else 1 if tuple(magnitude.shape) in by_input else None
    if axis is None:
        raise Meaningless
    rest = [one for one in range(weight.dim()) if one != axis]
    shape = [1] * weight.dim()
    shape[axis] = -1
    norm = whole.square().sum(rest, keepdim=True).sqrt()
    return whole * magnitude.reshape(shape) / norm - weight


def _glora(values: Parts, weight: Tensor) -> Tensor:
    a1, a2, b1, b2 = (values[f"{name}.weight"] for name in ("a1", "a2", "b1", "b2"))
    if weight.dim() != 2 or any(one.dim() < 2 for one in (a1, a2, b1, b2)):
        raise Meaningless
    a1, a2, b1, b2 = (one.flatten(1) for one in (a1, a2, b1, b2))
    if len(b1) == len(weight) and len(b2) == b1.shape[1] == a1.shape[1] == len(a2):
        return _scale(values, len(b2), None) * (weight @ a1 @ a2 + b1 @ b2)
    return _scale(values, len(b1), None) * (weight @ a2 @ a1 + b2 @ b1)


def _full(values: Parts, weight: Tensor) -> tuple[Tensor, Tensor | None]:
    made = values.get("diff", torch.zeros_like(weight))
    bias = values.get("diff_b")
    if made.numel() != weight.numel() or (bias is not None and bias.numel() != len(weight)):
        raise Meaningless
    return made.reshape(weight.shape), None if bias is None else bias.reshape(-1)


def _ia3(values: Parts, weight: Tensor) -> Tensor:
    gain, on_input = values["weight"], values["on_input"]
    if on_input.numel() != 1:
        raise Meaningless
    if bool(on_input):
        if gain.numel() != weight.shape[1]:
            raise Meaningless
        return weight * gain.reshape(1, -1, *(1,) * (weight.dim() - 2))
    if gain.numel() != len(weight):
        raise Meaningless
    return weight * gain.reshape(-1, *(1,) * (weight.dim() - 1))


def _oft(values: Parts, weight: Tensor) -> Tensor:
    blocks = values["oft_blocks"]
    if blocks.dim() not in (3, 4) or blocks.shape[-1] != blocks.shape[-2]:
        raise Meaningless
    if blocks.shape[-3] * blocks.shape[-1] != len(weight):
        raise Meaningless
    skew = blocks - blocks.mT
    alpha = values.get("alpha")
    if alpha is not None and alpha.numel() != 1:
        raise Meaningless
    bound = 0.0 if alpha is None else float(alpha) * len(weight)
    norm = float(skew.norm())
    if bound > 0 and norm > bound:
        skew = skew * (bound / norm)
    one = torch.eye(blocks.shape[-1], dtype=torch.float64)
    turned = torch.linalg.solve(one - skew, one + skew, left=False)
    if blocks.dim() == 4:
        return _butterfly(turned, weight) - weight
    rows = weight.reshape(len(blocks), blocks.shape[1], -1)
    return (torch.einsum("knm,kn...->km...", turned, rows) - rows).reshape(weight.shape)


def _butterfly(turned: Tensor, weight: Tensor) -> Tensor:
    """BOFT: stage ``i`` turns rows that are ``2^i`` half-blocks apart."""
    size = turned.shape[-1]
    made = weight
    for stage, blocks in enumerate(turned):
        apart = 2**stage * (size // 2)
        made = made.unflatten(0, (-1, 2, apart)).transpose(1, 2).flatten(0, 2).unflatten(0, (-1, size))
        made = torch.einsum("bij,bj...->bi...", blocks, made)
        made = made.flatten(0, 1).unflatten(0, (-1, apart, 2)).transpose(1, 2).flatten(0, 2)
    return made
