"""Sites: the layers of a base that an adapter can change, each described as a linear map.

Every supported layer computes ``y = A(x) W + b`` for some fixed arrangement ``A`` of its input (nothing for a Linear,
patches for a convolution, one-hot rows for an Embedding). A site says what that map is, so that a method never has to
know on which class of layer it acts. In *matrix form* the weight is ``M`` of shape ``(rows, cols)``: ``rows`` outputs,
``cols`` inputs (``in`` · ``in/groups · kh · kw`` · ``vocabulary``).
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from studio.errors import UnsupportedLayer

__all__ = ["AttentionSite", "ConvSite", "EmbeddingSite", "GPT2Site", "LinearSite", "Site", "is_site", "site_for"]


class Site(ABC):
    """One layer of the base, as data.

    Args:
        path: dotted module path of the layer inside the model it was found in; ``""`` is the model itself.
        module: the layer.

    Attributes:
        rows: outputs of the linear map. cols: inputs of the linear map.
        inner_shape: shape of one row of ``down`` as files store it (``(in,)``, ``(in/groups, kh, kw)``, ``(vocab,)``).
    """

    kind: ClassVar[str]
    weight_name: ClassVar[str] = "weight"
    bias_name: ClassVar[str | None] = "bias"
    __slots__ = ("cols", "inner_shape", "module", "path", "rows")

    def __init__(self, path: str, module: nn.Module, rows: int, inner_shape: tuple[int, ...]) -> None:
        self.path, self.module, self.rows, self.inner_shape = path, module, rows, inner_shape
        self.cols = 1
        for size in inner_shape:
            self.cols *= size

    def __repr__(self) -> str:
        return f"<{self.kind} site {self.path or '(root)'}: {self.rows}x{self.cols}>"

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the layer's weight tensor."""
        return (self.rows, *self.inner_shape)

    @property
    def weight(self) -> Tensor:
        """The layer's weight as it stands now."""
        return cast(Tensor, self.module._parameters[self.weight_name])

    @property
    def bias(self) -> Tensor | None:
        """The layer's bias as it stands now."""
        return None if self.bias_name is None else self.module._parameters.get(self.bias_name)

    def matrix(self, weight: Tensor) -> Tensor:
        """Views a weight ``(rows, *inner_shape)`` as the matrix ``(rows, cols)``."""
        return weight.reshape(self.rows, self.cols)

    def shaped(self, matrix: Tensor) -> Tensor:
        """Views a matrix ``(rows, cols)`` in the shape of the weight."""
        return matrix.reshape(self.weight_shape)

    @abstractmethod
    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Computes the layer's map of ``x`` with another weight and bias."""

    @abstractmethod
    def lower(self, x: Tensor, down: Tensor) -> Tensor:
        """Computes ``down · x``: the layer's map with ``down`` ``(r, *inner_shape)`` in place of its weight."""

    @abstractmethod
    def add_raised(self, y: Tensor, h: Tensor, up: Tensor) -> Tensor:
        """Returns ``y + up · h`` with ``up`` ``(rows, r)`` and ``h`` from :meth:`lower`."""

    def low_rank(self, x: Tensor, down: Tensor, up: Tensor) -> Tensor:
        """Computes ``apply(x, shaped(up @ down), None)`` without forming the product."""
        h = self.lower(x, down)
        zero = h.new_zeros(()).expand(self._raised_shape(h))
        return self.add_raised(zero, h, up)

    def _raised_shape(self, h: Tensor) -> tuple[int, ...]:
        return (*h.shape[:-1], self.rows)

    def over_outputs(self, vector: Tensor) -> Tensor:
        """Shapes ``(..., rows)`` so that it broadcasts over the outputs of ``y``; a leading axis stays the batch."""
        return vector

    def over_rank(self, coefficients: Tensor, h: Tensor) -> Tensor:
        """Shapes ``(r,)`` or ``(batch, r)`` so that it multiplies ``h``."""
        if coefficients.dim() == 1:
            return coefficients
        return coefficients.reshape(coefficients.shape[0], *(1,) * (h.dim() - 2), coefficients.shape[1])

    def over_batch(self, coefficients: Tensor, y: Tensor) -> Tensor:
        """Shapes ``(batch,)`` so that it multiplies ``y``."""
        return coefficients.reshape(-1, *(1,) * (y.dim() - 1))


class LinearSite(Site):
    """``y = x Wᵀ + b`` with ``W`` ``(out, in)``."""

    kind = "linear"
    __slots__ = ()

    def __init__(self, path: str, module: nn.Linear) -> None:
        super().__init__(path, module, module.out_features, (module.in_features,))

    def matrix(self, weight: Tensor) -> Tensor:
        return weight

    def shaped(self, matrix: Tensor) -> Tensor:
        return matrix

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def lower(self, x: Tensor, down: Tensor) -> Tensor:
        return F.linear(x, down)

    def add_raised(self, y: Tensor, h: Tensor, up: Tensor) -> Tensor:
        if y.dim() == 2:
            return torch.addmm(y, h, up.t())
        flat = torch.addmm(y.reshape(-1, self.rows), h.reshape(-1, h.shape[-1]), up.t())
        return flat.view(y.shape)


class TransposedSite(Site):
    """A site whose weight is stored as ``(cols, rows)``: its matrix is the transpose."""

    __slots__ = ()

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return (self.cols, self.rows)

    def matrix(self, weight: Tensor) -> Tensor:
        return weight.t()

    def shaped(self, matrix: Tensor) -> Tensor:
        return matrix.t()

    add_raised = LinearSite.add_raised


class GPT2Site(TransposedSite):
    """GPT-2's ``Conv1D``: ``y = x W + b`` with ``W`` ``(in, out)``."""

    kind = "conv1d-gpt2"
    __slots__ = ()

    def __init__(self, path: str, module: nn.Module) -> None:
        inner, rows = cast(Tensor, module.weight).shape
        super().__init__(path, module, rows, (inner,))

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight.t(), bias)

    lower = LinearSite.lower


class EmbeddingSite(TransposedSite):
    """``y = E[ids]`` with ``E`` ``(vocabulary, dim)``; its input is one-hot."""

    kind = "embedding"
    bias_name = None
    __slots__ = ("padding",)

    def __init__(self, path: str, module: nn.Embedding) -> None:
        if module.max_norm is not None:
            raise UnsupportedLayer(
                f"{path or 'the model'} is an Embedding with max_norm={module.max_norm}, which rewrites its weight "
                "while it runs; an adapter on it would have no fixed base (set max_norm=None, or exclude it)"
            )
        super().__init__(path, module, module.embedding_dim, (module.num_embeddings,))
        self.padding = module.padding_idx  # this row gets no gradient, in the base as in an adapter

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y = F.embedding(x, weight, self.padding)
        return y if bias is None else y + bias

    def lower(self, x: Tensor, down: Tensor) -> Tensor:
        return F.embedding(x, down.t(), self.padding)


_CONVOLUTION: dict[int, Callable[..., Tensor]] = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


class ConvSite(Site):
    """A convolution of any stride, padding, padding mode, dilation and number of groups."""

    kind = "conv"
    __slots__ = ("groups",)

    def __init__(self, path: str, module: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> None:
        super().__init__(path, module, module.out_channels, tuple(module.weight.shape[1:]))
        self.groups = module.groups

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return cast(Tensor, self.module._conv_forward(x, weight, bias))  # type: ignore[operator]

    def lower(self, x: Tensor, down: Tensor) -> Tensor:
        if self.groups > 1:  # every group has its own input channels, all share the same r filters
            down = down.repeat(self.groups, *(1,) * (down.dim() - 1))
        return self.apply(x, down, None)

    def add_raised(self, y: Tensor, h: Tensor, up: Tensor) -> Tensor:
        kernel = up.reshape(*up.shape, *(1,) * len(self.inner_shape[1:]))
        return y + _CONVOLUTION[kernel.dim()](h, kernel, None, groups=self.groups)

    def _raised_shape(self, h: Tensor) -> tuple[int, ...]:
        space = len(self.inner_shape) - 1
        return (*h.shape[: h.dim() - space - 1], self.rows, *h.shape[h.dim() - space :])

    def over_outputs(self, vector: Tensor) -> Tensor:
        return vector.reshape(*vector.shape, *(1,) * (len(self.inner_shape) - 1))

    def over_rank(self, coefficients: Tensor, h: Tensor) -> Tensor:
        if self.groups > 1:  # h holds the ranks of the first group, then those of the second, ...
            coefficients = coefficients.repeat(*(1,) * (coefficients.dim() - 1), self.groups)
        return self.over_outputs(coefficients)


class AttentionSite(Site):
    """The joint input projection of ``nn.MultiheadAttention``: ``in_proj_weight`` ``(3·dim, dim)``.

    The layer reads its weights itself, so nothing can be added to an output of the projection: the attention is
    computed with the adapted weight (see :mod:`studio.adapters.attention`).
    """

    kind = "attention"
    weight_name = "in_proj_weight"
    bias_name = "in_proj_bias"
    __slots__ = ()

    def __init__(self, path: str, module: nn.MultiheadAttention, *, outputs_only: bool = False) -> None:
        if module.in_proj_weight is None and not outputs_only:
            raise UnsupportedLayer(
                f"{path or 'the model'} is a MultiheadAttention with its own kdim or vdim, which has no joint input "
                f"projection; name its output projection '{path}.out_proj' instead, or exclude it"
            )
        super().__init__(path, module, 3 * module.embed_dim, (module.embed_dim,))

    matrix = LinearSite.matrix
    shaped = LinearSite.shaped
    apply = LinearSite.apply
    lower = LinearSite.lower
    add_raised = LinearSite.add_raised


def _gpt2_layer() -> type[nn.Module] | None:
    """GPT-2's Conv1D where transformers has been imported; a model that holds one has done so."""
    module = sys.modules.get("transformers.pytorch_utils")
    return None if module is None else cast("type[nn.Module]", module.Conv1D)


def _kinds() -> list[tuple[type[nn.Module], Callable[[str, nn.Module], Site]]]:
    kinds: list[tuple[type[nn.Module], Callable[..., Site]]] = [
        (nn.Linear, LinearSite),
        (nn.Conv2d, ConvSite),
        (nn.Embedding, EmbeddingSite),
        (nn.Conv1d, ConvSite),
        (nn.Conv3d, ConvSite),
        (nn.MultiheadAttention, AttentionSite),
    ]
    gpt2 = _gpt2_layer()
    if gpt2 is not None:
        kinds.append((gpt2, GPT2Site))
    return kinds


def is_site(module: nn.Module) -> bool:
    """Says whether ``module`` is a layer of a class that can be adapted.

    Example:
        >>> is_site(nn.Linear(2, 2)), is_site(nn.LayerNorm(2))
        (True, False)
    """
    return any(isinstance(module, kind) for kind, _ in _kinds())


def site_for(path: str, module: nn.Module) -> Site:
    """Describes ``module`` as a site.

    Args:
        path: where the module stands in its model, for messages.
        module: the layer.

    Raises:
        UnsupportedLayer: a class that the studio cannot adapt, or a subclass with a forward of its own, whose
            function is not known.

    Example:
        >>> site_for("net.0", nn.Conv2d(4, 8, 3, groups=2))
        <conv site net.0: 8x18>
    """
    for kind, make in _kinds():
        if isinstance(module, kind):
            if type(module).forward is not kind.forward:
                raise UnsupportedLayer(
                    f"{path or 'the model'} is a {type(module).__name__}, a {kind.__name__} with a forward of its own; "
                    "what an adapter would have to change in it is not known (exclude it, or use its parts)"
                )
            return make(path, module)
    known = ", ".join(kind.__name__ for kind, _ in _kinds())
    raise UnsupportedLayer(f"{path or 'the model'} is a {type(module).__name__}; adapters can act on: {known}")
