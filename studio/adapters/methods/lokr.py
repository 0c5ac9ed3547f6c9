"""LoKr: a change of the weight that is a Kronecker product."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from studio.adapters.contract.adapter import METHODS, Delta, Given
from studio.adapters.contract.coverage import peft_pads
from studio.adapters.contract.foreign import Layers, Lycoris, Peft, Settings, Sites, Tables
from studio.adapters.contract.lycoris import (
    LycorisAdapter,
    LycorisConfig,
    cores_for_peft,
    cores_of_peft,
    cores_stated,
    drawn,
    through_core,
)
from studio.adapters.contract.rows import Rows, joined_rows
from studio.adapters.sites.site import Site
from studio.errors import BadConfig, DoesNotFit

__all__ = ["LoKr", "LoKrAdapter", "factorize"]


@METHODS.register("lokr")
@dataclass(frozen=True, kw_only=True)
class LoKr(LycorisConfig):
    r"""LoKr changes the weight by a Kronecker product: ``W' = W + s · kron(w1, w2)`` with ``s = alpha / rank``.

    ``rows = a·c`` and ``cols = b·d`` are split as evenly as ``factor`` asks: ``w1`` ``(a, b)``, ``w2`` ``(c, d)``.
    A part is kept whole, or as a product of two factors of rank ``rank`` where that is smaller (``w2 = w2_a @ w2_b``).

    Attributes:
        factor: upper bound of the smaller part of a split, or -1 for the most even one.
        decompose_both: also factorise ``w1`` where that is smaller.
        init: the part that starts at zero, while the other is drawn: ``"w1"`` as in PEFT, or ``"w2"`` as in LyCORIS.

    Raises:
        BadConfig: a field with an impossible value.

    References:
        | KronA (Edalati et al., 2022), https://arxiv.org/abs/2212.10650
        | Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model Evaluation (Yeh et al., 2023),
          https://arxiv.org/abs/2309.14859

    Example:
        >>> import studio, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(16, 16))
        >>> studio.attach(model, studio.LoKr(rank=1, targets=("0",))).parameters
        24
    """

    method = "lokr"
    small: ClassVar[Mapping[str, Any]] = {"rank": 1}
    factor: int = -1
    decompose_both: bool = False
    init: str = "w1"

    def check(self) -> None:
        super().check()
        self.require(self.init in ("w1", "w2"), "init", "'w1' or 'w2'")
        self.require(self.factor == -1 or self.factor >= 1, "factor", "-1, or a whole number of at least 1")


def factorize(size: int, factor: int = -1) -> tuple[int, int]:
    """Splits ``size`` into ``(small, large)`` with ``small · large = size`` and ``small <= large``.

    Args:
        size: what is split.
        factor: upper bound of ``small``; -1 for the most even split.

    Example:
        >>> factorize(320), factorize(320, 8), factorize(7)
        ((16, 20), (8, 40), (1, 7))
    """
    most = math.isqrt(size) if factor == -1 else min(factor, math.isqrt(size))
    small = next(part for part in range(most, 0, -1) if size % part == 0)
    return small, size // small


# -- PEFT --------------------------------------------------------------------------------------------------------------


def _check_order(site: Site, tensors: Mapping[str, Tensor]) -> None:
    """Refuses what PEFT's product of ``w1`` ``(a, b)`` and a whole ``w2`` ``(c, d, k)`` of a Conv1d is not.

    It takes the axes from the right, ``b`` with ``k`` and ``a`` with ``d``, and then reshapes: the weight has its
    numbers in another order than the Kronecker product.
    """
    if "w2" in tensors and tensors["w2"].dim() == 3:
        raise DoesNotFit(
            f"PEFT's LoKr multiplies a whole w2 of the Conv1d {site.path} along other axes than a Kronecker product; "
            "a rank at which w2 is factorised, or format='diffusers', has none of this"
        )


def _start_of_peft(config: Any, word: str) -> dict[str, Any]:
    if word != "lycoris":
        raise BadConfig(f"LoKrConfig(init_weights={word!r}): the starts are True, False and 'lycoris'")
    return {"init": "w2"}


def _of_peft(fields: Mapping[str, Any], site: Site, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    _check_order(site, tensors)
    return cores_of_peft(fields, site, tensors)


def _for_peft(config: LoKr, sites: Sites, layers: Layers) -> Tables:
    for path, tensors in layers.items():
        _check_order(sites[path], tensors)
        if "window" in tensors:
            raise DoesNotFit(f"PEFT's LoKr has no rows of a larger product, as {path} is; save with format='diffusers'")
    return cores_for_peft(config, sites, layers)


def _stated(config: LoKr, sites: Sites, layers: Layers) -> dict[str, Any]:
    """Says whether there are cores, and the ``decompose_factor`` with which PEFT makes exactly these tensors.

    PEFT makes the tensors from its config before it reads them from the file, so it has to lead to the same shapes.
    """
    fields = cores_stated(config, sites, layers)
    rows = {path: int(tensors["w1" if "w1" in tensors else "w1_a"].shape[0]) for path, tensors in layers.items()}
    small = {min(sites[path].rows // count, count) for path, count in rows.items()}
    shapes = {path: {name: tuple(tensor.shape) for name, tensor in layers[path].items()} for path in layers}
    wrong = ""
    for factor in (config.factor, -1, *sorted(small)):
        made = {path: _peft_shapes(config, sites[path], factor, fields["use_effective_conv2d"]) for path in layers}
        wrong = next((path for path in layers if made[path] != shapes[path]), "")
        if not wrong:
            return {**fields, "decompose_factor": int(factor)}
    raise DoesNotFit(
        f"PEFT would give the LoKr tensors of {wrong} other shapes than they have and then refuse the file; "
        "save with format='diffusers' or 'kohya'"
    )


def _peft_shapes(config: LoKr, site: Site, factor: int, cored: bool) -> dict[str, tuple[int, ...]]:
    """The tensors that PEFT makes at a site."""
    kernel, rank = site.inner_shape[1:], config.rank_at(site.path)
    taps = math.prod(kernel)
    (a, c), (b, d) = peft_split(site.rows, factor), peft_split(site.inner_shape[0], factor)
    shapes: dict[str, tuple[int, ...]] = {"w1": (a, b)}
    if config.decompose_both and rank < max(a, b) / 2:
        shapes = {"w1_a": (a, rank), "w1_b": (rank, b)}
    if rank >= max(c, d) / 2:
        return shapes | {"w2": (c, d, *kernel)}
    if cored and taps > 1:
        core = (rank, rank, *kernel, 1) if len(kernel) == 1 else (rank, rank, *kernel)
        return shapes | {"w2_t": core, "w2_a": (rank, c), "w2_b": (rank, d)}
    return shapes | {"w2_a": (c, rank), "w2_b": (rank, d * taps)}


def peft_split(size: int, factor: int) -> tuple[int, int]:
    """Splits a size as PEFT does: a factor that divides it comes first, even if it is the larger part.

    Example:
        >>> peft_split(12, 6), peft_split(12, 5), factorize(12, 6)
        ((6, 2), (3, 4), (3, 4))
    """
    return (factor, size // factor) if factor > 0 and size % factor == 0 else factorize(size, factor)


NAMES: Final = {
    "w1": "lokr_w1",
    "w1_a": "lokr_w1_a",
    "w1_b": "lokr_w1_b",
    "w2": "lokr_w2",
    "w2_t": "lokr_t2",
    "w2_a": "lokr_w2_a",
    "w2_b": "lokr_w2_b",
    "magnitude": "dora_scale",
    "window": "lokr_window",  # the studio's own
}


_LEFT: Final = ("w1", "w1_a")
_RIGHT: Final = ("w2", "w2_a")
"""Tensors of the two factors whose first axis runs over the factor's rows, in a linear layer."""


class LoKrAdapter(LycorisAdapter[LoKr]):
    """LoKr on one site: ``w1`` or ``w1_a @ w1_b``, and ``w2``, ``w2_a @ w2_b`` or the Tucker form with ``w2_t``.

    In convolutions ``w2`` carries the kernel: ``(c, d, kh, kw)``, factorised ``w2_a (c, r)``, ``w2_b (r, d·kh·kw)``,
    or ``w2_t (r, r, kh, kw)``, ``w2_a (r, c)``, ``w2_b (r, d)``. Where the product has more rows than the layer,
    as it was made for several layers in one, ``window`` ``(1,)`` says at which of them those of the layer begin.
    """

    trained = ("w1", "w1_a", "w1_b", "w2", "w2_t", "w2_a", "w2_b", "magnitude")
    frozen = ("window",)
    whole_numbers = ("window",)
    rowwise = ("w1", "w1_a", "magnitude")
    ranks = ("w2_b", "w1_b")
    peft = Peft(
        type="LOKR",
        additive=True,
        settings=Settings(
            name="LoKrConfig",
            defaults={
                "rank_pattern": {}, "alpha_pattern": {}, "r": 8, "alpha": 8, "rank_dropout": 0.0,
                "module_dropout": 0.0, "use_effective_conv2d": False, "decompose_both": False,
                "decompose_factor": -1, "rank_dropout_scale": False, "init_weights": True,
            },
            fields={
                "rank": "r", "alpha": "alpha", "factor": "decompose_factor", "decompose_both": "decompose_both",
                "tucker": "use_effective_conv2d", "rank_dropout": "rank_dropout",
                "rank_dropout_scale": "rank_dropout_scale", "module_dropout": "module_dropout",
            },
            start=_start_of_peft,
            state=_stated,
        ),
        tensors=NAMES,
        covers=("Linear", "Conv1d", "Conv2d"),
        differs=peft_pads,
        read=_of_peft,
        store=_for_peft,
    )  # fmt: skip
    lycoris = Lycoris(algo="lokr", tensors=NAMES, unranked="w1")

    @classmethod
    def start(cls, site: Site, config: LoKr, given: Given) -> dict[str, Tensor]:
        magnitude = cls.own_magnitude(site, config, given)
        return cls._product(site, config, given) | magnitude

    @classmethod
    def _product(cls, site: Site, config: LoKr, given: Given) -> dict[str, Tensor]:
        rank = config.rank_at(site.path)
        inner, kernel = site.inner_shape[0], site.inner_shape[1:]
        a, c = factorize(site.rows, config.factor)
        b, d = factorize(inner, config.factor)
        taps, filled = math.prod(kernel), partial(drawn, given.generator)
        first, second = (torch.zeros, filled) if config.init == "w1" else (filled, torch.zeros)
        tensors: dict[str, Tensor] = {}
        if config.decompose_both and rank < max(a, b) / 2:
            tensors |= {"w1_a": first(a, rank), "w1_b": filled(rank, b)}
        else:
            tensors["w1"] = first(a, b)
        if rank >= max(c, d) / 2:  # the kernel does not count, as in PEFT and LyCORIS
            return tensors | {"w2": second(c, d, *kernel)}
        if config.tucker and taps > 1:
            return tensors | {"w2_t": filled(rank, rank, *kernel), "w2_a": filled(rank, c), "w2_b": second(rank, d)}
        return tensors | {"w2_a": filled(c, rank), "w2_b": second(rank, d * taps)}

    def fit(self) -> None:
        (a, b), (c, d) = self._part("w1"), self._part("w2")
        self.check_magnitude()
        taps = math.prod(self.site.inner_shape[1:])
        window = self.tensor("window")
        self.__dict__["begin"] = begin = 0 if window is None else int(window)
        fits = a * c == self.site.rows if window is None else 0 <= begin <= a * c - self.site.rows
        if not fits or b * d != self.site.inner_shape[0] * taps:
            raise DoesNotFit(
                f"LoKr at {self.site.path}: parts of {a} x {b} and {c} x {d} make {a * c} x {b * d}, "
                f"the layer is {self.site.rows} x {self.site.cols}"
            )
        self.__dict__["scale"] = self.config.scale_at(self.site.path)

    scale: float
    begin: int

    @classmethod
    def cut(cls, tensors: Mapping[str, Tensor], rows: Rows, fixed: Mapping[str, Any]) -> dict[str, Tensor]:
        count, high = (next((len(tensors[part]) for part in parts if part in tensors), 0) for parts in (_LEFT, _RIGHT))
        if count * high != rows.total:
            raise DoesNotFit(f"its factors of {count} and {high} rows do not make these {rows.total} outputs")
        if rows.of(count) is not None:
            return super().cut(tensors, rows, fixed)
        # a row of w1 makes as many outputs as w2 has rows, and some of these belong to another layer
        first, last = rows.begin // high, -(-rows.end // high)
        whole = super().cut(tensors, Rows(first * high, last * high, rows.total), fixed)
        if "magnitude" in tensors:
            whole["magnitude"] = tensors["magnitude"][rows.begin : rows.end].clone()
        return {**whole, "window": torch.tensor([rows.begin - first * high])}

    @classmethod
    def rejoined(cls, layers: Sequence[Mapping[str, Tensor]], rows: Sequence[Rows]) -> dict[str, Tensor]:
        if not any("window" in own for own in layers):
            return super().rejoined(layers, rows)
        left, right = (next(part for part in parts if part in layers[0]) for parts in (_LEFT, _RIGHT))
        begins = [int(own.get("window", torch.zeros(1))) for own in layers]
        high = len(layers[0][right])
        blocks = [(place.begin - begin) // high for place, begin in zip(rows, begins, strict=True)]
        first = layers[0][left]
        full = first.new_zeros(rows[0].total // high, *first.shape[1:])
        for own, block in zip(layers, blocks, strict=True):
            full[block : block + len(own[left])] = own[left]
        same = all(
            torch.equal(full[block : block + len(own[left])], own[left])
            for own, block in zip(layers, blocks, strict=True)
        )
        if not same or rows[0].total % high:
            raise DoesNotFit(f"their {left} differ where they overlap, and one layer has one of it")
        rest = [{name: one for name, one in own.items() if name not in (left, "window")} for own in layers]
        return {**joined_rows(rest, ("magnitude",)), left: full}

    def _part(self, name: str) -> tuple[int, int]:
        """Rows and columns of ``w1`` or ``w2``, checked for completeness."""
        whole, left, right, core = (self.tensor(name + end) for end in ("", "_a", "_b", "_t"))
        if whole is not None and left is None and right is None and core is None and self._is_flat(name, whole):
            return whole.shape[0], math.prod(whole.shape[1:])
        if whole is None and left is not None and right is not None and left.dim() == right.dim() == 2:
            if core is None and left.shape[1] == right.shape[0]:
                return left.shape[0], right.shape[1]
            if core is not None and core.shape == (left.shape[0], right.shape[0], *self.site.inner_shape[1:]):
                return left.shape[1], right.shape[1] * math.prod(core.shape[2:])
        shapes = {part: tuple(tensor.shape) for part, tensor in self.tensors().items() if part.startswith(name)}
        raise DoesNotFit(
            f"LoKr at {self.site.path} needs {name!r}, or '{name}_a' and '{name}_b' that multiply; found {shapes}"
        )

    def _is_flat(self, name: str, whole: Tensor) -> bool:
        """Whether a part is a matrix, or has the kernel's axes too, which are those of ``w2``."""
        kernel = self.site.inner_shape[1:]
        axes = tuple(whole.shape[2:])
        return whole.dim() == 2 or (name == "w2" and whole.dim() > 2 and axes in (kernel, (1,) * len(axes)))

    def parts(self) -> tuple[Tensor, Tensor]:
        """Returns ``w1`` ``(a, b)`` and ``w2`` ``(c, d·kernel)`` as matrices."""
        p: dict[str, Any] = self._parameters
        w1, w2 = p.get("w1"), p.get("w2")
        first = w1 if w1 is not None else p["w1_a"] @ p["w1_b"]
        if w2 is not None:
            return first, w2.flatten(1)
        if p.get("w2_t") is None:
            return first, p["w2_a"] @ p["w2_b"]
        return first, p["w2_a"].t() @ through_core(p["w2_t"], p["w2_b"])

    def delta(self, weight: Tensor, bias: Tensor | None) -> Delta:
        w1, w2 = self.parts()
        product = torch.kron(w1 * self.scale, w2.contiguous()).narrow(0, self.begin, self.site.rows)
        return Delta(self.site.shaped(self.magnified(weight, product)))

    def change(self, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.site.kind not in ("linear", "conv1d-gpt2") or self.tensor("magnitude") is not None:
            return self.thinned(super().change(x, y, weight, bias))
        w1, w2 = self.parts()
        (a, b), (c, d) = w1.shape, w2.shape
        # on matrices: with more axes, torch's order of sums depends on whether gradients are wanted
        parts = F.linear(x.reshape(-1, d), w2.to(x.dtype)).view(-1, b, c).mT.reshape(-1, b)
        change = F.linear(parts, (w1 * self.scale).to(x.dtype)).view(-1, c, a).mT.reshape(*x.shape[:-1], a * c)
        return self.thinned(change.narrow(-1, self.begin, self.site.rows))


LoKr.adapter = LoKrAdapter
