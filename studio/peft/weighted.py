"""``add_weighted_adapter``: one new adapter out of several, by PEFT's names of the ways."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from studio.adapters import Adapter, LoRA, install
from studio.adapters.combination import COMBINERS, truncated
from studio.adapters.contract.ranked import RankedConfig
from studio.peft.configs.translate import exactly
from studio.peft.kinds import Wrong, refusals

if TYPE_CHECKING:
    from studio.peft.injection import Injection

__all__ = ["add_weighted"]

_TYPES: Final = ("cat", "svd", *COMBINERS, *(f"{name}_svd" for name in COMBINERS if name != "linear"))
_PRUNED: Final = ("ties", "dare_ties", "dare_linear", "magnitude_prune")

Layer = dict[str, Tensor]


@torch.no_grad()
def add_weighted(
    injection: Injection,
    names: Sequence[str],
    weights: Sequence[float],
    new: str,
    kind: str | None,
    *,
    svd_rank: int | None = None,
    clamp: float | None = None,
    density: float | None = None,
    sign: str = "total",
) -> None:
    """Adds the combination of adapters as a new adapter; see :meth:`BaseTuner.add_weighted_adapter`."""
    with refusals():
        names, weights = list(names), [float(weight) for weight in weights]
        word = _check(injection, names, weights, new)
        if word == "IA3":
            _add_gains(injection, names, weights, new, kind)
            return
        kind = _kind(kind or "svd", density, sign)
        at: dict[str, list[tuple[Adapter, float]]] = {}
        for name, weight in zip(names, weights, strict=True):
            for path, adapter in injection.layers(name):
                at.setdefault(path, []).append((adapter, weight * injection.scale_of(name, path)))
        combine = _by_change if kind.endswith("svd") else _by_factors
        made = {path: combine(found, kind, svd_rank, clamp, density, sign) for path, found in at.items()}
        _install(injection, names, new, made)


def _check(injection: Injection, names: list[str], weights: list[float], new: str) -> str:
    if new in injection.peft_config:
        raise Wrong(f"an adapter named {new!r} exists already; give the combination another name")
    if not names or len(names) != len(weights):
        raise Wrong(f"{len(names)} adapters and {len(weights)} weights; give one weight for each adapter")
    for name in names:
        injection.check(name)
        if injection.extras[name].parameters:
            raise Wrong(f"{name!r} has biases of its own (bias=...); there is no sum of such copies, leave it out")
    both = {path for path in _copies(injection, names) if len(_copies(injection, names)[path]) > 1}
    if both:
        raise Wrong(
            "Cannot add weighted adapters if they target the same module with modules_to_save, but found "
            f"{len(both)} such instance(s)."
        )
    words = {injection.peft_config[name].word for name in names}
    if len(words) > 1:
        raise Wrong(f"all adapters must be of one method, not {' and '.join(sorted(words))}")
    word = words.pop()
    if word not in ("LORA", "IA3"):
        raise Wrong(f"add_weighted_adapter combines LoRA, DoRA or IA3 adapters, not {word}; blend them instead")
    return word


def _copies(injection: Injection, names: Sequence[str]) -> dict[str, list[str]]:
    """The modules of which adapters have a copy, and which adapters those are."""
    found: dict[str, list[str]] = {}
    for name in names:
        for path in injection.extras[name].modules:
            found.setdefault(path, []).append(name)
    return found


def _kind(kind: str, density: float | None, sign: str) -> str:
    if kind not in _TYPES:
        raise Wrong(f"Invalid combination_type: {kind}; it is one of {', '.join(_TYPES)}")
    if kind.removesuffix("_svd") in _PRUNED and density is None:
        raise Wrong(f"combination_type={kind!r} needs density, the part of the numbers that is kept")
    if sign not in ("total", "frequency"):
        raise Wrong(f"majority_sign_method={sign!r} must be 'total' or 'frequency'")
    return kind


def _combiner(kind: str, density: float | None, sign: str) -> Callable[[Sequence[Tensor], Sequence[float]], Tensor]:
    function: Any = COMBINERS[kind]
    if kind == "linear":
        return function
    if kind.endswith("ties"):
        return lambda tensors, weights: function(tensors, weights, density, sign)
    return lambda tensors, weights: function(tensors, weights, density)


def _by_factors(
    found: list[tuple[Adapter, float]],
    kind: str,
    rank: int | None,
    clamp: float | None,
    density: float | None,
    sign: str,
) -> Layer:
    """Combines the two factors: exactly for "cat", else each by itself, which mixes the adapters crosswise."""
    if not all(type(adapter).fused for adapter, _ in found):
        raise Wrong(
            f"combination_type={kind!r} would leave out the magnitude of a DoRA adapter; combination_type='svd' "
            "combines what the adapters really change"
        )
    factors = [(adapter.factors(), weight) for adapter, weight in found]
    biases = [one.bias * (one.scale * weight) for one, weight in factors if one.bias is not None]
    if kind == "cat":
        layer = {
            "down": torch.cat([one.down * (one.scale * weight) for one, weight in factors]),
            "up": torch.cat([one.up for one, _ in factors], dim=1),
        }
    else:
        ranks = {one.down.shape[0] for one, _ in factors}
        if len(ranks) > 1:
            raise Wrong(
                f"All adapters must have the same r value when using combination_type linear, ties, dare_ties or "
                f"dare_linear, not {' and '.join(map(str, sorted(ranks)))}; use 'cat' or 'svd'"
            )
        together = _combiner(kind, density, sign)
        roots = [math.sqrt(abs(weight * one.scale)) for one, weight in factors]
        signed = [math.copysign(root, weight * one.scale) for root, (one, weight) in zip(roots, factors, strict=True)]
        layer = {
            "down": together([one.down for one, _ in factors], signed),
            "up": together([one.up for one, _ in factors], roots),
        }
    return {**layer, **({"bias": torch.stack(biases).sum(0)} if biases else {})}


def _by_change(
    found: list[tuple[Adapter, float]],
    kind: str,
    rank: int | None,
    clamp: float | None,
    density: float | None,
    sign: str,
) -> Layer:
    """Combines the changes of the weight, and takes the best pair of a rank for the result."""
    site = found[0][0].site
    deltas = [adapter.delta(site.weight.float(), None if site.bias is None else site.bias.float())
              for adapter, _ in found]  # fmt: skip
    changes = [site.matrix(delta.weight).float() for delta in deltas if delta.weight is not None]
    weights = [weight for _, weight in found]
    together = _combiner("linear" if kind == "svd" else kind.removesuffix("_svd"), density, sign)
    configs = [adapter.config for adapter, _ in found]
    most = max(config.rank_at(site.path) for config in configs if isinstance(config, RankedConfig))
    down, up = truncated(together(changes, weights), rank or min(most, site.rows, site.cols), clamp)
    layer = {"down": down.reshape(-1, *site.inner_shape), "up": up}
    biases = [delta.bias * weight for delta, weight in zip(deltas, weights, strict=True) if delta.bias is not None]
    return {**layer, **({"bias": torch.stack(biases).sum(0)} if biases else {})}


def _install(injection: Injection, names: list[str], new: str, made: dict[str, Layer]) -> None:
    """Puts the result on the model as a plain LoRA whose scale is 1."""
    ranks = {path: layer["down"].shape[0] for path, layer in made.items()}
    usual = max(set(ranks.values()), key=list(ranks.values()).count)
    others = {path: rank for path, rank in ranks.items() if rank != usual}
    biased = any("bias" in layer for layer in made.values())
    ours = LoRA(
        rank=usual,
        targets=(exactly(list(made)),),
        rank_pattern={f"re:{path.replace('.', chr(92) + '.')}": rank for path, rank in others.items()},
        use_bias=biased,
    )
    config: Any = copy.deepcopy(injection.peft_config[names[0]])
    config.r, config.lora_alpha, config.use_rslora, config.use_dora = usual, usual, False, False
    config.target_modules = set(made)
    config.rank_pattern = {f"^{path}": rank for path, rank in others.items()}
    config.alpha_pattern = {f"^{path}": rank for path, rank in others.items()}
    config.init_lora_weights, config.lora_bias = True, biased
    config.lora_dropout = float(config.lora_dropout)
    copies = _copies(injection, names)
    config.modules_to_save = list(copies) or None
    injection.put(new, config, lambda: install(injection.model, ours, made, name=new), active=False)
    for path, (owner,) in copies.items():
        injection.extras[new].modules[path].load_state_dict(injection.extras[owner].modules[path].state_dict())


def _add_gains(injection: Injection, names: list[str], weights: list[float], new: str, kind: str | None) -> None:
    """IA³'s gains are summed as they are, ``l = Σ w_i l_i``: with weights that sum to 1, what they change is too."""
    if kind not in (None, "linear"):
        raise Wrong(f"combination_type={kind!r}: gains can only be summed; leave it out")
    first = dict(injection.layers(names[0]))
    layers: dict[str, Layer] = {path: {} for path in first}
    for name in names:
        found = dict(injection.layers(name))
        if set(found) != set(first) or any(set(found[p].tensors()) != set(first[p].tensors()) for p in first):
            raise Wrong(f"{name!r} and {names[0]!r} are on different layers; their gains cannot be summed")
    for path, adapter in first.items():
        for key in adapter.tensors():
            tensors = [dict(injection.layers(name))[path].tensors()[key] for name in names]
            layers[path][key] = COMBINERS["linear"](tensors, weights)
    config = copy.deepcopy(injection.peft_config[names[0]])
    ours = next(iter(first.values())).config
    injection.put(new, config, lambda: install(injection.model, ours, layers, name=new), active=False)
