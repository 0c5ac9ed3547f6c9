"""FourierFT: a change of the weight with few frequencies."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, cast

import torch
from torch import Tensor

from studio.adapters.contract.adapter import METHODS, Adapter, AdapterConfig, Delta, Given
from studio.adapters.contract.coverage import USUAL_TARGETS
from studio.adapters.contract.foreign import Layers, Peft, Settings, Sites
from studio.adapters.sites.site import Site
from studio.config import finite
from studio.errors import BadConfig

__all__ = ["FourierFT", "FourierFTAdapter"]

STARTS: Final = ("zero", "normal")


@METHODS.register("fourierft")
@dataclass(frozen=True, kw_only=True)
class FourierFT(AdapterConfig):
    r"""FourierFT adds the inverse Fourier transform of a sparse spectrum: ``W' = W + scaling · Re(ifft2(S))``.

    ``S`` ``(rows, cols)`` has ``frequencies`` numbers that are trained, at places that are drawn once from ``key``;
    layers of one shape have the same places. Everything else in it is zero.

    Attributes:
        frequencies: numbers that a layer trains, >= 1; at most as many as its weight has.
        scaling: what the change is multiplied by. The transform divides by ``rows · cols``, so it is a large number.
        key: seed of the places; with the same key PEFT's ``random_loc_seed`` gives the same ones.
        init: what the spectrum starts with: "zero", or "normal" (N(0, 1), the paper's and PEFT's), which changes the
            output from the beginning, of small layers by more than their weight is large.

    Raises:
        BadConfig: a field with an impossible value, or more frequencies than a layer has.

    References:
        Parameter-Efficient Fine-Tuning with Discrete Fourier Transform (Gao et al., 2024),
        https://arxiv.org/abs/2405.03003

    Example:
        >>> import studio, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6))
        >>> studio.attach(model, studio.FourierFT(frequencies=10, targets=("0",))).parameters
        10
    """

    method = "fourierft"
    rate = 10.0
    small: ClassVar[Mapping[str, Any]] = {"frequencies": 12}
    frequencies: int = 1000
    scaling: float = 150.0
    key: int = 777
    init: str = "zero"

    def check(self) -> None:
        whole = isinstance(self.frequencies, int) and not isinstance(self.frequencies, bool)
        self.require(whole and self.frequencies >= 1, "frequencies", "a whole number, at least 1")
        self.require(finite(self.scaling) and self.scaling != 0, "scaling", "a finite number that is not 0")
        whole = isinstance(self.key, int) and not isinstance(self.key, bool)
        self.require(whole and 0 <= self.key < 2**63, "key", "a whole number in [0, 2**63)")
        self.require(self.init in STARTS, "init", f"one of {', '.join(STARTS)}")


def _start_of_peft(config: Any, sites: Sites) -> dict[str, Any]:
    """PEFT's ``init_weights=True`` is the zero, and False, its default, the normal distribution."""
    return {"init": "zero" if config.init_weights else "normal"}


class FourierFTAdapter(Adapter[FourierFT]):
    """FourierFT on one site: ``spectrum`` ``(frequencies,)``, the entries of ``S`` in the order of their places."""

    trained = ("spectrum",)
    needs = ("spectrum",)
    peft = Peft(
        type="FOURIERFT",
        additive=True,
        settings=Settings(
            name="FourierFTConfig",
            defaults={
                "n_frequency": 1000, "scaling": 150.0, "random_loc_seed": 777, "fan_in_fan_out": False, "bias": "none",
                "n_frequency_pattern": {}, "init_weights": False,
            },
            fields={"frequencies": "n_frequency", "scaling": "scaling", "key": "random_loc_seed"},
            init="",
            reads=("init_weights",),
            targets={**USUAL_TARGETS, "gpt2": ("mlp.c_proj",), "gpt_bigcode": ("mlp.c_proj",)},
            new=_start_of_peft,
        ),
        tensors={"spectrum": "fourierft_spectrum"},
        covers=("Linear", "Conv1D"),
    )  # fmt: skip

    @classmethod
    def start(cls, site: Site, config: FourierFT, given: Given) -> dict[str, Tensor]:
        size = site.rows * site.cols
        if config.frequencies > size:
            raise BadConfig(
                f"FourierFT(frequencies={config.frequencies}) is more than the {site.rows} x {site.cols} numbers of "
                f"{site.path}; use at most {size}, or exclude the layer"
            )
        if config.init == "zero":
            return {"spectrum": torch.zeros(config.frequencies)}
        return {"spectrum": torch.randn(config.frequencies, generator=given.generator)}

    @classmethod
    def shown(cls, layers: Layers) -> dict[str, Any]:
        return {"frequencies": next(iter(layers.values()))["spectrum"].shape[0]}

    def fit(self) -> None:
        spectrum = self.require("spectrum", (None,))
        site, config = self.site, self.config
        places = _places(site.rows * site.cols, spectrum.shape[0], config.key)
        self.keep("places", places.to(spectrum.device))

    def delta(self, weight: Tensor, bias: Tensor | None) -> Delta:
        spectrum, places = cast(Tensor, self._parameters["spectrum"]), cast(Tensor, self._buffers["places"])
        site, scaling = self.site, self.config.scaling

        def make() -> Tensor:
            exact = spectrum.float() if spectrum.dtype in (torch.float16, torch.bfloat16) else spectrum
            whole = exact.new_zeros(site.rows * site.cols).index_put((places,), exact)
            return (torch.fft.ifft2(whole.view(site.rows, site.cols)).real * scaling).to(spectrum.dtype)

        return Delta(site.shaped(self.remembered(make, spectrum)))

    def still(self, weight: Tensor, bias: Tensor | None) -> bool:
        return not bool(cast(Tensor, self._parameters["spectrum"]).count_nonzero())


@functools.lru_cache(maxsize=64)
def _places(size: int, count: int, key: int) -> Tensor:
    """Where the entries stand in a flattened spectrum of ``size`` numbers: the first ``count`` of a permutation."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(key))[:count]


FourierFT.adapter = FourierFTAdapter
