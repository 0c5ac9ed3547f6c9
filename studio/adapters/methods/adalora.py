"""AdaLoRA: a low-rank change whose rank is shared out among the layers while it is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from studio.adapters.contract.adapter import METHODS, Adapter, Delta, Factors, Given
from studio.adapters.contract.foreign import Foreign, Way, peft_covers, peft_pads, peft_ungrouped
from studio.adapters.contract.ranked import FactorConfig, checked_rank
from studio.adapters.contract.starts import padded
from studio.adapters.methods.lora import LoRA
from studio.adapters.sites.site import Site
from studio.config import finite
from studio.errors import BadConfig

__all__ = ["AdaLoRA", "AdaLoRAAdapter", "Schedule"]

DEVIATION = 0.02  # of the factors' start


@METHODS.register("adalora")
@dataclass(frozen=True, kw_only=True)
class AdaLoRA(FactorConfig):
    r"""AdaLoRA changes the weight in the form of an SVD: ``W' = W + s · up @ diag(values) @ down``.

    ``s = alpha / rank``. All layers start with ``rank`` ranks. While training goes on, the number kept in all layers
    together falls from ``b₀ = Σ rank`` to ``b = target_rank · layers``; after step ``t`` of ``T`` it is
    ``b + (b₀ − b)(1 − (t − full_steps) / (T − full_steps − final_steps))³``. Kept are the ranks with the highest
    scores: that of the value plus the mean over its row of ``down`` and the mean over its column of ``up``, each the
    product of two moving averages, of the sensitivity ``|w · ∂loss/∂w|`` and of its deviation from its average. The
    values of all others are set to 0, and a saved adapter no longer has them. The training loop drives all this
    (a loop of one's own calls :func:`studio.adapters.training.on_step` and adds
    :func:`studio.adapters.training.penalty` to the loss). Each component of a pipeline has a budget of its own.

    Attributes:
        rank: the rank that every layer starts with. rank_pattern: another one for some layers.
        alpha: numerator of the scale. The default makes it 8 at the usual rank: the values start at 0 between two small
            factors, so that at LoRA's scale 1 the change would grow many times slower than LoRA's.
        target_rank: the rank that is left on average; None is two thirds of the one at the start, as in the paper.
        full_steps: steps before the first rank goes; None is a tenth of the training.
        final_steps: steps at its end in which no more go; None is three tenths.
        interval: steps from one choice of ranks to the next, >= 1.
        importance_decay, uncertainty_decay: of the two moving averages, in (0, 1); the paper's β₁ and β₂.
        orthogonality: weight of the penalty ``mean ‖P Pᵀ − I‖`` over all ``down`` and ``upᵀ``, which keeps the values
            comparable.

    Raises:
        BadConfig: a field with an impossible value; a target above the start.

    References:
        AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning (Zhang et al., 2023),
        https://arxiv.org/abs/2303.10512

    Example:
        >>> import studio, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8))
        >>> studio.attach(model, studio.AdaLoRA(rank=3, targets=("0",))).parameters
        51
    """

    method = "adalora"
    rank: int = 12
    alpha: float | None = 96.0
    target_rank: int | None = None
    full_steps: int | None = None
    final_steps: int | None = None
    interval: int = 1
    importance_decay: float = 0.85
    uncertainty_decay: float = 0.85
    orthogonality: float = 0.5

    def check(self) -> None:
        super().check()
        for name, least in (("target_rank", 1), ("full_steps", 0), ("final_steps", 0), ("interval", 1)):
            value = getattr(self, name)
            open_ = value is None and name != "interval"
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= least
            self.require(open_ or whole, name, f"a whole number, at least {least}")
        for name in ("importance_decay", "uncertainty_decay"):
            value = getattr(self, name)
            self.require(finite(value) and 0 < value < 1, name, "above 0 and below 1")
        self.require(finite(self.orthogonality) and self.orthogonality >= 0, "orthogonality", "a number, at least 0")


class Schedule(NamedTuple):
    """How many ranks are kept in all layers together, over the steps of a training.

    Attributes:
        start: ranks at the start. target: ranks at the end.
        full: the last step with all of them. final: the step from which on no more go.

    Example:
        >>> schedule = Schedule(start=30, target=10, full=10, final=60)
        >>> [schedule.budget(step) for step in (5, 10, 35, 60, 99)]
        [30, 30, 12, 10, 10]
    """

    start: int
    target: int
    full: int
    final: int

    def budget(self, step: int) -> int:
        """Returns how many ranks are kept after ``step`` steps."""
        if step <= self.full:
            return self.start
        if step >= self.final:
            return self.target
        rest = 1 - (step - self.full) / (self.final - self.full)
        return int((self.start - self.target) * rest**3 + self.target)


class AdaLoRAAdapter(Adapter):
    """AdaLoRA on one site: ``down`` ``(r, *inner_shape)``, ``up`` ``(rows, r)``, ``values`` ``(r, 1)``."""

    values: Tensor
    """The singular values, ``(r, 1)``; no property, which FSDP could not put its views behind."""
    trained = ("down", "up", "values")
    scratch = (
        "down_importance",
        "down_uncertainty",
        "up_importance",
        "up_uncertainty",
        "values_importance",
        "values_uncertainty",
        "kept",
    )
    fused = True
    foreign = Foreign(
        peft_type="ADALORA",
        peft_tensors={"down": "lora_A", "up": "lora_B", "values": "lora_E"},
        peft_fields={
            "rank": "init_r",
            "alpha": "lora_alpha",
            "dropout": "lora_dropout",
            "target_rank": "target_r",
            "full_steps": "tinit",
            "final_steps": "tfinal",
            "interval": "deltaT",
            "importance_decay": "beta1",
            "uncertainty_decay": "beta2",
            "orthogonality": "orth_reg_weight",
        },
        layouts={"down": ("flat", "inner")},
        needs=("down", "up", "values"),
        ranks=("down",),
        peft_way=Way(
            fields=("r", "total_step", "use_rslora"),  # those of LoRA that it does not look at, its own end
            limit=lambda site: peft_covers(site, "Linear", "Conv1D", "Conv2d") or peft_ungrouped(site),
            differs=peft_pads,
        ),
        fold=lambda config, layers: _without_pruned(config, layers),
        lycoris_form=lambda config, layers: _as_lora(config, layers),
    )

    @classmethod
    def plan(cls, sites: Mapping[str, Site], config: AdaLoRA, given: Mapping[str, Given]) -> AdaLoRA:
        start = sum(config.rank_at(site.path) for site in sites.values())
        target = config.target_rank
        if target is None:
            target = max(1, start * 2 // (3 * len(sites)))
        if target * len(sites) > start:
            raise BadConfig(
                f"AdaLoRA(target_rank={target}) is above the {start / len(sites):g} ranks per layer of the start; "
                f"ranks only go: give a higher rank, or a target_rank of at most {start // len(sites)}"
            )
        return dataclasses.replace(config, target_rank=target)

    @classmethod
    def start(cls, site: Site, config: AdaLoRA, given: Given) -> dict[str, Tensor]:
        rank = checked_rank(site, config)
        down = torch.empty(rank, *site.inner_shape).normal_(std=DEVIATION, generator=given.generator)
        up = torch.empty(site.rows, rank).normal_(std=DEVIATION, generator=given.generator)
        return {"down": down, "up": up, "values": torch.zeros(rank, 1)}

    def fit(self) -> None:
        rank = self.require("down", (None, *self.site.inner_shape)).shape[0]
        self.require("up", (self.site.rows, rank))
        values = self.require("values", (rank, 1))
        self.__dict__["scale"] = self.config.scale_at(self.site.path)  # type: ignore[attr-defined]
        if self.trainable:
            for name in self.trained:
                tensor = self._parameters[name]
                assert tensor is not None
                self.keep(f"{name}_importance", torch.zeros_like(tensor, requires_grad=False))
                self.keep(f"{name}_uncertainty", torch.zeros_like(tensor, requires_grad=False))
            self.keep("kept", torch.ones_like(values, dtype=torch.bool))

    scale: float

    @property
    def dropout(self) -> float:
        return float(self.config.dropout)  # type: ignore[attr-defined]

    def factors(self) -> Factors:
        parameters: dict[str, Any] = self._parameters
        return Factors(parameters["down"], parameters["up"] * parameters["values"].t(), self.scale)

    def grown(self, rank: int, generator: torch.Generator) -> tuple[Any, dict[str, Tensor]]:
        config: Any = self.config
        path, tensors = self.site.path, self.tensors()
        wider = config.regraded({path: rank}, {path: config.scale_at(path)})
        fresh = self.start(self.site, wider, Given(lambda: self.site.matrix(self.site.weight), generator))
        return wider, {name: padded(tensor, fresh[name]) for name, tensor in tensors.items()}

    def delta(self, weight: Tensor, bias: Tensor | None) -> Delta:
        down, up, scale, _ = self.factors()
        return Delta(self.site.shaped((up * scale) @ down.flatten(1)))

    def change(self, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        down, up, scale, _ = self.factors()
        return self.site.low_rank(self.dropped(x), down.to(y.dtype), (up * scale).to(y.dtype))

    # -- what training adds ------------------------------------------------------------------------------------------

    @classmethod
    def penalty(cls, adapters: Mapping[str, AdaLoRAAdapter]) -> Tensor | None:
        weight = _config(adapters).orthogonality
        if weight == 0:
            return None
        terms = []
        for adapter in adapters.values():
            down, up = adapter._parameters["down"], adapter._parameters["up"]
            assert down is not None and up is not None
            for rows in (down.flatten(1), up.t()):
                terms.append((rows @ rows.t() - torch.eye(len(rows)).to(rows)).norm())
        return weight * torch.stack(terms).mean()

    @classmethod
    def on_step(cls, adapters: Mapping[str, AdaLoRAAdapter], step: int, steps: int) -> None:
        schedule = cls.schedule(adapters, steps)
        if step == 0 or schedule.start <= schedule.target:
            return
        if step < schedule.final:
            cls.weigh(adapters)
        due = step > schedule.full and step % _config(adapters).interval == 0
        if (due and step < schedule.final) or step == schedule.final:
            cls.allocate(adapters, schedule.budget(step))
        if step >= schedule.final:
            for adapter in adapters.values():
                adapter.prune()

    @classmethod
    def schedule(cls, adapters: Mapping[str, AdaLoRAAdapter], steps: int) -> Schedule:
        """Returns the schedule of a training of ``steps`` steps.

        Raises:
            BadConfig: no step is left between the first and the last phase.
        """
        config = _config(adapters)
        full = steps // 10 if config.full_steps is None else config.full_steps
        final = steps - (steps * 3 // 10 if config.final_steps is None else config.final_steps)
        if full >= final:
            raise BadConfig(
                f"AdaLoRA(full_steps={full}, final_steps={steps - final}) leaves none of {steps} steps in which ranks "
                "can go; give fewer, or train longer"
            )
        start = sum(adapter.values.shape[0] for adapter in adapters.values())
        target = start if config.target_rank is None else config.target_rank * len(adapters)
        return Schedule(start, target, full, final)

    @classmethod
    @torch.no_grad()
    def weigh(cls, adapters: Mapping[str, AdaLoRAAdapter]) -> None:
        """Takes the sensitivities ``|w · ∂loss/∂w|`` of this step into the moving averages."""
        weights: list[Tensor] = []
        gradients: list[Tensor] = []
        importances: list[Tensor] = []
        uncertainties: list[Tensor] = []
        for adapter in adapters.values():
            for name in cls.trained:
                weight = adapter._parameters[name]
                assert weight is not None
                weights.append(weight.detach())
                gradients.append(torch.zeros_like(weight) if weight.grad is None else weight.grad)
                importances.append(adapter.scratch_of(f"{name}_importance"))
                uncertainties.append(adapter.scratch_of(f"{name}_uncertainty"))
        config = _config(adapters)
        sensitivities = torch._foreach_abs(torch._foreach_mul(weights, gradients))
        _follow(importances, sensitivities, config.importance_decay)
        deviations = torch._foreach_abs(torch._foreach_sub(sensitivities, importances))
        _follow(uncertainties, deviations, config.uncertainty_decay)

    @classmethod
    @torch.no_grad()
    def allocate(cls, adapters: Mapping[str, AdaLoRAAdapter], budget: int) -> None:
        """Keeps the ``budget`` ranks with the highest scores, and sets the values of the others to zero."""
        scores = [adapter.scores() for adapter in adapters.values()]
        order = torch.cat(scores).sort(descending=True, stable=True).indices
        kept = torch.zeros(len(order), dtype=torch.bool, device=order.device)
        kept[order[:budget]] = True
        parts = kept.split([len(part) for part in scores])
        for adapter, part in zip(adapters.values(), parts, strict=True):
            adapter.scratch_of("kept").copy_(part[:, None])
            adapter.prune()

    def scores(self) -> Tensor:
        """Returns the score of every rank, ``(r,)``."""
        down, up, values = (
            self.scratch_of(f"{name}_importance") * self.scratch_of(f"{name}_uncertainty") for name in self.trained
        )
        return values[:, 0] + (down.flatten(1).mean(1) + up.mean(0))

    @torch.no_grad()
    def prune(self) -> None:
        """Sets the values of the ranks that are not kept to zero."""
        self.values.masked_fill_(~self.scratch_of("kept"), 0.0)

    def scratch_of(self, name: str) -> Tensor:
        """Returns a tensor of :attr:`scratch`, which an adapter has that was made trainable."""
        tensor = self._buffers.get(name)
        assert tensor is not None, "an adapter that is trained keeps it"
        return tensor


def _follow(averages: list[Tensor], news: tuple[Tensor, ...], decay: float) -> None:
    """``a ← d a + (1 − d) n`` for all at once."""
    torch._foreach_mul_(averages, decay)
    torch._foreach_add_(averages, news, alpha=1 - decay)


def _config(adapters: Mapping[str, AdaLoRAAdapter]) -> AdaLoRA:
    config = next(iter(adapters.values())).config
    assert isinstance(config, AdaLoRA)
    return config


def _without_pruned(
    config: AdaLoRA, layers: Mapping[str, Mapping[str, Tensor]]
) -> tuple[AdaLoRA, dict[str, dict[str, Tensor]]]:
    """Leaves out the ranks whose value is zero; a layer keeps at least one, and an untrained adapter all of them."""
    plain = {path: dict(tensors) for path, tensors in layers.items()}
    if any(tensors["values"].count_nonzero() for tensors in plain.values()):
        for tensors in plain.values():
            kept = tensors["values"][:, 0] != 0
            kept[0] |= not kept.any()
            tensors |= {
                "down": tensors["down"][kept], "up": tensors["up"][:, kept], "values": tensors["values"][kept]
            }  # fmt: skip
    return config, plain


def _as_lora(config: AdaLoRA, layers: Mapping[str, Mapping[str, Tensor]]) -> tuple[LoRA, dict[str, dict[str, Tensor]]]:
    """The plain LoRA with the same change, ``up ← up @ diag(values)``, which every program can read."""
    shared = [field.name for field in dataclasses.fields(FactorConfig)]
    plain = {
        path: {"down": tensors["down"], "up": tensors["up"] * tensors["values"].t()} for path, tensors in layers.items()
    }
    return LoRA(**{name: getattr(config, name) for name in shared}), plain


AdaLoRA.adapter = AdaLoRAAdapter
