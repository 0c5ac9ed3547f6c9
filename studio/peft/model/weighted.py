"""``add_weighted_adapter``: one new adapter out of several, by PEFT's names of the ways."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from studio.adapters import Adapter, LoRA, install
from studio.adapters.combining.crosswise import crosswise
from studio.adapters.combining.numbers import COMBINERS, truncated
from studio.adapters.contract.pattern import exactly
from studio.adapters.contract.ranked import RankedConfig, any_rank
from studio.peft.model.adding import put
from studio.peft.model.state import State
from studio.peft.terms.errors import Wrong, refusals

__all__ = ["add_weighted_adapter"]

_TYPES: Final = ("cat", "svd", *COMBINERS, *(f"{name}_svd" for name in COMBINERS if name != "linear"))
_PRUNED: Final = ("ties", "dare_ties", "dare_linear", "magnitude_prune")

Layer = dict[str, Tensor]
Parts = list[tuple[Adapter, float]]


@dataclass(frozen=True)
class _Way:
    """A way in which low-rank adapters become one, by the words that PEFT has for it.

    Attributes:
        type: the way. rank, clamp: see ``svd_rank``, ``svd_clamp``. density: see there. sign: ``majority_sign_method``.
    """

    type: str
    rank: int | None
    clamp: float | None
    density: float | None
    sign: str

    def __post_init__(self) -> None:
        if self.type not in _TYPES:
            raise Wrong(f"Invalid combination_type: {self.type}; it is one of {', '.join(_TYPES)}")
        if self.rule in _PRUNED and self.density is None:
            raise Wrong(f"combination_type={self.type!r} needs density, the part of the numbers that is kept")
        if self.sign not in ("total", "frequency"):
            raise Wrong(f"majority_sign_method={self.sign!r} must be 'total' or 'frequency'")

    @property
    def rule(self) -> str:
        """The rule by which tensors are combined: a key of the core's combiners."""
        return "linear" if self.type == "svd" else self.type.removesuffix("_svd")

    def together(self, tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        """Combines tensors of one shape ``(...)`` by the rule."""
        arguments: list[Any] = [] if self.rule == "linear" else [self.density]
        return COMBINERS[self.rule](tensors, weights, *arguments, *([self.sign] if self.rule.endswith("ties") else []))


@torch.no_grad()
def add_weighted_adapter(
    state: State,
    adapters: Sequence[str],
    weights: Sequence[float],
    adapter_name: str,
    combination_type: str | None = None,
    svd_rank: int | None = None,
    svd_clamp: float | None = None,
    svd_full_matrices: bool = True,
    svd_driver: str | None = None,
    density: float | None = None,
    majority_sign_method: str = "total",
) -> None:
    """Makes one new adapter out of several; it does not act.

    Args:
        state: what is on the model. adapters: their names. weights: one number for each. adapter_name: the new name.
        combination_type: "svd", "linear", "cat", "ties", "ties_svd", "dare_linear", "dare_ties", "dare_linear_svd",
            "dare_ties_svd", "magnitude_prune", "magnitude_prune_svd"; None: "svd" for LoRA, the weighted sum else.
        svd_rank: rank of the new adapter; None: the largest. svd_clamp: quantile at which factors are cut off.
        svd_full_matrices, svd_driver: accepted; they change how the same factors are found.
        density: part of the numbers that is kept (ties, dare, magnitude_prune).
        majority_sign_method: "total" or "frequency" (ties).

    Raises:
        Wrong: a name that is taken, an unknown type, or adapters that cannot be combined so.
    """
    with refusals():
        names, new, weights = list(adapters), adapter_name, [float(weight) for weight in weights]
        if _word(state, names, weights, new) == "IA3":
            _add_gains(state, names, weights, new, combination_type)
            return
        way = _Way(combination_type or "svd", svd_rank, svd_clamp, density, majority_sign_method)
        at: dict[str, Parts] = {}
        for name, weight in zip(names, weights, strict=True):
            for path, adapter in state.layers(name):
                at.setdefault(path, []).append((adapter, weight * state.scale_of(name, path)))
        combine = _by_change if way.type.endswith("svd") else _by_factors
        _put_plain(state, names, new, {path: combine(parts, way) for path, parts in at.items()})


def _word(state: State, names: list[str], weights: list[float], new: str) -> str:
    """PEFT's word for the method of all the adapters, once it is certain that they can be combined."""
    if new in state.configs:
        raise Wrong(f"an adapter named {new!r} exists already; give the combination another name")
    if not names or len(names) != len(weights):
        raise Wrong(f"{len(names)} adapters and {len(weights)} weights; give one weight for each adapter")
    state.check(*names)
    biased = [name for name in names if state.extras[name].parameters]
    if biased:
        raise Wrong(f"{biased[0]!r} has biases of its own (bias=...); there is no sum of such copies, leave it out")
    bare = next((path for name in names for path, one in state.layers(name) if one.site.hosting == "owner"), None)
    if bare is not None:
        raise Wrong(
            f"add_weighted_adapter does not support targeting nn.Parameter ({bare}): combine the adapters one by one, "
            "or let them act together: studio.blend"
        )
    both = sum(len(owners) > 1 for owners in _owners(state, names).values())
    if both:
        raise Wrong(
            "Cannot add weighted adapters if they target the same module with modules_to_save, but found "
            f"{both} such instance(s)."
        )
    words = sorted({state.configs[name].word for name in names})
    if len(words) > 1:
        raise Wrong(f"all adapters must be of one method, not {' and '.join(words)}")
    if words[0] not in ("LORA", "IA3"):
        raise Wrong(f"add_weighted_adapter combines LoRA, DoRA or IA3 adapters, not {words[0]}; blend them instead")
    return words[0]


def _owners(state: State, names: Sequence[str]) -> dict[str, list[str]]:
    """The modules of which adapters have a copy, and which adapters those are."""
    found: dict[str, list[str]] = {}
    for name in names:
        for path in state.extras[name].modules:
            found.setdefault(path, []).append(name)
    return found


def _by_factors(parts: Parts, way: _Way) -> Layer:
    """Combines the two factors: exactly for "cat", else each by itself, which mixes the adapters crosswise."""
    if not all(type(adapter).fused for adapter, _ in parts):
        raise Wrong(
            f"combination_type={way.type!r} would leave out the magnitude of a DoRA adapter; combination_type='svd' "
            "combines what the adapters really change"
        )
    factors = [(adapter.factors(), weight) for adapter, weight in parts]
    scales = [one.scale * weight for one, weight in factors]
    biases = [one.bias * scale for (one, _), scale in zip(factors, scales, strict=True) if one.bias is not None]
    downs, ups = [one.down for one, _ in factors], [one.up for one, _ in factors]
    if way.type == "cat":
        scaled = [down * scale for down, scale in zip(downs, scales, strict=True)]
        return _layer(torch.cat(scaled), torch.cat(ups, dim=1), biases)
    ranks = sorted({down.shape[0] for down in downs})
    if len(ranks) > 1:
        raise Wrong(
            f"All adapters must have the same r value when using combination_type linear, ties, dare_ties or "
            f"dare_linear, not {' and '.join(map(str, ranks))}; use 'cat' or 'svd'"
        )
    pairs = list(zip(downs, ups, strict=True))
    down, up = crosswise(way.rule, pairs, scales, 1.0 if way.density is None else way.density, way.sign)
    return _layer(down, up, biases)


def _by_change(parts: Parts, way: _Way) -> Layer:
    """Combines the changes of the weight, and takes the best pair of a rank for the result."""
    site = parts[0][0].site
    bias = None if site.bias is None else site.bias.float()
    deltas = [(adapter.delta(site.weight.float(), bias), weight) for adapter, weight in parts]
    changes = [site.matrix(delta.weight).float() for delta, _ in deltas if delta.weight is not None]
    configs = [adapter.config for adapter, _ in parts]
    most = max(config.rank_at(site.path) for config in configs if isinstance(config, RankedConfig))
    whole = way.together(changes, [weight for _, weight in parts])
    down, up = truncated(whole, way.rank or min(most, site.rows, site.cols), way.clamp)
    biases = [delta.bias * weight for delta, weight in deltas if delta.bias is not None]
    return _layer(down.reshape(-1, *site.inner_shape), up, biases)


def _layer(down: Tensor, up: Tensor, biases: Sequence[Tensor]) -> Layer:
    return {"down": down, "up": up, **({"bias": torch.stack(list(biases)).sum(0)} if biases else {})}


def _put_plain(state: State, names: list[str], new: str, made: dict[str, Layer]) -> None:
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
    config: Any = copy.deepcopy(state.configs[names[0]])
    config.r, config.lora_alpha, config.use_rslora, config.use_dora = usual, usual, False, False
    config.target_modules = set(made)
    config.rank_pattern = {f"^{path}": rank for path, rank in others.items()}
    config.alpha_pattern = {f"^{path}": rank for path, rank in others.items()}
    config.init_lora_weights, config.lora_bias = True, biased
    config.lora_dropout = float(config.lora_dropout)
    owners = _owners(state, names)
    config.modules_to_save = list(owners) or None
    with any_rank():
        put(state, new, config, partial(install, state.model, ours, made, name=new), active=False)
    for path, (owner,) in owners.items():
        state.extras[new].modules[path].load_state_dict(state.extras[owner].modules[path].state_dict())


def _add_gains(state: State, names: list[str], weights: list[float], new: str, way: str | None) -> None:
    """IA³'s gains are summed as they are, ``l = Σ w_i l_i``: with weights that sum to 1, what they change is too."""
    if way not in (None, "linear"):
        raise Wrong(f"combination_type={way!r}: gains can only be summed; leave it out")
    found = [dict(state.layers(name)) for name in names]
    keys = [{path: set(adapter.tensors()) for path, adapter in layers.items()} for layers in found]
    for name, own in zip(names, keys, strict=True):
        if own != keys[0]:
            raise Wrong(f"{name!r} and {names[0]!r} are on different layers; their gains cannot be summed")
    gains = {
        path: {key: COMBINERS["linear"]([layers[path].tensors()[key] for layers in found], weights) for key in own}
        for path, own in keys[0].items()
    }
    config = copy.deepcopy(state.configs[names[0]])
    ours = next(iter(found[0].values())).config
    put(state, new, config, partial(install, state.model, ours, gains, name=new), active=False)
