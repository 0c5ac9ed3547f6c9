"""``find_kappa_target_modules``: which weights are the best conditioned, and lose the least when they are adapted."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from studio.adapters.hosting.assembly import site_at
from studio.adapters.sites.kinds import kind_of
from studio.peft.configs.select import names_in
from studio.peft.terms.errors import Wrong

__all__ = ["KappaTuneSelector", "find_kappa_target_modules"]

_EXPERTS = (".gate_up_proj", ".down_proj", ".gate_proj", ".up_proj")


class KappaTuneSelector:
    """Linear layers, and parameters that hold experts, by the condition number ``σ₁ / σₙ`` of their weights.

    Args:
        model: the base. max_dim_size_to_analyze: larger weights are left out, their decomposition takes long.
        moe_param_suffixes: endings of the names of parameters ``(experts, rows, cols)`` that hold experts.
        show_progress: say on stderr how far it is.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
        >>> _ = model[0].weight.data.copy_(torch.diag(torch.tensor([100.0, 1.0])))
        >>> _ = model[1].weight.data.copy_(torch.eye(2))
        >>> KappaTuneSelector(model, show_progress=False).get_best_targets(num_modules=1)
        ['1']
    """

    def __init__(
        self,
        model: nn.Module,
        max_dim_size_to_analyze: int = 16384,
        moe_param_suffixes: tuple[str, ...] | None = None,
        show_progress: bool = True,
    ) -> None:
        self.model, self.max_dim_size_to_analyze = model, max_dim_size_to_analyze
        self.moe_param_suffixes, self.show_progress = moe_param_suffixes or _EXPERTS, show_progress
        self._found: tuple[dict[str, float], dict[str, float]] | None = None

    def get_best_targets(
        self, top_p: float | None = None, num_modules: int | None = None, threshold: float | None = None
    ) -> list[str]:
        """Returns the names of linear layers, the best conditioned first.

        Args:
            top_p: this share of them. num_modules: so many. threshold: those of at most this condition number.

        Raises:
            Wrong: a share that is none.
        """
        return _best(self._numbers()[0], top_p, num_modules, threshold)

    def get_best_target_parameters(
        self, top_p: float | None = None, num_modules: int | None = None, threshold: float | None = None
    ) -> list[str]:
        """Returns the names of parameters that hold experts, those whose experts are best conditioned first.

        Args:
            top_p, num_modules, threshold: as in :meth:`get_best_targets`; the number is the mean over the experts.

        Raises:
            Wrong: a share that is none.
        """
        return _best(self._numbers()[1], top_p, num_modules, threshold)

    def _numbers(self) -> tuple[dict[str, float], dict[str, float]]:
        if self._found is None:
            layers = {
                name: [site_at(self.model, name, ("linear",)).weight]
                for name, module in names_in(self.model).items()
                if kind_of(module) == "linear"
            }
            experts = {
                name: list(parameter)
                for name, parameter in self.model.named_parameters()
                if parameter.dim() == 3 and name.endswith(tuple(self.moe_param_suffixes))
            }
            self._found = self._conditions(layers, "layers"), self._conditions(experts, "experts")
        return self._found

    @torch.no_grad()
    def _conditions(self, weights: Mapping[str, Sequence[Tensor]], what: str) -> dict[str, float]:
        found = {}
        for number, (name, parts) in enumerate(weights.items(), 1):
            if max(parts[0].shape) <= self.max_dim_size_to_analyze:
                values = [torch.linalg.svdvals(one.detach().float().flatten(1)) for one in parts]
                found[name] = sum(float(one[0] / (one[-1] + 1e-8)) for one in values) / len(values)
            if self.show_progress:
                print(f"\rCondition numbers of {what}: {number}/{len(weights)}", end="", file=sys.stderr, flush=True)
        if self.show_progress and weights:
            print(file=sys.stderr)
        return found


def _best(
    numbers: Mapping[str, float], top_p: float | None, num_modules: int | None, threshold: float | None
) -> list[str]:
    if top_p is not None and not 0 < top_p <= 1:
        raise Wrong(f"top_p={top_p!r} must be a share of the layers, in (0, 1]")
    ordered = sorted(numbers, key=numbers.__getitem__)
    if num_modules is not None:
        return ordered[:num_modules]
    if top_p is not None:
        return ordered[: max(1, int(len(ordered) * top_p))]
    return [name for name in ordered if threshold is None or numbers[name] <= threshold]


def find_kappa_target_modules(
    model: nn.Module,
    top_p: float = 0.2,
    max_dim_size_to_analyze: int = 16384,
    moe_param_suffixes: tuple[str, ...] | None = None,
    show_progress: bool = True,
) -> dict[str, list[str] | None]:
    """Returns what a config's ``target_modules`` and ``target_parameters`` can be: the best conditioned weights.

    Args:
        model, max_dim_size_to_analyze, moe_param_suffixes, show_progress: as in :class:`KappaTuneSelector`.
        top_p: the share of the layers, and of the parameters that hold experts (None where there are none).

    Raises:
        Wrong: a share that is none.
    """
    chosen = KappaTuneSelector(model, max_dim_size_to_analyze, moe_param_suffixes, show_progress)
    parameters = chosen.get_best_target_parameters(top_p)
    return {"target_modules": chosen.get_best_targets(top_p), "target_parameters": parameters or None}
