"""Bottleneck adapters: a small network after, or beside, a part of the base."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from studio.adapters.contract.adapter import METHODS, Adapter, AdapterConfig, Given
from studio.adapters.contract.foreign import Peft
from studio.adapters.sites.site import Site
from studio.config import finite
from studio.errors import DoesNotFit, UnsupportedLayer

__all__ = ["Bottleneck", "BottleneckAdapter"]

ACTIVATIONS: Final[Mapping[str, Callable[[Tensor], Tensor]]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
}

PLACEMENTS: Final = {"houlsby": "attention-output+mlp-output", "pfeiffer": "mlp-output", "parallel": "mlp"}
"""Placement -> the preset that is meant where no targets are given."""


@METHODS.register("bottleneck")
@dataclass(frozen=True, kw_only=True)
class Bottleneck(AdapterConfig):
    r"""A bottleneck adapter adds a small network's output: ``y' = y + s · (up @ act(down @ z + down_bias) + up_bias)``.

    ``z`` is the output ``y`` of the layer it sits on, or with ``placement="parallel"`` its input ``x``. It computes
    with activations and changes no weight, so it acts live and cannot be baked. Several of them add up: each sees the
    base's own ``y``.

    Attributes:
        targets: where they sit; ``"placement"`` stands for what the placement's paper has: the presets
            "attention-output+mlp-output" (houlsby), "mlp-output" (pfeiffer), "mlp" (parallel). Any layer or
            module can be named whose output is a tensor or begins with one, but ``nn.MultiheadAttention``: name what
            holds it.
        placement: ``"houlsby"``, ``"pfeiffer"`` or ``"parallel"``.
        size: width of the bottleneck; None: the width of ``z`` divided by ``reduction``.
        reduction: that divisor.
        activation: ``"relu"``, ``"gelu"``, ``"silu"`` (also called ``"swish"``) or ``"tanh"``.
        norm: normalise ``z`` first, by a LayerNorm that is trained too.
        scale: ``s``. train_scale: whether it is trained; ``scale`` is its start then.
        dropout: probability in [0, 1) with which entries of ``z`` are dropped while training.

    Raises:
        BadConfig: a field with an impossible value.

    References:
        | Parameter-Efficient Transfer Learning for NLP (Houlsby et al., 2019), https://arxiv.org/abs/1902.00751
        | AdapterFusion: Non-Destructive Task Composition for Transfer Learning (Pfeiffer et al., 2020),
          https://arxiv.org/abs/2005.00247
        | Towards a Unified View of Parameter-Efficient Transfer Learning (He et al., 2021),
          https://arxiv.org/abs/2110.04366

    Example:
        >>> import studio, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6))
        >>> studio.attach(model, studio.Bottleneck(size=2, targets=("0",))).parameters
        32
    """

    method = "bottleneck"
    small: ClassVar[Mapping[str, Any]] = {"size": 3}
    targets: str | tuple[str, ...] = "placement"
    placement: str = "pfeiffer"
    size: int | None = None
    reduction: int = 16
    activation: str = "relu"
    norm: bool = False
    scale: float = 1.0
    train_scale: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.targets == "placement":
            object.__setattr__(self, "targets", PLACEMENTS[self.placement])

    def check(self) -> None:
        self.require(self.placement in PLACEMENTS, "placement", f"one of {', '.join(PLACEMENTS)}")
        self.require(self.size is None or _whole(self.size), "size", "a whole number of at least 1, or None")
        self.require(_whole(self.reduction), "reduction", "a whole number of at least 1")
        self.require(self.activation in ACTIVATIONS, "activation", f"one of {', '.join(ACTIVATIONS)}")
        self.require(finite(self.scale), "scale", "a finite number")
        self.require(finite(self.dropout) and 0.0 <= self.dropout < 1.0, "dropout", "a probability in [0, 1)")


def _whole(number: int) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= 1


class BottleneckAdapter(Adapter[Bottleneck]):
    """A bottleneck on one site: ``down`` ``(size, width)``, ``up`` ``(rows, size)`` and their biases.

    Where the config asks for them: ``norm_weight`` and ``norm_bias`` ``(width,)``, ``scale`` ``(1,)``.
    """

    trained = ("down", "down_bias", "up", "up_bias", "norm_weight", "norm_bias", "scale")
    bakes = False
    kinds = ("linear", "conv", "conv1d-gpt2", "embedding", "module")
    needs = ("down", "down_bias", "up", "up_bias")
    peft = Peft(  # PEFT has no such method
        tensors={
            "down": "bottleneck_down.weight",
            "down_bias": "bottleneck_down.bias",
            "up": "bottleneck_up.weight",
            "up_bias": "bottleneck_up.bias",
            "norm_weight": "bottleneck_norm.weight",
            "norm_bias": "bottleneck_norm.bias",
            "scale": "bottleneck_scale",
        }
    )

    @classmethod
    def start(cls, site: Site, config: Bottleneck, given: Given) -> dict[str, Tensor]:
        width = _width(site, config)
        size = config.size or max(1, width // config.reduction)
        bound = 1 / math.sqrt(width)
        down, down_bias = (
            torch.empty(*shape).uniform_(-bound, bound, generator=given.generator) for shape in ((size, width), (size,))
        )
        tensors = {"down": down, "down_bias": down_bias, "up": torch.zeros(site.rows, size)}
        tensors["up_bias"] = torch.zeros(site.rows)
        if config.norm:
            tensors |= {"norm_weight": torch.ones(width), "norm_bias": torch.zeros(width)}
        if config.train_scale:
            tensors["scale"] = torch.tensor([float(config.scale)])
        return tensors

    def fit(self) -> None:
        config = self.config
        width = _width(self.site, config)
        size = self.require("down", (config.size, width)).shape[0]
        self.require("down_bias", (size,))
        self.require("up", (self.site.rows, size))
        self.require("up_bias", (self.site.rows,))
        for name, wanted, shape in (
            ("norm_weight", config.norm, (width,)),
            ("norm_bias", config.norm, (width,)),
            ("scale", config.train_scale, (1,)),
        ):
            if wanted:
                self.require(name, shape)
            elif self.tensor(name) is not None:
                raise DoesNotFit(
                    f"Bottleneck at {self.site.path} has a tensor {name!r} that its config does not ask for"
                )

    @property
    def dropout(self) -> float:
        return float(self.config.dropout)

    def still(self, weight: Tensor, bias: Tensor | None) -> bool:
        return not any(bool(cast(Tensor, self._parameters[name]).count_nonzero()) for name in ("up", "up_bias"))

    def change(self, x: Tensor | None, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        config, site = self.config, self.site
        t: dict[str, Tensor] = {name: tensor.to(y.dtype) for name, tensor in self.tensors().items()}
        z = self._seen(x, y, t["down"].shape[1]).movedim(site.axis, -1)
        # on matrices: with more axes, torch's order of sums depends on whether gradients are wanted
        flat = self.dropped(z.reshape(-1, z.shape[-1]))
        if config.norm:
            flat = F.layer_norm(flat, flat.shape[-1:], t["norm_weight"], t["norm_bias"])
        scale: Any = t["scale"] if config.train_scale else config.scale
        inner = ACTIVATIONS[config.activation](F.linear(flat, t["down"], t["down_bias"]))
        change = F.linear(inner, t["up"] * scale, t["up_bias"] * scale)
        return change.view(*z.shape[:-1], site.rows).movedim(-1, site.axis)

    def _seen(self, x: Tensor | None, y: Tensor, width: int) -> Tensor:
        """What the small network is given, checked against what it was made for."""
        parallel, axis = self.config.placement == "parallel", self.site.axis
        z = x if parallel else y
        if z is None:
            raise DoesNotFit(
                f"{self.site.path} was called without a tensor, which a parallel bottleneck needs as input"
            )
        if y.shape[axis] != self.site.rows or z.shape[axis] != width:
            raise DoesNotFit(
                f"the bottleneck at {self.site.path} was made for {width} channels in and {self.site.rows} out; this "
                f"call has {z.shape[axis]} and {y.shape[axis]}: name the layer that it should follow, not its module"
            )
        if z.shape[:axis] != y.shape[:axis] or (axis < -1 and z.shape[axis + 1 :] != y.shape[axis + 1 :]):
            raise DoesNotFit(
                f"a parallel bottleneck at {self.site.path} needs an output on the positions of the input; they are "
                f"{tuple(y.shape)} and {tuple(z.shape)}"
            )
        return z


def _width(site: Site, config: Bottleneck) -> int:
    """Channels of what the small network is given.

    Raises:
        UnsupportedLayer: a parallel one on a layer whose input has other positions than its output, or is no numbers.
    """
    if config.placement != "parallel":
        return site.rows
    module: Any = site.module
    if site.kind == "embedding":
        raise UnsupportedLayer(
            f"a parallel bottleneck cannot act on {site.path}: its inputs are token ids; take placement='pfeiffer'"
        )
    if site.kind != "conv":
        return site.inner_shape[0]
    taken = [dilation * (kernel - 1) for dilation, kernel in zip(module.dilation, module.kernel_size, strict=True)]
    given = {"valid": [0] * len(taken), "same": taken}.get(module.padding, [2 * size for size in module.padding])
    if any(stride != 1 for stride in module.stride) or given != taken:
        raise UnsupportedLayer(
            f"a parallel bottleneck cannot act on {site.path}: the convolution's output has another size than its "
            "input; take placement='pfeiffer'"
        )
    return int(module.in_channels)


Bottleneck.adapter = BottleneckAdapter
