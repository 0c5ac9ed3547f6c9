"""AdaLoRA: a low-rank change whose rank is shared out among the layers while it is trained."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, NamedTuple

import torch
from torch import Tensor

from studio.adapters.contract.adapter import METHODS, Factors, Given
from studio.adapters.contract.coverage import USUAL_TARGETS, by_model, peft_pads, peft_ungrouped
from studio.adapters.contract.foreign import Layers, Lycoris, Peft, Sites, Tables
from studio.adapters.contract.ranked import FactorAdapter, FactorConfig, checked_rank
from studio.adapters.contract.starts import padded
from studio.adapters.methods.lora import SETTINGS, LoRA
from studio.adapters.sites.site import Site
from studio.config import finite
from studio.errors import BadConfig, DoesNotFit

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
    small: ClassVar[Mapping[str, Any]] = {"rank": 3}
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


# -- other programs ----------------------------------------------------------------------------------------------------
#
# PEFT gives every layer the rank ``init_r`` and the scale ``lora_alpha / (init_r + 1e-5)``, whatever is pruned later;
# its ``rank_pattern`` says which ranks a layer has kept, as ``init_r`` truth values under ``"<module>.lora_E"``.

KEPT: Final = ".lora_E"
SPARE: Final = 1e-5  # what PEFT adds to the rank before it divides by it
TARGETS: Final = USUAL_TARGETS | by_model(
    {
        "q k v o wi wo": "t5",
        "q k v o wi_0 wi_1 wo": "mt5",
        "q_proj k_proj v_proj out_proj fc1 fc2": "bart opt",
        "query key value dense": "roberta",
    }
)


def _check_peft(config: Any) -> None:
    if config.total_step is None or config.total_step <= 0:
        raise BadConfig("AdaLoRA does not work when `total_step` is None, supply a value > 0.")
    if config.tinit >= config.total_step - config.tfinal:
        raise BadConfig(
            f"AdaLoraConfig(tinit={config.tinit}, tfinal={config.tfinal}, total_step={config.total_step}) leaves no "
            "step for the budget to fall; tinit + tfinal must be smaller than total_step: The supplied schedule values "
            "don't allow for a budgeting phase"
        )
    for name, asked in (("LOFTQ", config.init_lora_weights == "loftq"), ("DoRA", config.use_dora)):
        if asked:
            raise BadConfig(f"ADALORA does not support {name}.")
    if not config.orth_reg_weight >= 0:
        raise BadConfig(
            f"`orth_reg_weight` should be greater than or equal to 0, but the value passed is {config.orth_reg_weight}"
        )
    if config.r != 8:
        warnings.warn("Note that `r` is not used in AdaLora and will be ignored. Use `init_r` instead.", stacklevel=5)


def _as_patterns(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Restates PEFT's fields as ranks and alphas per layer with the scale ``alpha / rank``."""
    start, alpha = int(fields.get("init_r", 12)), float(fields.get("lora_alpha", 8))
    ranks = {
        "^" + key.removesuffix(KEPT): max(1, sum(map(bool, kept)))  # one rank of zeros stands for none
        for key, kept in (fields.get("rank_pattern") or {}).items()
    }

    def over_rank(rank: int) -> float:
        return float(f"{(alpha if alpha > 0 else rank) / (start + SPARE) * rank:.12g}")

    alphas = {module: over_rank(rank) for module, rank in ranks.items()}
    return {
        **fields, "init_r": start, "lora_alpha": over_rank(start), "rank_pattern": ranks, "alpha_pattern": alphas
    }  # fmt: skip


def _stated(config: AdaLoRA, sites: Sites, layers: Layers) -> dict[str, Any]:
    """Makes the fields with which PEFT computes what the tensors mean here; of a training it wants whole numbers.

    Raises:
        DoesNotFit: a scale that PEFT's AdaLoRA cannot have.
    """
    ranks = {site.path: config.rank_at(site.path) for site in sites.values()}
    scales = {module: config.scale_at(module) for module in ranks}
    most = max(ranks.values())
    first, scale = next(iter(scales.items()))
    for module, other in scales.items():
        if abs(other - scale) > 1e-6 * abs(scale) or other <= 0:
            raise DoesNotFit(
                f"PEFT's AdaLoRA has one scale above 0 for all layers; here it is {scale:g} at {first} and {other:g} "
                f"at {module}: save with format='diffusers'"
            )
    kept = {f"{module}{KEPT}": [index < rank for index in range(most)] for module, rank in ranks.items()}
    full, final = config.full_steps or 0, config.final_steps or 0
    return {
        "init_r": most, "lora_alpha": float(f"{scale * (most + SPARE):.12g}"),
        "rank_pattern": kept if set(ranks.values()) != {most} else None, "target_r": config.target_rank or 1,
        "tinit": full, "tfinal": final, "total_step": full + final + 1,
    }  # fmt: skip


def _as_lora(config: AdaLoRA, layers: Layers) -> tuple[LoRA, Tables]:
    """The plain LoRA with the same change, ``up ← up @ diag(values)``, which every program can read."""
    shared = [field.name for field in dataclasses.fields(FactorConfig)]
    plain = {
        path: {"down": tensors["down"], "up": tensors["up"] * tensors["values"].t()} for path, tensors in layers.items()
    }
    return LoRA(**{name: getattr(config, name) for name in shared}), plain


class AdaLoRAAdapter(FactorAdapter[AdaLoRA]):
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
    needs = ("down", "up", "values")
    ranks = ("down",)
    peft = Peft(
        type="ADALORA",
        additive=True,
        settings=dataclasses.replace(
            SETTINGS,
            name="AdaLoraConfig",
            extends=SETTINGS.name,
            prefix="lora_",
            defaults={
                **SETTINGS.defaults, "target_r": 8, "init_r": 12, "tinit": 0, "tfinal": 0, "deltaT": 1,
                "beta1": 0.85, "beta2": 0.85, "orth_reg_weight": 0.5, "total_step": None, "rank_pattern": None,
            },
            fields={
                "rank": "init_r", "alpha": "lora_alpha", "dropout": "lora_dropout", "target_rank": "target_r",
                "full_steps": "tinit", "final_steps": "tfinal", "interval": "deltaT", "importance_decay": "beta1",
                "uncertainty_decay": "beta2", "orthogonality": "orth_reg_weight",
            },
            flags={},
            reads=("total_step",),
            beside=(*SETTINGS.beside, "r", "use_rslora"),  # those of LoRA that PEFT's does not look at
            targets=TARGETS,
            check=_check_peft,
            restate=_as_patterns,
            state=_stated,
        ),
        tensors={"down": "lora_A", "up": "lora_B", "values": "lora_E"},
        layouts={"down": "flat"},
        covers=("Linear", "Conv1D", "Conv2d"),
        limit=peft_ungrouped,
        differs=peft_pads,
    )  # fmt: skip
    lycoris = Lycoris(form=_as_lora)

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
        self.__dict__["scale"] = self.config.scale_at(self.site.path)
        if self.trainable:
            for name in self.trained:
                tensor = self._parameters[name]
                assert tensor is not None
                self.keep(f"{name}_importance", torch.zeros_like(tensor, requires_grad=False))
                self.keep(f"{name}_uncertainty", torch.zeros_like(tensor, requires_grad=False))
            self.keep("kept", torch.ones_like(values, dtype=torch.bool))

    def factors(self) -> Factors:
        parameters: dict[str, Any] = self._parameters
        return Factors(parameters["down"], parameters["up"] * parameters["values"].t(), self.scale)

    def grown(self, rank: int, generator: torch.Generator) -> tuple[AdaLoRA, dict[str, Tensor]]:
        config = self.config
        path, tensors = self.site.path, self.tensors()
        wider = config.regraded({path: rank}, {path: config.scale_at(path)})
        fresh = self.start(self.site, wider, Given(lambda: self.site.matrix(self.site.weight), generator))
        return wider, {name: padded(tensor, fresh[name]) for name, tensor in tensors.items()}

    @classmethod
    def to_save(cls, config: AdaLoRA, layers: Layers) -> tuple[AdaLoRA, Tables]:
        """Leaves out the ranks whose value is zero; a layer keeps at least one, and an untrained adapter all."""
        plain = {path: dict(tensors) for path, tensors in layers.items()}
        if any(tensors["values"].count_nonzero() for tensors in plain.values()):
            for tensors in plain.values():
                kept = tensors["values"][:, 0] != 0
                kept[0] |= not kept.any()
                tensors |= {
                    "down": tensors["down"][kept], "up": tensors["up"][:, kept], "values": tensors["values"][kept]
                }  # fmt: skip
        return config, plain

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
                terms.append((rows @ rows.t() - torch.eye(len(rows), device="cpu").to(rows)).norm())
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
    return next(iter(adapters.values())).config


AdaLoRA.adapter = AdaLoRAAdapter
