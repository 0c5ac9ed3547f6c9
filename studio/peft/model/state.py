"""What PEFT knows of a model with adapters beside what the core keeps: their configs, and what stands beside layers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Concatenate, Final, ParamSpec, TypeVar, cast

from torch import Tensor, nn

from studio.adapters import Adapter, Strength
from studio.adapters.contract.ranked import RankedConfig
from studio.adapters.hosting.assembly import Assembly, assembly_at
from studio.adapters.training import on_step
from studio.errors import nearest
from studio.peft.configs.config import PeftConfig
from studio.peft.terms.errors import Unknown, Wrong

__all__ = ["KEY", "TOKENS", "Extras", "State", "as_names", "by_state", "owner_of", "state_of"]

P = ParamSpec("P")
R = TypeVar("R")

KEY: Final = "_studio_peft"
"""Where a model, and each of its adapted layers, keeps its state."""

TOKENS: Final = "--tokens"
"""What follows an adapter's name in the names of the core's adapters that have its token rows."""


def as_names(names: str | Sequence[str]) -> list[str]:
    """Returns the names of adapters as a list; PEFT's verbs take one name or several."""
    return [names] if isinstance(names, str) else list(names)


def owner_of(core: str) -> str:
    """Returns the name of PEFT's adapter of which an adapter of the core is a part."""
    return core.partition(TOKENS)[0]


@dataclass
class Extras:
    """What an adapter has beside its layers.

    Attributes:
        modules: path -> the copy of a whole module. parameters: path -> the parameter that stands in for the base's.
        beside: path -> the parameter that the config names there, where it names parameters and not layers.
        preprocessed: whether its start came from ``preprocess_corda``, which makes it again for who loads the adapter.
    """

    modules: dict[str, nn.Module] = field(default_factory=dict)
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)
    beside: dict[str, str] = field(default_factory=dict)
    preprocessed: bool = False


class State:
    """The adapters of PEFT's kind on ``model``; which act, how strongly, and what is folded in is asked of the core.

    Attributes:
        configs: adapter name -> config. extras: adapter name -> what it has beside its layers.
        originals: path -> the base's parameter in whose place an adapter's stands now.
        waiting: the blend that goes into the weights again when all layers are switched on again.
        copies_off: the paths of whole modules whose copies are switched off.
        chosen: path of a whole module -> the adapters whose copies act there, where that was said of it alone.
        samples: the adapter of each sample while a call with ``adapter_names`` runs.
        repeats: whether generation repeats every sample in a row (beams).
        lent: whether somebody has taken a base layer, and may put it in the adapted one's place (diffusers does).
        tables: views of trained rows that tied layers share, by what they show.
        hook: the handle of what is done before each call of the model, where there is anything to do.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.configs: dict[str, PeftConfig] = {}
        self.extras: dict[str, Extras] = {}
        self.originals: dict[str, nn.Parameter] = {}
        self.waiting: dict[str, Strength] | None = None
        self.samples: list[str] | None = None
        self.copies_off: set[str] = set()
        self.chosen: dict[str, list[str]] = {}
        self.repeats = self.lent = False
        self.tables: dict[Any, Any] = {}
        self.hook: Any = None

    @property
    def assembly(self) -> Assembly:
        """What the core has attached to the model; an empty one before the first adapter."""
        return assembly_at(self.model) or Assembly(self.model, "")

    # -- which adapters there are --------------------------------------------------------------------------------------

    def check(self, *names: str) -> None:
        """Checks that adapters are there.

        Raises:
            Unknown: one is not; the nearest is named.
        """
        for name in names:
            if name not in self.configs:
                close = nearest(str(name), self.configs, 1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise Unknown(
                    f"Adapter {name} does not exist{hint} (Adapter(s) {sorted({*names} - {*self.configs})} not found, "
                    f"available adapters: {sorted(self.configs)})"
                )

    def cores(self, name: str) -> list[str]:
        """Returns the names of the core's adapters that make up one of PEFT's."""
        return [core for core in self.assembly.records if owner_of(core) == name]

    def layers(self, name: str) -> Iterator[tuple[str, Adapter]]:
        """Iterates over all layers of an adapter, those with its token rows too: path and the core's adapter."""
        for core in self.cores(name):
            yield from self.assembly.adapters(core)

    def own_layers(self, name: str) -> dict[str, Adapter]:
        """Returns the layers of an adapter without its token rows: path -> the core's adapter."""
        return dict(self.assembly.adapters(name)) if name in self.assembly.records else {}

    def token_layers(self, name: str) -> dict[str, Adapter]:
        """Returns the embeddings of which an adapter has rows: path -> the core's adapter."""
        return {path: one for core in self.cores(name) if core != name for path, one in self.assembly.adapters(core)}

    def adapters_at(self, path: str, *, tokens: bool = False) -> dict[str, Adapter]:
        """Returns the adapters on a layer, by name: those of the layer, or those that have rows of single tokens."""
        mount = self.assembly.mounts.get(path)
        names = [] if mount is None else [name for name in mount.adapters.names() if (TOKENS in name) == tokens]
        return {owner_of(name): cast(Adapter, mount.adapters.get(name)) for name in names}  # type: ignore[union-attr]

    def shared(self, theirs: str) -> dict[str, Tensor]:
        """Returns the tensor that all layers of an adapter share under one of PEFT's names ("vera_A"), by adapter."""
        found: dict[str, Tensor] = {}
        for name in self.configs:
            for adapter in self.own_layers(name).values():
                ours = [key for key, one in adapter.peft.shared.items() if one == theirs]
                for tensor in (adapter.tensor(key) for key in ours):
                    found |= {} if tensor is None else {name: tensor}
        return found

    def paths(self) -> list[str]:
        """Returns the paths of all adapted layers."""
        return list(dict.fromkeys(path for name in self.configs for path, _ in self.layers(name)))

    # -- what the core says --------------------------------------------------------------------------------------------

    @property
    def active(self) -> list[str]:
        """The adapters that act."""
        return list(dict.fromkeys(map(owner_of, self.assembly.levels.strengths)))

    def active_at(self, path: str) -> list[str]:
        """Returns the adapters that act on a layer, those too that have nothing there and act everywhere else."""
        assembly = self.assembly
        levels, mount = assembly.levels, assembly.mounts.get(path)
        here = set(mount.adapters.names()) if mount is not None else set()
        owners = set(map(owner_of, here))
        found = []
        for core in levels.strengths:
            muted = levels.muted.get(core, ())
            if path not in muted if core in here else owner_of(core) not in owners and not muted:
                found.append(owner_of(core))
        return list(dict.fromkeys(found))

    @property
    def merged(self) -> list[str]:
        """The adapters that are folded into the weights, or will be again when the layers are switched on again."""
        baked = self.assembly.baked
        return list(dict.fromkeys(map(owner_of, (self.waiting or {}) if baked is None else baked)))

    @property
    def disabled(self) -> bool:
        """Whether the adapters are switched off everywhere."""
        silent = self.assembly.levels.silent
        return bool(silent) and silent.issuperset(self.paths())

    def disabled_at(self, path: str) -> bool:
        """Says whether what stands at a path is switched off: an adapted layer by itself, others with all of them."""
        assembly = self.assembly
        silent = assembly.levels.silent
        return path in silent if not silent or path in assembly.mounts else self.disabled

    def scale_of(self, name: str, path: str) -> float:
        """Returns the factor beside an adapter's own scale at a layer; it is kept while the adapter is off."""
        levels = self.assembly.levels
        factor = next((levels.factors[core][path] for core in self.cores(name)
                       if path in levels.factors.get(core, ())), 1.0)  # fmt: skip
        return factor * levels.strengths.get(name, Strength()).at("", path)

    def own_scale(self, name: str, path: str) -> float:
        """Returns an adapter's own scale at a layer, as its config has it."""
        config = self.adapters_at(path)[name].config
        return config.scale_at(path) if isinstance(config, RankedConfig) else 1.0

    def bound(self) -> None:
        """Brings what a config bounds back into its bounds (constrained OFT), as PEFT does in each call."""
        for name, config in self.configs.items():
            if getattr(config, "coft", False):
                on_step(self.model, name, step=1, steps=1)


def state_of(model: nn.Module) -> State:
    """Returns the state of a base with adapters.

    Args:
        model: the base itself, not what stands around it.

    Raises:
        Wrong: it carries no adapter of PEFT's kind.
    """
    found = model.__dict__.get(KEY)
    if found is None:
        raise Wrong(
            f"No adapter layers found in the model ({type(model).__name__}), please ensure that it's a PEFT model or "
            "that you have PEFT adapters injected in the model (get_peft_model, inject_adapter_in_model)."
        )
    return cast(State, found)


def by_state(verb: Callable[Concatenate[State, P], R]) -> Callable[Concatenate[Any, P], R]:
    """Makes a verb on a state a method of an object that has one under ``_state``.

    Args:
        verb: takes the state first; the method's other arguments, and what it says of itself, are the verb's.
    """

    @functools.wraps(verb)
    def method(self: Any, *args: P.args, **kwargs: P.kwargs) -> R:
        return verb(self._state, *args, **kwargs)

    return method
