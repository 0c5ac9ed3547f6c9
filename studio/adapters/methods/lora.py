"""LoRA: a low-rank change of the weight."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from studio.adapters.contract.adapter import METHODS, Factors, Given
from studio.adapters.contract.calibration import Components, Covariance, Gauge
from studio.adapters.contract.coverage import peft_convolves, peft_ungrouped
from studio.adapters.contract.foreign import Layers, Lycoris, Part, Peft, Settings, Tables
from studio.adapters.contract.lycoris import through_core
from studio.adapters.contract.ranked import FactorAdapter, FactorConfig, checked_rank
from studio.adapters.contract.starts import (
    DATA_STARTS,
    RANDOM_STARTS,
    WEIGHT_STARTS,
    grown_pair,
    loftq,
    minor_pair,
    redistributed,
    start_pair,
    taken_pair,
)
from studio.adapters.sites.site import LAYERS, Site
from studio.config import finite
from studio.errors import BadConfig, DoesNotFit, UnsupportedLayer, nearest

__all__ = ["LoRA", "LoRAAdapter", "fold_start"]

INITS = (*RANDOM_STARTS, *WEIGHT_STARTS, "mica", "eva", "loftq")


@METHODS.register("lora")
@dataclass(frozen=True, kw_only=True)
class LoRA(FactorConfig):
    r"""LoRA adds a low-rank change: ``W' = W + s · up @ down`` with ``s = alpha / rank``.

    Attributes:
        init: the start.
            *Drawn*: ``"kaiming"`` (down uniform in ±1/√in, up zero), ``"gaussian"`` (down normal with deviation 1/rank,
            up zero), ``"orthogonal"`` (both factors filled, product zero).
            *Taken out of W*: ``"pissa"`` (its principal singular directions), ``"pissa-fast"`` (the same, nearly, by
            subspace iteration), ``"olora"`` (its QR factors), ``"corda"`` (the largest singular directions of ``W C``,
            brought back by ``C⁻¹``; ``C`` is the covariance of the inputs), ``"corda-kpm"`` (the smallest ones, to
            preserve what W knows). They train directions of W itself:
            ``ΔW = s (up @ down − up0 @ down0)`` with the frozen copy of the start as second pair, so W stays as it is.
            *Beside W*: ``"mica"`` (up: the left singular directions of W with the smallest values, which stay as they
            are; down zero, which alone is trained).
            *Made from data*: ``"eva"`` (down: the principal directions of the inputs, up zero; ranks move to the layers
            whose inputs they explain most). It and CorDA need ``attach(..., calibrate=...)``.
            *For a quantised base*: ``"loftq"`` (the best pair for ``up @ down ≈ W₀ − W`` where ``W₀`` is the layer of
            ``attach(..., original=...)``); the one start that changes something, see :func:`studio.quantize`.
        use_bias: also train a bias, ``b' = b + s · bias``.
        iterations: subspace iterations of ``"pissa-fast"``; None: 4.
        rho: with ``"eva"``, a layer gets at most ``rho`` times its rank; 1 keeps all ranks. None: 2.

    Raises:
        BadConfig: a field with an impossible value.

    References:
        | LoRA: Low-Rank Adaptation of Large Language Models (Hu et al., 2021), https://arxiv.org/abs/2106.09685
        | PiSSA (Meng et al., 2024), https://arxiv.org/abs/2404.02948
        | OLoRA (Büyükakyüz, 2024), https://arxiv.org/abs/2406.01775
        | CorDA (Yang et al., 2024), https://arxiv.org/abs/2406.05223
        | MiCA: Minor Component Adaptation (2026), https://arxiv.org/abs/2604.01694
        | EVA, Parameter Efficient Fine-tuning via Explained Variance Adaptation (Paischer et al., 2024),
          https://arxiv.org/abs/2410.07170
        | LoftQ (Li et al., 2023), https://arxiv.org/abs/2310.08659

    Example:
        >>> import studio, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4))
        >>> studio.attach(model, studio.LoRA(rank=2, targets=("0",))).parameters
        16
    """

    method = "lora"
    init: str = "kaiming"
    use_bias: bool = False
    iterations: int | None = None
    rho: float | None = None

    def check(self) -> None:
        super().check()
        if self.init not in INITS:
            close = nearest(str(self.init), INITS, 1)[0]
            raise BadConfig(f"LoRA(init={self.init!r}): did you mean {close!r}? (starts: {', '.join(INITS)})")
        for name, owner, least in (("iterations", "pissa-fast", 0), ("rho", "eva", 1)):
            value = getattr(self, name)
            if value is not None:
                self.require(self.init == owner, name, f"left out: it is of init={owner!r}, this is {self.init!r}")
                self.require(finite(value) and value >= least, name, f"a number of at least {least}")
        self.require(self.iterations is None or isinstance(self.iterations, int), "iterations", "a whole number")

    @property
    def data_driven(self) -> bool:
        return self.init in DATA_STARTS

    @property
    def restores(self) -> bool:
        return self.init == "loftq"

    @property
    def most(self) -> float:
        """What a rank may be multiplied by when EVA moves ranks."""
        return 2.0 if self.rho is None else float(self.rho)

    def gauge(self, site: Site) -> Gauge:
        if self.init != "eva":
            return Covariance()
        wanted = round(self.rank_at(site.path) * self.most)
        return Components(min(site.cols, 2 * wanted + 8))


# -- other programs ----------------------------------------------------------------------------------------------------


def _check_eva(config: Any) -> None:
    if not config.rho >= 1.0:
        raise BadConfig(f"`rho` must be >= 1.0 and is {config.rho}")
    if not 0.0 <= config.tau <= 1.0:
        raise BadConfig(f"`tau` must be between 0.0 and 1.0. It is {config.tau}")


EVA: Final = Part(
    "EvaConfig",
    {
        "rho": 2.0, "tau": 0.99, "use_label_mask": True, "label_mask_value": -100, "whiten": False,
        "adjust_scaling_factors": True,
    },
    check=_check_eva,
)  # fmt: skip
CORDA: Final = Part(
    "CordaConfig",
    {
        "cache_file": None, "covariance_file": None, "corda_method": "ipm", "verbose": False,
        "use_float16_for_covariance": False, "prune_temporary_fields": True,
    },
)  # fmt: skip
LOFTQ: Final = Part("LoftQConfig", {"loftq_bits": 4, "loftq_iter": 1})
PARTS: Final = {"eva_config": EVA, "corda_config": CORDA, "loftq_config": LOFTQ}


def start_of_peft(config: Any, word: str) -> dict[str, Any]:
    """Makes our fields of a start that PEFT names by a word, and sometimes with a config of its own.

    Args:
        config: PEFT's. word: the start.

    Raises:
        BadConfig: a field of the start's own config that is not implemented.
    """
    fast = re.fullmatch(r"pissa_niter_(\d+)", word)
    if fast is not None:
        return {"init": "pissa-fast", "iterations": int(fast.group(1))}
    found: dict[str, Any] = {"init": word}
    name = f"{word}_config"
    given = getattr(config, name, None)
    if name not in PARTS or not given:
        return found
    stated = vars(given) if dataclasses.is_dataclass(given) else dict(given)
    for field, value in stated.items():
        if field == "rho" and word == "eva":
            found["rho"] = float(value)
        elif field == "corda_method" and word == "corda":
            found["init"] = "corda-kpm" if value == "kpm" else "corda"
        elif value != PARTS[name].defaults.get(field):
            raise BadConfig(f"LoraConfig({name}={{{field!r}: {value!r}}}) is not implemented; leave it at its default")
    return found


FIELDS: Final = {
    "rank": "r", "alpha": "lora_alpha", "dropout": "lora_dropout", "rank_stabilized": "use_rslora"
}  # fmt: skip
"""Fields that all methods of the type LORA have."""


def _check_peft(config: Any) -> None:
    if config.use_dora and config.megatron_config:
        raise BadConfig("DoRA does not support megatron_core, please set `use_dora=False`.")


SETTINGS: Final = Settings(
    name="LoraConfig",
    defaults={
        "r": 8, "lora_alpha": 8, "lora_dropout": 0.0, "fan_in_fan_out": False, "bias": "none", "use_rslora": False,
        "init_lora_weights": True, "rank_pattern": {}, "alpha_pattern": {}, "megatron_config": None,
        "megatron_core": "megatron.core", "trainable_token_indices": None, "loftq_config": {}, "eva_config": None,
        "corda_config": None, "lora_ga_config": None, "use_dora": False, "velora_config": None,
        "alora_invocation_tokens": None, "use_qalora": False, "qalora_group_size": 16, "monteclora_config": None,
        "layer_replication": None, "runtime_config": Part("LoraRuntimeConfig", {"ephemeral_gpu_offload": False}),
        "lora_bias": False, "target_parameters": None, "use_bdlora": None, "arrow_config": None, "kasa_config": None,
        "ensure_weight_tying": False,
    },
    fields={**FIELDS, "use_bias": "lora_bias"},
    flags={"use_dora": False},
    init="init_lora_weights",
    starts=("gaussian", "orthogonal", "mica", "eva"),
    beside=(
        "megatron_config", "megatron_core", *PARTS, "lora_ga_config", "velora_config", "qalora_group_size",
        "runtime_config", "lora_bias", "ensure_weight_tying",
    ),
    parts=PARTS,
    start=start_of_peft,
    check=_check_peft,
)  # fmt: skip
"""PEFT's config; that of the other methods of its type is the same class."""

PAIR: Final = {"down": "lora_A.weight", "up": "lora_B.weight"}
ON_EMBEDDING: Final = {"down": "lora_embedding_A", "up": "lora_embedding_B"}
ALIASES: Final = {
    "lora.down.weight": "lora_A.weight",
    "lora.up.weight": "lora_B.weight",
    "lora_linear_layer.down.weight": "lora_A.weight",
    "lora_linear_layer.up.weight": "lora_B.weight",
    "lora_A.default.weight": "lora_A.weight",
    "lora_B.default.weight": "lora_B.weight",
}
KOHYA: Final = {"down": "lora_down.weight", "up": "lora_up.weight", "core": "lora_mid.weight"}
"""The middle tensor of a Tucker-decomposed LoCon is worked into ``down``."""
SHAPES: Final = {"down": "inner", "up": "spread"}


def without_core(fields: Mapping[str, Any], site: Site, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Works the middle tensor of a LoCon into ``down``: ``ΔW[p,q,h,w] = Σ_ij up[p,i] core[i,j,h,w] down[j,q]``."""
    if "core" not in tensors:
        return tensors
    core, right = tensors.pop("core"), tensors["down"].flatten(1)
    if core.dim() < 2 or core.shape[1] != len(right) or _kernel(core.shape[2:]) != _kernel(site.inner_shape[1:]):
        raise DoesNotFit(f"a core of the shape {tuple(core.shape)} does not go between an up and a down of {site.path}")
    down = through_core(core, right)
    shape = (len(down), *site.inner_shape)
    return {**tensors, "down": down.reshape(shape) if down.numel() == math.prod(shape) else down}


def _kernel(axes: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of a kernel without ones at the end, which a file may leave out or add."""
    return _kernel(axes[:-1]) if axes and axes[-1] == 1 else tuple(axes)


class LoRAAdapter(FactorAdapter[LoRA]):
    """LoRA on one site: ``down`` ``(r, *inner_shape)``, ``up`` ``(rows, r)``, ``bias`` ``(rows,)``.

    Experts that a block keeps in one parameter have a pair each: ``down`` ``(E, r, cols)``, ``up`` ``(E, rows, r)``.
    """

    kinds: ClassVar[tuple[str, ...]] = (*LAYERS, "parameter", "experts")
    trained: ClassVar[tuple[str, ...]] = ("down", "up", "bias")
    frozen: ClassVar[tuple[str, ...]] = ("down0", "up0")
    needs = ("down", "up")
    ranks = ("down",)
    peft = Peft(
        type="LORA",
        additive=True,
        settings=SETTINGS,
        tensors={**PAIR, "bias": "lora_B.bias"},
        embedding=ON_EMBEDDING,
        aliases=ALIASES,
        layouts={**SHAPES, "bias": "vector"},
        limit=peft_ungrouped,
        differs=peft_convolves,
        parameters=True,
        diffusers=True,
    )
    lycoris = Lycoris(
        tensors={**KOHYA, "bias": "diff_b"},
        layouts={**SHAPES, "bias": "vector"},
        scaled=("bias",),
        read=without_core,
    )

    def __init__(self, site: Site, config: LoRA, tensors: Mapping[str, Tensor], *, trainable: bool = True) -> None:
        if config.init == "mica":
            self.__dict__["trained"], self.__dict__["frozen"] = ("down", "bias"), ("up",)
        super().__init__(site, config, tensors, trainable=trainable)

    @classmethod
    def plan(cls, sites: Mapping[str, Site], config: LoRA, given: Mapping[str, Given]) -> LoRA:
        if config.init != "eva" or config.most == 1.0:
            return config
        return redistributed(sites, config, given, config.most)

    @classmethod
    def start(cls, site: Site, config: LoRA, given: Given) -> dict[str, Tensor]:
        rank = checked_rank(site, config)
        if config.init in RANDOM_STARTS:
            tensors = start_pair(site, rank, config.init, given.generator)
        elif site.lead:
            raise BadConfig(
                f"LoRA(init={config.init!r}) looks at one matrix, and {site.path} holds {site.lead[0]} experts; they "
                f"start with one of {', '.join(RANDOM_STARTS)}"
            )
        elif config.init == "mica":
            down, up = minor_pair(site, given.weight(), rank)
            tensors = {"down": down.reshape(rank, *site.inner_shape), "up": up}
        elif config.init == "eva":
            down = given.inputs.directions(rank, site.path).float().reshape(rank, *site.inner_shape).contiguous()
            tensors = {"down": down, "up": torch.zeros(site.rows, rank).to(down)}
        else:
            scale = config.scale_at(site.path)
            taken = config.init in WEIGHT_STARTS
            down, up = taken_pair(site, config, rank, given) if taken else _restoring(site, rank, scale, given)
            root = 1.0 if config.init == "olora" else math.sqrt(abs(scale)) or 1.0
            down, up = down.reshape(rank, *site.inner_shape) / root, up / root
            tensors = {"down": down, "up": up, **({"down0": down, "up0": up} if taken else {})}
            tensors = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
        if config.use_bias:
            if site.bias_name is None:
                raise UnsupportedLayer(f"{site.path} has no bias that could be trained; set use_bias=False")
            tensors["bias"] = torch.zeros(site.rows)
        return tensors

    def fit(self) -> None:
        lead = self.site.lead
        rank = self.require("down", (*lead, None, *self.site.inner_shape)).shape[len(lead)]
        self.require("up", (*lead, self.site.rows, rank))
        if self.tensor("bias") is not None:
            self.require("bias", (self.site.rows,))
        self.__dict__["scale"] = self.config.scale_at(self.site.path)

    def factors(self) -> Factors:
        held: dict[str, Any] = {**self._buffers, **self._parameters}
        down, up = fold_start(held) if "down0" in held else (held["down"], held["up"])
        return Factors(down, up, self.scale, held.get("bias"))

    def grown(self, rank: int, generator: torch.Generator) -> tuple[LoRA, dict[str, Tensor]]:
        if self.config.init == "mica":
            raise UnsupportedLayer("LoRA(init='mica') trains within the directions that it began with; attach anew")
        if self.site.lead:
            raise UnsupportedLayer(f"{self.site.path} holds experts, whose rank cannot grow; attach at the new rank")
        return grown_pair(self, rank, generator)

    @classmethod
    def shown(cls, layers: Layers) -> dict[str, Any]:
        return {"use_bias": any("bias" in tensors for tensors in layers.values())}

    @classmethod
    def to_save(cls, config: LoRA, layers: Layers) -> tuple[LoRA, Tables]:
        """Gives every layer one pair, as other programs know it; whoever saves states rank and alpha anew."""
        plain: Tables = {}
        for path, tensors in layers.items():
            plain[path] = {name: tensor for name, tensor in tensors.items() if name not in ("down0", "up0")}
            if "down0" in tensors:
                plain[path]["down"], plain[path]["up"] = fold_start(dict(tensors))
        if config.init in WEIGHT_STARTS:
            config = dataclasses.replace(config, init="kaiming", iterations=None)
        return config, plain


def _restoring(site: Site, rank: int, scale: float, given: Given) -> tuple[Tensor, Tensor]:
    """LoftQ's pair, which gives back what quantisation took from the weight."""
    assert given.original is not None, "attach() has seen to it"
    if scale <= 0:
        raise BadConfig(f"LoRA(init='loftq') at {site.path} has the scale {scale:g}; give an alpha above 0")
    return loftq(site, given.weight(), given.original(), rank)


def fold_start(tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Returns one pair ``(down, up)`` with ``up @ down = up·down − up0·down0``; rank doubles."""
    down = torch.cat([tensors["down"], tensors["down0"]])
    return down, torch.cat([tensors["up"], -tensors["up0"]], dim=1)


LoRA.adapter = LoRAAdapter
