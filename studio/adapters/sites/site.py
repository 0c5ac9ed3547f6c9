"""Sites: the places in a base that an adapter can change, and the ordinary layers, each described as a linear map.

Every ordinary layer computes ``y = A(x) W + b`` for some fixed arrangement ``A`` of its input (nothing for a Linear,
patches for a convolution, one-hot rows for an Embedding). A site says what that map is, so that a method never has to
know on which class of layer it acts. In *matrix form* the weight is ``M`` of shape ``(rows, cols)``: ``rows`` outputs,
``cols`` inputs (``in`` · ``in/groups · kh · kw`` · ``vocabulary``).

The other files of this room hold the other kinds of sites; :mod:`studio.adapters.sites.kinds` says which module is of
which kind.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable
from typing import Any, ClassVar, Final, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from studio.errors import UnsupportedLayer

__all__ = [
    "LAYERS",
    "AttentionSite",
    "ConvSite",
    "EmbeddingSite",
    "GPT2Site",
    "LinearSite",
    "Site",
    "is_attention_output",
    "is_free_linear",
]

LAYERS: Final = ("linear", "conv", "conv1d-gpt2", "embedding", "attention")
"""Kinds of the ordinary layers."""


class Site(ABC):
    """One layer of the base, as data.

    Args:
        path: dotted module path of the layer inside the model it was found in; ``""`` is the model itself.
        module: the layer.

    Attributes:
        kind: what methods call it. hosting: how its forward lets adapters act (see ``hosting/host.py``).
        weight_name, bias_name: names of its parameters; no ``bias_name`` where it cannot have a bias.
        lead: shape of what stands before the matrix form, ``(E,)`` for E experts in one tensor; else empty.
        rows: outputs of the linear map. cols: inputs of the linear map.
        inner_shape: shape of one row of ``down`` as files store it (``(in,)``, ``(in/groups, kh, kw)``, ``(vocab,)``).

    Shapes:
        x: what the layer is called with, ``(batch, ..., in)``; ``(batch, in, *space)`` for a convolution, ids
            ``(batch, ...)`` for an embedding.
        y: what it returns, ``(batch, ..., rows)``; ``(batch, rows, *space)`` from a convolution.
        h: what :meth:`lower` returns, ``(batch, ..., r)``; ``(batch, groups · r, *space)`` from a convolution.
        weight: ``(rows, *inner_shape)``, or as :attr:`weight_shape` says where the layer stores it otherwise.
        bias: ``(rows,)``, or as :attr:`bias_shape` says.
        down: ``(r, *inner_shape)``.
        up: ``(rows, r)``.
    """

    kind: ClassVar[str]
    hosting: ClassVar[str] = "layer"
    weight_name: str = "weight"
    bias_name: str | None = "bias"
    lead: tuple[int, ...] = ()
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
    def bias_shape(self) -> tuple[int, ...]:
        """Shape of the layer's bias tensor."""
        return (self.rows,)

    @property
    def axis(self) -> int:
        """The axis of the layer's output, counted from the end, that the outputs of the map are on."""
        return -1

    @property
    def weight(self) -> Tensor:
        """The layer's weight as it stands now."""
        return cast(Tensor, self.module._parameters[self.weight_name])

    @property
    def device(self) -> torch.device:
        """Where the layer's weight is."""
        return self.weight.device

    @property
    def bias(self) -> Tensor | None:
        """The layer's bias as it stands now."""
        return None if self.bias_name is None else self.module._parameters.get(self.bias_name)

    @property
    def places(self) -> tuple[str, ...]:
        """Paths by which a strength can name it, or parts of it."""
        return (self.path,)

    @property
    def holder(self) -> nn.Module:
        """The module that :attr:`weight` is a parameter of."""
        return self.module

    def operands(self, y: Tensor) -> tuple[Tensor, Tensor | None]:
        """What methods are given as weight and bias while the layer computes ``y``."""
        return self.weight, self.bias

    def matrix(self, weight: Tensor) -> Tensor:
        """Views a weight ``(rows, *inner_shape)`` as the matrix ``(rows, cols)``."""
        return weight.reshape(self.rows, self.cols)

    def shaped(self, matrix: Tensor) -> Tensor:
        """Views ``matrix`` ``(rows, cols)`` in the shape of the weight."""
        return matrix.reshape(self.weight_shape)

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Computes the layer's map of ``x`` with another weight and bias; the map is linear in both.

        Raises:
            UnsupportedLayer: a kind of site without such a map.
        """
        raise UnsupportedLayer(f"{self!r} computes no linear map of a weight")

    def lower(self, x: Tensor, down: Tensor) -> Tensor:
        """Computes ``down · x``: the layer's map with ``down`` ``(r, *inner_shape)`` in place of its weight.

        Raises:
            UnsupportedLayer: a kind of site without a weight that a low-rank pair could change.
        """
        raise UnsupportedLayer(f"{self!r} has no weight matrix that a low-rank pair could change")

    def add_raised(self, y: Tensor, h: Tensor, up: Tensor, *, own: bool = False, scale: float = 1.0) -> Tensor:
        """Returns ``y + scale · up · h`` with ``up`` ``(rows, r)`` and ``h`` from :meth:`lower`.

        ``own`` says that the caller made ``y`` and no one else holds it: the sum is then written into it where it can.

        Raises:
            UnsupportedLayer: a kind of site without a weight that a low-rank pair could change.
        """
        raise UnsupportedLayer(f"{self!r} has no weight matrix that a low-rank pair could change")

    def inputs(self, x: Tensor) -> Tensor:
        """Arranges the input ``x`` of a call as the rows of a matrix ``X`` ``(N, cols)``; the layer computes ``X Mᵀ``.

        Raises:
            UnsupportedLayer: the inputs are no numbers, or it is no ordinary layer.
        """
        raise UnsupportedLayer(
            f"the inputs of {self.path} cannot be measured as those of a Linear or a convolution can: no start from "
            "data can be had there; exclude it, or attach another adapter to it"
        )

    def low_rank(self, x: Tensor, down: Tensor, up: Tensor) -> Tensor:
        """Computes ``apply(x, shaped(up @ down), None)`` without forming the product."""
        return self.raised(self.lower(x, down), up)

    def raised(self, h: Tensor, up: Tensor) -> Tensor:
        """Computes ``up · h`` with ``up`` ``(rows, r)`` and ``h`` from :meth:`lower`."""
        zero = h.new_zeros(()).expand(self._raised_shape(h))
        return self.add_raised(zero, h, up)

    def _raised_shape(self, h: Tensor) -> tuple[int, ...]:
        return (*h.shape[:-1], self.rows)

    def over_outputs(self, vector: Tensor) -> Tensor:
        """Shapes ``vector`` ``(..., rows)`` to broadcast over the outputs of ``y``; a leading axis stays the batch."""
        return vector

    def spread(self, bias: Tensor, y: Tensor) -> Tensor:
        """Spreads a tensor of the shape of the bias over the whole output ``y``."""
        return self.over_outputs(bias).expand_as(y)

    def over_rank(self, coefficients: Tensor, h: Tensor) -> Tensor:
        """Shapes ``coefficients`` ``(r,)`` or ``(batch, r)`` so that they multiply ``h``."""
        if coefficients.dim() == 1:
            return coefficients
        return coefficients.reshape(coefficients.shape[0], *(1,) * (h.dim() - 2), coefficients.shape[1])

    def over_batch(self, coefficients: Tensor, y: Tensor) -> Tensor:
        """Shapes ``coefficients`` ``(batch,)`` so that they multiply ``y``."""
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

    def inputs(self, x: Tensor) -> Tensor:
        return x.reshape(-1, self.cols)

    def lower(self, x: Tensor, down: Tensor) -> Tensor:
        return F.linear(x, down)

    def add_raised(self, y: Tensor, h: Tensor, up: Tensor, *, own: bool = False, scale: float = 1.0) -> Tensor:
        if own and y.is_contiguous() and y.dtype == h.dtype == up.dtype:  # autocast casts for addmm alone
            y.view(-1, self.rows).addmm_(h.reshape(-1, h.shape[-1]), up.t(), alpha=scale)
            return y
        if y.dim() == 2:
            return torch.addmm(y, h, up.t(), alpha=scale)
        flat = torch.addmm(y.reshape(-1, self.rows), h.reshape(-1, h.shape[-1]), up.t(), alpha=scale)
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

    inputs = LinearSite.inputs
    lower = LinearSite.lower


class EmbeddingSite(TransposedSite):
    """``y = E[ids]`` with ``E`` ``(vocabulary, dim)``; its input is one-hot.

    Raises:
        UnsupportedLayer: an Embedding with ``max_norm``, which has no fixed weight.
    """

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

    def inputs(self, x: Tensor) -> Tensor:
        raise UnsupportedLayer(
            f"the inputs of {self.path} are token ids, of which there is nothing to measure: no start from data can be "
            "had there; exclude it, or attach another adapter to it"
        )

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

    @property
    def axis(self) -> int:
        return -len(self.inner_shape)

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return cast(Tensor, self.module._conv_forward(x, weight, bias))  # type: ignore[operator]

    def inputs(self, x: Tensor) -> Tensor:
        """One row per place and group of channels: the patch that the filters see there."""
        module = cast(Any, self.module)
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x = F.pad(x, module._reversed_padding_repeated_twice, mode=mode)
        kernel = self.inner_shape[1:]
        first = x.dim() - len(kernel)
        for axis, size in enumerate(kernel):
            dilation, stride = module.dilation[axis], module.stride[axis]
            x = x.unfold(first + axis, dilation * (size - 1) + 1, stride)[..., ::dilation]
        x = x.movedim(first - 1, first - 1 + len(kernel))  # (batch, places, channels, kernel)
        return x.reshape(-1, self.cols)

    def lower(self, x: Tensor, down: Tensor) -> Tensor:
        if self.groups > 1:  # every group has its own input channels, all share the same r filters
            down = down.repeat(self.groups, *(1,) * (down.dim() - 1))
        return self.apply(x, down, None)

    def add_raised(self, y: Tensor, h: Tensor, up: Tensor, *, own: bool = False, scale: float = 1.0) -> Tensor:
        kernel = up.reshape(*up.shape, *(1,) * len(self.inner_shape[1:]))
        raised = _CONVOLUTION[kernel.dim()](h, kernel, None, groups=self.groups)
        return y.add_(raised, alpha=scale) if own and y.dtype == raised.dtype else torch.add(y, raised, alpha=scale)

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
    computed with the adapted weight (see :mod:`studio.adapters.hosting.attention`).

    Raises:
        UnsupportedLayer: an attention with a ``kdim`` or ``vdim`` of its own, which has no joint projection.
    """

    kind = "attention"
    hosting = "attention"
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
    inputs = LinearSite.inputs
    lower = LinearSite.lower
    add_raised = LinearSite.add_raised


def is_free_linear(module: nn.Module) -> bool:
    """Says whether ``module`` is a Linear, and not one that an attention reads without calling it."""
    return isinstance(module, nn.Linear) and not is_attention_output(module)


def is_attention_output(module: nn.Module) -> bool:
    """Says whether ``module`` is the output projection of an ``nn.MultiheadAttention``, which reads its weight."""
    return isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)
