"""What a start can know of the data: measurements of the inputs of layers, taken while the model runs.

The inputs of a layer are the rows of the matrix ``X`` in ``X Wᵀ`` (see :meth:`studio.adapters.sites.site.Site.inputs`):
tokens for a Linear, patches for a convolution. Every row counts, so padding should not be fed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor, nn

from studio.adapters.sites.site import Site
from studio.errors import BadConfig, DoesNotFit
from studio.families import components

__all__ = ["Calibrate", "Components", "Covariance", "Gauge", "measured"]

Calibrate: TypeAlias = "Callable[[Any], Any] | Iterable[Any]"
"""A function that runs the model over data, or batches: tensors, tuples of arguments, dicts of named ones."""

_BLOCK: Final = 1024
"""Rows that one update of :class:`Components` takes."""


class Gauge(ABC):
    """A measurement of the inputs of one layer."""

    rows: int = 0
    """Inputs seen so far."""

    def take(self, x: Tensor) -> None:
        """Takes in the inputs ``x`` ``(N, cols)`` of one call."""
        x = x.detach().to(torch.promote_types(x.dtype, torch.float32))
        self.add(x)
        self.rows += x.shape[0]

    @abstractmethod
    def add(self, x: Tensor) -> None:
        """Takes in inputs ``x`` ``(N, cols)`` in fp32 or wider; :attr:`rows` is still the number of those before."""


class Covariance(Gauge):
    """The uncentred covariance ``Xᵀ X / N`` of a layer's inputs."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None

    def add(self, x: Tensor) -> None:
        own = x.t() @ x
        self._sum = own if self._sum is None else self._sum + own

    def matrix(self) -> Tensor:
        """Returns the covariance ``(cols, cols)``."""
        assert self._sum is not None, "measured() has seen to it that data came"
        return self._sum / self.rows


class Components(Gauge):
    """The principal directions of a layer's inputs around their mean, by incremental PCA.

    Args:
        kept: directions kept from one block of inputs to the next. With ``kept >= cols`` the result is exact.

    References:
        Incremental Learning for Robust Visual Tracking (Ross et al., 2008), section 3
    """

    def __init__(self, kept: int) -> None:
        self.kept = kept
        self._seen = 0
        self._total = 0.0
        self._mean = self._values = torch.empty(0)
        self._directions = torch.empty(0, 0)

    def add(self, x: Tensor) -> None:
        for block in x.split(_BLOCK):
            self._update(block)

    def _update(self, x: Tensor) -> None:
        count, mean = x.shape[0], x.mean(0)
        x = x - mean
        if self._seen:
            both = self._seen + count
            moved = (self._mean - mean) * (self._seen * count / both) ** 0.5
            self._total += float(x.square().sum()) + float(moved.square().sum())
            x = torch.cat([self._values[:, None] * self._directions, x, moved[None]])
            mean = (self._mean * self._seen + mean * count) / both
        else:
            self._total = float(x.square().sum())
        _, values, directions = torch.linalg.svd(x, full_matrices=False)
        self._mean, self._values, self._directions = mean, values[: self.kept], directions[: self.kept]
        self._seen += count

    def ratios(self) -> Tensor:
        """Returns the share of the inputs' variance that each direction explains, largest first.

        Directions without variance are left out.
        """
        if self._total == 0.0:
            return self._values[:0]
        return self._values[self._values > 1e-6 * self._values[0]].square() / self._total

    def directions(self, count: int, path: str) -> Tensor:
        """Returns the first ``count`` directions ``(count, cols)``; the largest entry of each is positive.

        Args:
            count: how many. path: the layer, for the message.

        Raises:
            DoesNotFit: the inputs vary in fewer directions.
        """
        found = len(self.ratios())
        if found < count:
            raise DoesNotFit(
                f"the {self.rows} inputs of {path} while calibrating vary in {found} directions, and rank {count} "
                "needs as many: calibrate with more data, or use a lower rank"
            )
        chosen = self._directions[:count]
        largest = chosen.gather(1, chosen.abs().argmax(1, keepdim=True))
        return chosen * largest.sign()


@torch.no_grad()
def measured(
    model: Any, sites: Mapping[str, Site], gauges: Mapping[str, Gauge], calibrate: Calibrate
) -> dict[str, Gauge]:
    """Runs the model in evaluation mode over data and measures the inputs of layers; the model is as before after it.

    Args:
        model: the model or pipeline.
        sites: path -> layer. gauges: path -> its measurement.
        calibrate: runs the model, or batches to call it with.

    Raises:
        DoesNotFit: a layer that no data reached. UnsupportedLayer: a layer whose inputs are no numbers.
        BadConfig: batches for a pipeline, which has no forward of its own.
    """
    with ExitStack() as hooks:
        hooks.enter_context(_evaluating(model))
        for path, gauge in gauges.items():
            site = sites[path]
            hooks.enter_context(site.module.register_forward_pre_hook(_hook(site, gauge), with_kwargs=True))
        _run(model, calibrate)
    missed = [path for path, gauge in gauges.items() if gauge.rows == 0]
    if missed:
        more = f" and {len(missed) - 1} more" if len(missed) > 1 else ""
        raise DoesNotFit(
            f"no data reached {missed[0]}{more} while calibrating, so there is nothing to make its start from; "
            "calibrate with data that the whole model computes on, or exclude these layers"
        )
    return dict(gauges)


def _hook(site: Site, gauge: Gauge) -> Callable[[nn.Module, Any, Any], None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        # an attention projects query, key and value, often one and the same tensor; every other layer has one input
        count = 3 if isinstance(module, nn.MultiheadAttention) else 1
        for x in {id(tensor): tensor for tensor in given[:count]}.values():
            inputs = site.inputs(x)
            if inputs.shape[0]:
                gauge.take(inputs)

    return hook


def _run(model: Any, calibrate: Calibrate) -> None:
    if callable(calibrate):
        calibrate(model)
        return
    if not isinstance(model, nn.Module):
        raise BadConfig(
            f"calibrate is {type(calibrate).__name__}, and a {type(model).__name__} cannot be called with a batch: "
            "give a function of the model that runs it, calibrate=lambda pipe: ..."
        )
    for batch in calibrate:
        if isinstance(batch, Mapping):
            model(**batch)
        elif isinstance(batch, (tuple, list)):
            model(*batch)
        else:
            model(batch)


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode; every module gets its own mode back."""
    modules = {id(part): part for top in components(model).values() for part in top.modules()}
    before = [(module, module.training) for module in modules.values()]
    for top in components(model).values():
        top.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
