"""The contract of a method: a config, and an adapter class with its *delta* and, where there is one, a shortcut.

The *delta* is the definition: the change ``(ΔW, Δb)`` that the adapter makes to the weight and the bias of one site
at strength 1. Because every site is linear in its weight and bias, everything else follows from it: with strengths
``s_i`` the layer computes ``y = base(x) + Σ s_i · change_i(x)`` where ``change(x)`` is the layer's map with
``(ΔW, Δb)``; baking stores ``W + Σ s_i ΔW_i``. A method may give a cheaper *change*, or a pair of *factors* that joins
the fused path of all low-rank methods; tests prove that they agree with the delta.
"""

from __future__ import annotations

import dataclasses
import hashlib
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from studio.adapters.contract.calibration import Gauge
from studio.adapters.contract.foreign import Either, Layers, Lycoris, Peft, Tables
from studio.adapters.contract.rows import Rows, cut_rows, joined_rows
from studio.adapters.sites.site import LAYERS, Site
from studio.config import check, own_number
from studio.errors import BadConfig, DoesNotFit, UnsupportedLayer
from studio.registry import Registry

if TYPE_CHECKING:
    from studio.adapters.contract.strength import Strength

__all__ = ["METHODS", "Adapter", "AdapterConfig", "Delta", "Factors", "Given", "generator_for"]

R = TypeVar("R")
Config = TypeVar("Config", bound="AdapterConfig")


class Delta(NamedTuple):
    """The change that an adapter makes to a layer at strength 1; None leaves that tensor as it is."""

    weight: Tensor | None
    bias: Tensor | None = None


class Factors(NamedTuple):
    """A low-rank change ``scale · up @ down``.

    Shapes: ``down`` ``(r, *inner_shape)``, ``up`` ``(rows, r)``, ``bias`` ``(rows,)``.
    """

    down: Tensor
    up: Tensor
    scale: float
    bias: Tensor | None = None


@dataclass(frozen=True)
class Given:
    """What the tensors of a new adapter can be made from.

    Attributes:
        weight: gives the base's weight in matrix form ``(rows, cols)`` in fp32; called only where it is needed.
        generator: the source of all randomness.
        inputs: what was measured of the layer's inputs, where the config asks for it; else None.
        original: gives the weight as it was before quantisation, where the caller has it; else None.
        bias: gives the base's bias in fp32, or None where the layer has none.
    """

    weight: Callable[[], Tensor]
    generator: torch.Generator
    inputs: Any = None
    original: Callable[[], Tensor] | None = None
    bias: Callable[[], Tensor | None] = lambda: None


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Fields that every method has.

    Attributes:
        targets: which layers are adapted: a preset of the model's family or, for others, of its structure ("attention",
            "attention+mlp", "query-value", "all-linear", "conv", "embeddings", "experts", …: all of them stand in
            :data:`studio.adapters.targets.presets.PRESETS`), or patterns: an exact path, a suffix (``"to_q"``), a glob
            (``"down_blocks.*.to_k"``), or a regular expression (``"re:.*attn[12]\\.to_[qk]"``). Parameters
            that a module keeps itself (``"text_projection"``) are named by their whole path, by an expression, or by
            a pattern that names no layer.
        exclude: patterns of layers that are left out.

    Raises:
        BadConfig: no targets, or a field with an impossible value.
    """

    method: ClassVar[str]
    adapter: ClassVar[type[Adapter]]
    rate: ClassVar[float] = 1.0
    """What a recipe's learning rates, which are LoRA's, are multiplied by for the method."""
    small: ClassVar[Mapping[str, Any]] = {}
    """Fields of a config for layers of eight inputs; the values of those that have no default stand here too."""
    patterns: ClassVar[tuple[str, ...]] = ()
    """Fields that name adapted layers by patterns, each of which has to name one."""

    targets: str | tuple[str, ...] = "attention"
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, (set, frozenset)):
                object.__setattr__(self, field.name, tuple(sorted(value, key=str)))
            elif isinstance(value, str) and str(field.type).startswith("tuple[str, ...]"):  # a list of one
                object.__setattr__(self, field.name, (value,))
        check(self)
        if not self.targets:
            raise BadConfig(
                f"{type(self).__name__}(targets={self.targets!r}) names no layer; give a preset or patterns"
            )
        self.check()

    @classmethod
    def example(cls: type[Config], **fields: Any) -> Config:
        """Returns a config for layers of eight inputs, which lists and tests of all methods take.

        Args:
            fields: fields that are other than in :attr:`small`.

        Raises:
            BadConfig: a field with an impossible value.
        """
        return cls(**{**cls.small, **fields})

    @classmethod
    def usual(cls: type[Config], **fields: Any) -> Config:
        """Returns the config with the method's own defaults; what has none is as in :meth:`example`.

        Args:
            fields: fields that are other than that.

        Raises:
            BadConfig: a field with an impossible value.
        """
        missing = (one.name for one in dataclasses.fields(cls) if one.default is one.default_factory)
        return cls(**{**{name: cls.small[name] for name in missing}, **fields})

    def check(self) -> None:
        """Checks the method's own fields.

        Raises:
            BadConfig: a field with an impossible value.
        """

    @property
    def members(self) -> tuple[AdapterConfig, ...]:
        """The configs of its methods: itself, but where an adapter is of several."""
        return (self,)

    @property
    def label(self) -> str:
        """What its method is called, or its methods: ``"lora"``, ``"lora+full"``."""
        return "+".join(member.method for member in self.members)

    def at(self, path: str) -> AdapterConfig:
        """Returns the config of the layer at ``path`` (inside its component): itself, where there is one method.

        Raises:
            BadConfig: it has no such layer.
        """
        return self

    @property
    def data_driven(self) -> bool:
        """Whether the start is made from data, so that attaching needs ``calibrate``."""
        return False

    @property
    def restores(self) -> bool:
        """Whether the start makes up for a quantisation, so that attaching needs ``original``."""
        return False

    @property
    def watching(self) -> str:
        """What of it looks at whole gradients or weights after every step, by its class; ``""``: nothing."""
        return next((type(member).__name__ for member in self.members if member.adapter.scratch), "")

    def gauge(self, site: Site) -> Gauge:
        """Returns a new measurement of what a data-driven start needs to know of the inputs of ``site``."""
        raise NotImplementedError

    def require(self, sound: bool, name: str, wanted: str) -> None:
        """Checks one field.

        Args:
            sound: whether its value is possible.
            name: the field.
            wanted: what it must be, in words.

        Raises:
            BadConfig: it is not ``sound``.
        """
        if not sound:
            raise BadConfig(f"{type(self).__name__}({name}={getattr(self, name)!r}): {name} must be {wanted}")


METHODS: Final[Registry[type[AdapterConfig]]] = Registry("method")


def generator_for(seed: int, *parts: object) -> torch.Generator:
    """Returns a CPU generator that depends on ``seed`` and ``parts`` alone, not on what was drawn before.

    Raises:
        BadConfig: a seed that is no whole number.

    Example:
        >>> a, b = (torch.rand(1, generator=generator_for(0, "unet.to_q")) for _ in range(2))
        >>> bool(a == b)
        True
    """
    seed = own_number(seed)
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise BadConfig(f"seed={seed!r}: a seed is a whole number")
    digest = hashlib.blake2b("\0".join(map(str, (seed, *parts))).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


class Adapter(nn.Module, ABC, Generic[Config]):
    """The tensors of one method on one site.

    Args:
        site: the layer that is changed.
        config: the method's config.
        tensors: initial tensors by name, from :meth:`start` or from a file.
        trainable: whether the tensors that the method trains require gradients.

    Shapes, the same in every method (see :class:`~studio.adapters.sites.site.Site`):
        x: what the layer is called with, ``(batch, ..., in)``; ``(batch, in, *space)`` for a convolution.
        y: what the base computes of it, ``(batch, ..., rows)``; ``(batch, rows, *space)`` from a convolution.
        total: ``y`` and what other adapters have added to it, ``(batch, ..., rows)``.
        weight: the base's weight, ``(rows, *inner_shape)``, or as the layer stores it otherwise.
        bias: the base's bias, ``(rows,)``.

    Raises:
        DoesNotFit: tensors that are missing, unknown, or of another shape than the layer needs.
        UnsupportedLayer: a layer that the method cannot cover.
    """

    trained: ClassVar[tuple[str, ...]]
    """Names of the tensors that the method trains."""
    frozen: ClassVar[tuple[str, ...]] = ()
    """Names of the tensors that gradients do not reach (saved as well)."""
    scratch: ClassVar[tuple[str, ...]] = ()
    """Names of the tensors that only training needs: in checkpoints, not in files. :meth:`fit` makes them."""
    driven: ClassVar[tuple[str, ...]] = ()
    """Names of the :attr:`frozen` tensors that :meth:`on_step` changes."""
    bakes: ClassVar[bool] = True
    """Whether the change is one of the weight and bias; a method that says False defines :meth:`change` alone."""
    kinds: ClassVar[tuple[str, ...]] = (*LAYERS, "parameter")
    """Kinds of sites that the method covers."""
    peft: ClassVar[Peft]
    """Its names in PEFT, and in the studio's own files."""
    lycoris: ClassVar[Lycoris] = Lycoris()
    """Its names in kohya's tools and LyCORIS; none where they do not have it."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Names of the tensors without which a layer in a file is not of this method."""
    or_needs: ClassVar[tuple[str, ...]] = ()
    """The same in its other form, where it has two."""
    ranks: ClassVar[tuple[str, ...]] = ()
    """Names of the tensors whose first axis is the rank; the first that is there counts."""
    whole_numbers: ClassVar[tuple[str, ...]] = ()
    """Names of the :attr:`frozen` tensors that hold whole numbers, such as places in the weight."""
    either: ClassVar[Either | None] = None
    """Set where two of its tensors have one name elsewhere."""
    fused: ClassVar[bool] = False
    """Whether :meth:`factors` is defined."""
    moves: ClassVar[bool] = False
    """Whether :meth:`moved` is defined."""
    tied: ClassVar[bool] = False
    """Whether it acts on a weight wherever it is used, so that it follows layers that are tied (:meth:`joined`)."""

    rowwise: ClassVar[tuple[str, ...]] = ()
    """Names of the tensors whose first axis runs over the outputs, where rows of them make rows of the change."""
    per_sample: ClassVar[bool] = True
    """Whether the samples of a batch can have strengths of their own."""

    def __init__(self, site: Site, config: Config, tensors: Mapping[str, Tensor], *, trainable: bool = True) -> None:
        super().__init__()
        self.check_kind(site)
        self.__dict__["site"] = site
        self.__dict__["config"] = config
        known = (*self.trained, *self.frozen)
        for name in tensors:
            if name not in known:
                raise DoesNotFit(
                    f"{type(self).__name__} at {site.path} has no tensor {name!r}; it has {', '.join(known)}"
                )
        for name, tensor in tensors.items():
            if name in self.trained:
                self._parameters[name] = nn.Parameter(tensor, requires_grad=trainable)
            else:
                self._buffers[name] = tensor
        self.fit()

    # -- what a method defines ---------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def start(cls, site: Site, config: Config, given: Given) -> dict[str, Tensor]:
        """Makes the tensors that a new adapter starts with.

        Args:
            site: the layer.
            config: the method's config.
            given: the base's weight, the source of randomness, and measurements.

        Raises:
            BadConfig: a config that this layer cannot have (a rank larger than the layer).
            UnsupportedLayer: a layer that this start cannot be made for.
        """

    @classmethod
    def check_kind(cls, site: Site) -> None:
        """Checks that the method covers the kind of a layer.

        Raises:
            UnsupportedLayer: it does not.
        """
        if site.kind not in cls.kinds:
            raise UnsupportedLayer(
                f"{cls.__name__.removesuffix('Adapter')} cannot act on {site.path or 'the model'}, which is of kind "
                f"{site.kind!r}; it covers {', '.join(cls.kinds)}"
            )

    def delta(self, weight: Tensor, bias: Tensor | None) -> Delta:
        """Computes the change at strength 1: the definition of the method.

        Args:
            weight: the base's weight, in the layer's own shape.
            bias: the base's bias, or None.

        Raises:
            DoesNotFit: the method changes no weight (``bakes = False``), so there is nothing to fold into one.
        """
        raise DoesNotFit(
            f"{type(self).__name__} at {self.site.path} computes with activations and changes no weight: it acts live "
            "only, and cannot be baked or combined"
        )

    @classmethod
    def plan(cls, sites: Mapping[str, Site], config: Config, given: Mapping[str, Given]) -> Config:
        """Returns the config with what can only be decided over all layers of a model together (ranks, say).

        Args:
            sites: path -> layer.
            config: the config as it was given.
            given: path -> what the layer's start is given.

        Raises:
            BadConfig: a config that these layers together cannot have.
        """
        return config

    @classmethod
    def common(cls, sites: Mapping[str, Site], config: Config) -> dict[str, Tensor]:
        """Makes the tensors that all layers of a model share; the first layer's adapter owns them.

        Args:
            sites: path -> layer, in the order of the model.
            config: the method's config.
        """
        return {}

    @classmethod
    def whole(cls, modules: Mapping[str, nn.Module], chosen: Sequence[str] | None) -> dict[str, list[str]] | None:
        """Returns component -> paths where the method acts by itself; None where the config's targets say it.

        Args:
            modules: component -> module, ``{"": model}`` for a model by itself. chosen: the components asked for.

        Raises:
            UnsupportedLayer: it can act nowhere in these.
        """
        return None

    @classmethod
    def check_strength(cls, name: str, strength: Strength) -> None:
        """Checks that a strength means something for the method.

        Raises:
            BadConfig: it does not.
        """

    @classmethod
    def joined(cls, root: nn.Module, paths: Sequence[str]) -> list[str]:
        """Returns the layers that take their tensors from those at ``paths`` (in :meth:`link`), such as tied ones."""
        return []

    @classmethod
    def link(cls, adapters: Mapping[str, Any]) -> None:
        """Connects the adapters of a model, path -> adapter, once all are made: a shared tensor finds its owner.

        Raises:
            DoesNotFit: a tensor that they share is missing.
        """

    @classmethod
    def penalty(cls, adapters: Mapping[str, Any]) -> Tensor | None:
        """Returns what training adds to the loss, or None."""
        return None

    @classmethod
    def on_step(cls, adapters: Mapping[str, Any], step: int, steps: int) -> None:
        """Is called after each optimizer step, while the gradients are still there.

        Args:
            adapters: path -> adapter, those that are trained together.
            step: optimizer steps done; 0 before the first one, where only what cannot work is refused.
            steps: how many there will be.

        Raises:
            BadConfig: a config that does not fit that number of steps.
        """

    @classmethod
    def shown(cls, layers: Layers) -> dict[str, Any]:
        """Returns the fields of the config that the tensors of all layers show.

        Args:
            layers: path -> name -> tensor, as a file without a config of ours has them.
        """
        return {}

    @classmethod
    def to_save(cls, config: Config, layers: Layers) -> tuple[Config, Tables]:
        """Brings an adapter to the form that files have, at the same change.

        Args:
            config: the method's config. layers: path -> name -> tensor.
        """
        return config, {path: dict(tensors) for path, tensors in layers.items()}

    @classmethod
    def cut(cls, tensors: Mapping[str, Tensor], rows: Rows, fixed: Mapping[str, Any]) -> dict[str, Tensor]:
        """Returns the tensors that make some of the outputs: of one layer that has those of several of ours.

        Args:
            tensors: of all outputs, by name. rows: which. fixed: fields of the config that the file's program fixes.

        Raises:
            DoesNotFit: they cannot be had apart from the others.
        """
        if not cls.rowwise:
            raise DoesNotFit(f"{cls.__name__.removesuffix('Adapter')} changes its outputs together")
        return cut_rows(tensors, cls.rowwise, rows)

    @classmethod
    def rejoined(cls, layers: Sequence[Mapping[str, Tensor]], rows: Sequence[Rows]) -> dict[str, Tensor]:
        """Returns the tensors of one layer that has the outputs of these: what :meth:`cut` has taken apart.

        Args:
            layers: name -> tensor of each layer. rows: the outputs of each.

        Raises:
            DoesNotFit: no adapter of this method makes all of them.
        """
        if not cls.rowwise:
            raise DoesNotFit(f"{cls.__name__.removesuffix('Adapter')} changes its outputs together")
        return joined_rows(layers, cls.rowwise)

    def grown(self, rank: int, generator: torch.Generator) -> tuple[Config, dict[str, Tensor]]:
        """Returns a config and tensors of a higher rank with the same change; new ranks stand behind the old ones.

        Raises:
            UnsupportedLayer: the method has no rank that could grow. BadConfig: a rank that the layer cannot have.
        """
        raise UnsupportedLayer(
            f"{type(self.config).__name__} cannot grow: it has no rank, or a higher one would make another change"
        )

    def by_group(self, group: int) -> Tensor | None:
        """Returns ``ΔW`` as one number per row and ``group`` columns ``(rows, cols / group)``; None if it varies there.

        A base that is quantised in such groups can hold it in its zero points.
        """
        return None

    def still(self, weight: Tensor, bias: Tensor | None) -> bool:
        """Says whether the adapter changes nothing at all, whatever its input."""
        delta = self.delta(weight, bias)
        return not any(tensor is not None and bool(tensor.count_nonzero()) for tensor in delta)

    def fit(self) -> None:
        """Checks the registered tensors against the site and prepares what :meth:`delta` needs.

        Raises:
            DoesNotFit: a tensor is missing or has another shape than the layer needs.
            UnsupportedLayer: a layer that the method cannot cover.
        """

    def change(self, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Computes ``f(x) − y``: ``f`` is the layer under this adapter at strength 1, ``y`` the base's output."""
        return self.applied(self.delta(weight, bias), x, y)

    def applied(self, delta: Delta, x: Tensor, y: Tensor) -> Tensor:
        """Computes the change of the output ``y`` that a change of weight and bias makes.

        Args:
            delta: the change. x: the layer's input ``(batch, ..., in)``. y: the base's output ``(batch, ..., rows)``.
        """
        change = None if delta.bias is None else delta.bias.to(y.dtype)
        if delta.weight is not None:
            return self.site.apply(x, delta.weight.to(x.dtype if x.is_floating_point() else y.dtype), change)
        assert change is not None, "a delta changes the weight or the bias"
        return self.site.spread(change, y)

    def act(self, total: Tensor, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None, strength: float) -> Tensor:
        """Computes ``total + strength · change``; a method may save a pass where ``total`` is still ``y``."""
        return torch.add(total, self.change(x, y, weight, bias), alpha=strength)

    def factors(self) -> Factors:
        """Returns the low-rank pair of a method whose class says ``fused = True``."""
        raise NotImplementedError

    def moved(self, total: Tensor, x: Tensor, strength: float | Tensor) -> Tensor:
        """Computes ``total + strength · d`` with ``f(x) = base(x + d)``, for a method that changes a layer's input.

        A layer that carries such methods only (``moves``) is computed once, with ``x + Σ s_i · d_i``.

        Args:
            total: ``x``, and what other adapters have added to it, ``(batch, ..., in)``. x: the layer's input.
            strength: a number, or a tensor that broadcasts over ``x``.
        """
        raise NotImplementedError

    @property
    def dropout(self) -> float:
        """Probability in [0, 1) with which the method drops inputs while it trains."""
        return 0.0

    def dropped(self, x: Tensor) -> Tensor:
        """Returns ``x`` with inputs dropped while this adapter is trained; a frozen adapter drops nothing."""
        if self.dropout and self.training and self.trainable and x.is_floating_point():
            return torch.dropout(x, self.dropout, True)
        return x

    # -- what all methods share --------------------------------------------------------------------------------------

    site: Site
    config: Config

    def forward(self, use: Callable[..., R], *args: Any) -> R:
        """Calls ``use(self, *args)``.

        All reading of an adapter's tensors goes through a call of the module, so that hooks of others (offloading,
        sharding) put them on their device first.
        """
        return use(self, *args)

    def tensors(self) -> dict[str, Tensor]:
        """Returns the live tensors by name, trained ones first."""
        found = {name: self._parameters.get(name, self._buffers.get(name)) for name in (*self.trained, *self.frozen)}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def tensor(self, name: str) -> Tensor | None:
        """Returns one live tensor, or None where this adapter does not have it."""
        found = self._parameters.get(name)
        return self._buffers.get(name) if found is None else found

    @property
    def trainable(self) -> bool:
        """Whether any tensor requires gradients."""
        return any(parameter is not None and parameter.requires_grad for parameter in self._parameters.values())

    def require(self, name: str, shape: tuple[int | None, ...]) -> Tensor:
        """Returns the tensor ``name`` after a check of its shape; None in ``shape`` is any size.

        Raises:
            DoesNotFit: it is missing or has another shape.
        """
        tensor = self.tensor(name)
        if tensor is None:
            raise DoesNotFit(f"{type(self).__name__} at {self.site.path} lacks the tensor {name!r}")
        if tensor.dim() != len(shape) or any(
            asked is not None and asked != size for asked, size in zip(shape, tensor.shape, strict=True)
        ):
            asked = " x ".join("any" if size is None else str(size) for size in shape)
            raise DoesNotFit(
                f"{type(self).__name__} at {self.site.path}: {name!r} has the shape {tuple(tensor.shape)}, "
                f"the layer ({self.site.rows} x {self.site.cols}) needs {asked}"
            )
        return tensor

    def keep(self, name: str, tensor: Tensor) -> None:
        """Registers ``tensor`` (of any shape) as one of :attr:`scratch`."""
        self.register_buffer(name, tensor, persistent=False)

    def remembered(self, make: Callable[[], Tensor], *sources: Tensor) -> Tensor:
        """Returns ``make()``; a frozen adapter computes it once while ``sources`` are the same tensors, not written to.

        Args:
            make: computes a tensor from ``sources`` and nothing else; a method remembers one.
        """
        if self.trainable or self.training or torch.compiler.is_compiling():
            return make()
        versions = tuple(0 if tensor.is_inference() else tensor._version for tensor in sources)
        held, then, value = self.__dict__.get("known", ((), (), None))
        if value is not None and then == versions and all(map(operator.is_, held, sources)):
            return cast(Tensor, value)
        value = make().detach()
        if not value.is_inference():
            self.__dict__["known"] = (sources, versions, value)
        return value

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "known"}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Adapter:
        self.__dict__.pop("known", None)
        return cast(Adapter, super()._apply(fn, recurse))

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={tuple(tensor.shape)}" for name, tensor in self.tensors().items())
