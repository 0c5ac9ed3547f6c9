"""The adapters of PEFT's kind on one model: which there are, which act, and what belongs to each beside the core's own.

Everything that computes is the core's: this keeps PEFT's idea of a state (active, enabled, merged, scaled: by layer)
and tells it to the core as a blend.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from studio.adapters import METHODS, Adapter, AdapterConfig, Site, Strength, attach, bake, blend, detach, state, unbake
from studio.adapters.contract.ranked import any_rank
from studio.adapters.hosting.assembly import assemblies, check_known, module_at
from studio.adapters.hosting.host import is_hosted
from studio.adapters.training import on_step
from studio.errors import DoesNotFit, nearest
from studio.files.format import FORMATS
from studio.files.save import spelled
from studio.peft.configs.config import PeftConfig
from studio.peft.configs.prompts import note_sizes, prompt_config
from studio.peft.configs.select import modules_named, names_in, select
from studio.peft.configs.translate import method_of, random_start, translate
from studio.peft.kinds import PeftWarning, Unknown, Wrong, refusals
from studio.peft.layers import INJECTION, dress
from studio.peft.saved_modules import drop_copy, give_copy
from studio.peft.tokens import TOKENS, add_tokens

__all__ = ["Injection", "injection_of"]

_BIASES: Final = ("none", "all")


@dataclass
class Extras:
    """What an adapter has beside its layers.

    Attributes:
        modules: path -> the copy of a whole module. parameters: path -> the parameter that stands in for the base's.
    """

    modules: dict[str, nn.Module] = field(default_factory=dict)
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)


def injection_of(model: nn.Module) -> Injection:
    """Returns the injection of a model.

    Raises:
        Wrong: it carries no adapter of PEFT's kind.
    """
    found = model.__dict__.get(INJECTION)
    if found is None:
        raise Wrong(f"{type(model).__name__} carries no PEFT adapter; use get_peft_model or inject_adapter_in_model")
    return cast("Injection", found)


class Injection:
    """What is on ``model``.

    Attributes:
        peft_config: adapter name -> config. active: the adapters that act. merged: those in the weights.
        samples: the adapter of each sample while a call with ``adapter_names`` runs.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.peft_config: dict[str, PeftConfig] = {}
        self.active: list[str] = []
        self.disabled = False
        self.merged: list[str] = []
        self.samples: list[str] | None = None
        self.repeats = False  # whether generation repeats every sample in a row (beams)
        self.extras: dict[str, Extras] = {}
        self._originals: dict[str, nn.Parameter] = {}
        self._active_at: dict[str, list[str]] = {}
        self._disabled_at: dict[str, bool] = {}
        self._scales: dict[str, dict[str, float]] = {}
        self._dirty = False
        self._bounding: Any = None
        self._lent: Any = None

    # -- coming and going ----------------------------------------------------------------------------------------------

    def add(
        self,
        name: str,
        config: PeftConfig,
        *,
        autocast: bool = True,
        active: bool = True,
        calibrate: Any = None,
        original: Any = None,
    ) -> None:
        """Attaches a new adapter.

        Args:
            name: its name. config: its config. autocast: keep half-precision adapters in fp32.
            active: whether it acts from now on, if no other does.
            calibrate, original: what a start from data, or from a quantised base, is made from (:func:`studio.attach`).
        """
        with refusals():
            self.check_new(name, config)
            self._unmerged("add an adapter")
            if config.is_prompt_learning:
                ours = prompt_config(config, self.model)
            else:
                kinds = METHODS[method_of(config)].adapter.kinds
                ours = translate(config, self.model, select(self.model, config, kinds))
            self._put(name, config, lambda: _attach(self.model, ours, name, calibrate, original))
            random_start_of(self, name)
            if config.is_prompt_learning:
                note_sizes(config, self.layers_of(name))
            else:
                _warn_unsavable(self.model, name)
            if not autocast:
                self._cast_down(name)
            self._settle_after_add(name, config, active)

    def put(self, name: str, config: PeftConfig, place: Any, *, active: bool = True) -> None:
        """Adds an adapter whose layers ``place`` puts on the model (from a file)."""
        with refusals():
            self.check_new(name, config)
            self._unmerged("add an adapter")
            self._put(name, config, place)
            self._settle_after_add(name, config, active)

    def _put(self, name: str, config: PeftConfig, place: Any) -> None:
        place()
        for assembly in assemblies(self.model).values():
            assembly.freeze_base()
        self.peft_config[name] = config
        self.extras[name] = Extras()
        try:
            self._add_modules(name, getattr(config, "modules_to_save", None) or ())
            self._add_biases(name, config)
            add_tokens(self, name, config)
        except BaseException:
            self._forget(name)
            raise
        self.model.__dict__[INJECTION] = self
        self._redress()

    def _settle_after_add(self, name: str, config: PeftConfig, active: bool) -> None:
        if getattr(config, "coft", False) and self._bounding is None:
            self._bounding = self.model.register_forward_pre_hook(lambda module, args: self.bound())
        if active and not self.active:
            self.active = [name]
        self._active_at.clear()
        self.sync()
        for one in self.peft_config:
            self._require(one, one in self.active and not self.peft_config[one].inference_mode)

    def check_new(self, name: str, config: PeftConfig) -> None:
        """Checks that an adapter can be added."""
        if name in self.peft_config:
            raise Wrong(f"Adapter with name {name!r} already exists. Please use a different name.")
        if getattr(config, "bias", "none") != "none" and any(
            getattr(one, "bias", "none") != "none" for one in self.peft_config.values()
        ):
            raise Wrong(
                f"{type(config).__name__} supports only 1 adapter with bias. When using multiple adapters, set bias to "
                "'none' for all adapters."
            )

    def remove(self, name: str) -> None:
        """Takes an adapter off; if it acted, the first that remains acts in its place."""
        with refusals():
            self.check(name)
            if name in self.merged:
                raise Wrong(f"Cannot delete adapter(s) [{name!r}] while they are merged. Please unmerge them first.")
            was = name in self.active
            self.active = [one for one in self.active if one != name]
            if any(assembly.baked is not None for assembly in assemblies(self.model).values()):
                unbake(self.model)  # sync bakes the others again
            self._forget(name)
            if was and not self.active and self.peft_config:
                first = next(iter(self.peft_config))
                warnings.warn(
                    f"Adapter {name} was active which is now deleted. Setting active adapter to {first}.",
                    PeftWarning,
                    stacklevel=4,
                )
                self.active = [first]
            self._active_at.clear()
            self._redress()
            self.sync()
            for one in self.peft_config:
                self._require(one, one in self.active and not self.peft_config[one].inference_mode)

    def _forget(self, name: str) -> None:
        self._swap([])
        for path in self.extras.pop(name, Extras()).modules:
            drop_copy(self, path, name)
        for core in self.cores(name):
            detach(self.model, core)
        self.peft_config.pop(name, None)
        self._scales.pop(name, None)
        if not self.peft_config:
            self.model.__dict__.pop(INJECTION, None)
            for handle in (self._bounding, self._lent):
                if handle is not None:
                    handle.remove()
            self._bounding = self._lent = None

    def unload(self) -> None:
        """Takes everything off; the base is what it was."""
        if self.merged:
            self.unmerge()
        self.disabled, self.active = False, []
        for name in list(self.peft_config):
            self._forget(name)

    def _add_modules(self, name: str, endings: Sequence[str]) -> None:
        found = modules_named(self.model, endings, "modules_to_save")
        for path in dict.fromkeys(path for paths in found.values() for path in paths):
            self.extras[name].modules[path] = give_copy(self, path, name)

    def _add_biases(self, name: str, config: PeftConfig) -> None:
        """Gives the adapter biases of its own, which stand in for the base's while it acts."""
        word = getattr(config, "bias", "none")
        if word == "none":
            return
        if word not in _BIASES and not word.endswith("_only"):
            raise Wrong(f"bias={word!r} must be 'none', 'all' or '<method>_only'")
        for path, module in names_in(self.model).items():
            bias = module._parameters.get("bias")
            if bias is None or not (word == "all" or is_hosted(module)):
                continue
            self.extras[name].parameters[f"{path}.bias"] = nn.Parameter(bias.detach().clone())
        if not self.extras[name].parameters:
            raise Wrong(f"bias={word!r}: no layer that it names has a bias")

    @torch.no_grad()
    def _cast_down(self, name: str) -> None:
        """Keeps an adapter in its layer's own dtype."""
        for _, adapter in self.layers(name):
            dtype = adapter.site.weight.dtype
            if dtype in (torch.float16, torch.bfloat16):
                adapter.to(dtype)

    def _redress(self) -> None:
        """Makes the adapted layers tuner layers of the right kinds."""
        words: dict[str, list[str]] = {}
        sites: dict[str, Site] = {}
        for name, config in self.peft_config.items():
            for path, adapter in self.layers(name):
                words.setdefault(path, []).append(config.word)
                sites[path] = adapter.site
        for path, kinds in words.items():
            dress(sites[path], kinds)

    # -- looking -------------------------------------------------------------------------------------------------------

    def check(self, name: str) -> None:
        """Checks that an adapter is there.

        Raises:
            Unknown: it is not; the nearest is named.
        """
        if name not in self.peft_config:
            close = nearest(str(name), self.peft_config, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise Unknown(f"Adapter {name} does not exist{hint} (there are: {', '.join(self.peft_config) or 'none'})")

    def cores(self, name: str) -> list[str]:
        """Returns the names of the core's adapters that make up one of PEFT's."""
        known = dict.fromkeys(one for assembly in assemblies(self.model).values() for one in assembly.records)
        return [one for one in known if one == name or one.startswith(name + TOKENS)]

    def layers(self, name: str) -> Iterator[tuple[str, Adapter]]:
        """Iterates over the layers of an adapter: path and the core's adapter."""
        for core in self.cores(name):
            for assembly in assemblies(self.model).values():
                if core in assembly.records:
                    yield from assembly.adapters(core)

    def adapters_at(self, path: str, *, tokens: bool = False) -> dict[str, Adapter]:
        """Returns the adapters on a layer, by name: those of the layer, or those that have rows of single tokens."""
        found: dict[str, Adapter] = {}
        for assembly in assemblies(self.model).values():
            mount = assembly.mounts.get(path)
            for name in () if mount is None else mount.adapters.names():
                owner, mark, _ = name.partition(TOKENS)
                if bool(mark) != tokens:
                    continue
                found[owner] = cast(Adapter, mount.adapters.get(name))  # type: ignore[union-attr]
        return found

    def paths(self) -> list[str]:
        """Returns the paths of all adapted layers."""
        return list(dict.fromkeys(path for name in self.peft_config for path, _ in self.layers(name)))

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Returns the core's tensors of an adapter's own layers, ``"<path>.<tensor>"``."""
        return state(self.model, name)

    def active_at(self, path: str) -> list[str]:
        """Returns the names of the adapters that act on a layer."""
        return list(self._active_at.get(path, self.active))

    def disabled_at(self, path: str) -> bool:
        """Says whether a layer's adapters are switched off."""
        return self._disabled_at.get(path, self.disabled)

    def scale_of(self, name: str, path: str) -> float:
        """Returns the factor beside an adapter's own scale at a layer."""
        return self._scales.get(name, {}).get(path, 1.0)

    # -- which adapters act --------------------------------------------------------------------------------------------

    def activate(self, names: Sequence[str], inference_mode: bool = False) -> None:
        """Sets the adapters that act; they are trained and no other is."""
        with refusals():
            for name in names:
                self.check(name)
            self._check_together(names)
            if self.merged:
                warnings.warn(
                    "Adapter cannot be set when the model is merged. Unmerging the model first.",
                    PeftWarning,
                    stacklevel=4,
                )
                self.unmerge()
            self.active = list(names)
            self._active_at.clear()
            self.sync()
            for name in self.peft_config:
                self._require(name, name in names and not inference_mode)

    def _check_together(self, names: Sequence[str]) -> None:
        """Two adapters that act cannot both have a copy of one module."""
        taken: dict[str, str] = {}
        for name in names:
            rows = [
                f"row {token} of {path}"
                for core in self.cores(name)
                if core != name
                for path, adapter in self.layers_of(core)
                for token in cast(Any, adapter.config).tokens
            ]
            kinds = {
                **dict.fromkeys(self.extras[name].modules, "ModulesToSaveWrapper"),
                **dict.fromkeys(self.extras[name].parameters, "the base's parameters"),
                **dict.fromkeys(rows, "TrainableTokensWrapper"),
            }
            for path, kind in kinds.items():
                if path in taken:
                    raise Wrong(
                        f"Only one adapter can be set at a time for {kind}: {taken[path]!r} and {name!r} both have "
                        f"{path}"
                    )
                taken[path] = name

    def _require(self, name: str, wanted: bool) -> None:
        """Sets whether an adapter is trained."""
        extras = self.extras[name]
        for _, adapter in self.layers(name):
            for parameter in adapter.parameters():
                parameter.requires_grad_(wanted)
        for module in extras.modules.values():
            for parameter in module.parameters():
                if parameter.is_floating_point():
                    parameter.requires_grad_(wanted)
        for parameter in extras.parameters.values():
            parameter.requires_grad_(wanted)

    def require(self, names: Sequence[str], wanted: bool) -> None:
        """Sets whether adapters are trained, whether they act or not."""
        with refusals():
            for name in names:
                self.check(name)
            for name in names:
                self._require(name, wanted)

    def enable(self, enabled: bool) -> None:
        """Switches all adapters on or off; while they are off, none is trained."""
        self.disabled = not enabled
        self._disabled_at.clear()
        self.sync()
        for name in self.peft_config:
            self._require(name, enabled and name in self.active)

    def snapshot(self) -> tuple[bool, dict[str, bool], list[nn.Parameter]]:
        """Returns which layers are switched off and what is trained, for :meth:`restore`."""
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        return self.disabled, dict(self._disabled_at), trained

    def restore(self, before: tuple[bool, dict[str, bool], list[nn.Parameter]]) -> None:
        """Switches adapters on and off as they were."""
        self.disabled, self._disabled_at = before[0], dict(before[1])
        self._mark()
        for parameter in before[2]:
            parameter.requires_grad_(True)

    def activate_at(self, path: str, names: Sequence[str], inference_mode: bool) -> None:
        """Sets the adapters that act on one layer; what PEFT's users do for each layer in turn."""
        with refusals():
            for name in names:
                self.check(name)
            if self.merged:
                self.unmerge()
        for name, adapter in self.adapters_at(path).items():
            for parameter in adapter.parameters():
                parameter.requires_grad_(name in names and not inference_mode)
        self._active_at[path] = list(names)
        everywhere = self.paths()
        if all(self._active_at.get(one, self.active) == list(names) for one in everywhere):
            self.active = list(names)
            self._active_at.clear()
        self._mark()

    def enable_at(self, path: str, enabled: bool) -> None:
        """Switches the adapters of one layer on or off."""
        self._disabled_at[path] = not enabled
        if all(self._disabled_at.get(one, self.disabled) != enabled for one in self.paths()):
            self.disabled = not enabled
            self._disabled_at.clear()
        self._mark()

    def scale_at(self, name: str, path: str, scale: float) -> None:
        """Sets the factor beside an adapter's own scale at one layer."""
        self._scales.setdefault(name, {})[path] = scale
        self._mark()

    # -- telling the core ----------------------------------------------------------------------------------------------

    def _mark(self) -> None:
        """Notes that the core has to be told: at once where all layers agree, else before the next call."""
        if self._active_at or self._disabled_at or any(self._scales.values()):
            if not self._dirty:
                self._dirty = True
                self._handle = self.model.register_forward_pre_hook(self._before_call, prepend=True)
        else:
            self.sync()

    def _before_call(self, module: nn.Module, args: Any) -> None:
        self.sync()

    def lend(self) -> None:
        """Notes that somebody has a base layer in hand, and may put it where the adapted one was (diffusers does)."""
        if self._lent is None:
            self._lent = self.model.register_forward_pre_hook(lambda module, args: self._reclaim(), prepend=True)

    def _reclaim(self) -> None:
        """Takes everything off once every adapted layer has been replaced by its base."""
        sites = [adapter.site for name in self.peft_config for _, adapter in self.layers(name)]
        if sites and all(module_at(self.model, site.path) is not site.module for site in sites):
            self.unload()
            self.model.__dict__.pop("peft_config", None)

    def bound(self) -> None:
        """Brings what a config bounds back into its bounds (constrained OFT), as PEFT does in each call."""
        for name, config in self.peft_config.items():
            if getattr(config, "coft", False):
                on_step(self.model, name, step=1, steps=1)

    def sync(self) -> None:
        """Tells the core which adapters act and how strongly."""
        if self._dirty:
            self._handle.remove()
            self._dirty = False
        self._swap([] if self.disabled else self.active)
        live = any(assembly.baked is not None for assembly in assemblies(self.model).values())
        if self.merged and not self.disabled:
            if not live:
                self._bake(self.merged)
            return
        if live:
            unbake(self.model)
        blend(self.model, self.strengths())

    def strengths(self) -> dict[str, Strength]:
        """Returns the blend of the core that stands for PEFT's state."""
        wanted: dict[str, Strength] = {}
        for name in self.peft_config:
            for core in self.cores(name):
                factors: dict[str, float] = {}
                for path, _ in self.layers_of(core):
                    acts = name in self.active_at(path) and not self.disabled_at(path)
                    factors[path] = self.scale_of(name, path) if acts else 0.0
                if any(factors.values()) or (not factors and name in self.active and not self.disabled):
                    wanted[core] = _strength(factors)
        return wanted

    def layers_of(self, core: str) -> Iterator[tuple[str, Adapter]]:
        """Iterates over the layers of one of the core's adapters."""
        for assembly in assemblies(self.model).values():
            if core in assembly.records:
                yield from assembly.adapters(core)

    def _swap(self, names: Sequence[str]) -> None:
        """Puts the parameters of the acting adapters in the base's place, or the base's own back."""
        for path, original in self._originals.items():
            _set_parameter(self.model, path, original)
        self._originals = {}
        for name in names:
            for path, parameter in self.extras[name].parameters.items():
                self._originals[path] = _get_parameter(self.model, path)
                _set_parameter(self.model, path, parameter)

    # -- merging -------------------------------------------------------------------------------------------------------

    def merge(self, names: Sequence[str] | None = None, *, safe: bool = False) -> None:
        """Folds adapters into the weights; those that are there already stay.

        Raises:
            Wrong: an adapter would make a weight infinite or NaN (with ``safe``).
        """
        wanted = list(self.active if names is None else names)
        with refusals():
            for name in wanted:
                self.check(name)
            fresh = [name for name in wanted if name not in self.merged]
            if not fresh:
                warnings.warn("All adapters are already merged, nothing to do.", PeftWarning, stacklevel=4)
                return
            if self.merged and any(assembly.baked is not None for assembly in assemblies(self.model).values()):
                unbake(self.model)
            together = [*self.merged, *fresh]
            try:
                self._bake(together)
                if safe:
                    self._check_finite(fresh)
            except BaseException:
                if any(assembly.baked is not None for assembly in assemblies(self.model).values()):
                    unbake(self.model)
                if self.merged:
                    self._bake(self.merged)
                raise
            self.merged = together

    def _bake(self, names: Sequence[str]) -> None:
        blend_: dict[str, Strength] = {}
        for name in names:
            for core in self.cores(name):
                blend_[core] = _strength({path: self.scale_of(name, path) for path, _ in self.layers_of(core)})
        bake(self.model, blend_)

    def _check_finite(self, names: Sequence[str]) -> None:
        for name in names:
            for path, adapter in self.layers(name):
                if not bool(torch.isfinite(adapter.site.weight).all()):
                    raise Wrong(
                        f"NaNs detected in the merged weights. The adapter {name} seems to be broken (at {path})"
                    )

    def unmerge(self) -> None:
        """Gives the base its weights back, bit for bit."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", PeftWarning, stacklevel=4)
            return
        self.merged = []
        self.sync()

    def merge_and_unload(self, names: Sequence[str] | None = None, *, safe: bool = False) -> nn.Module:
        """Makes the merged weights the base's own and takes everything off; copies of the active adapters stay."""
        wanted = list(self.active if names is None else names)
        with refusals():
            for name in wanted:
                self.check(name)
            self._check_together(wanted)
            if self.disabled:
                self.enable(True)
            if self.merged:
                wanted = list(dict.fromkeys([*self.merged, *wanted]))
            self.merge(wanted, safe=safe)
            kept = self._kept()
            self.merged = []
            unbake(self.model)
            modules = {path: module for name in wanted for path, module in self.extras[name].modules.items()}
            others = {path: one for name in wanted for path, one in self.extras[name].parameters.items()}
            for module in modules.values():
                module.requires_grad_(True)
            self.unload()
        for path, module in modules.items():
            above, _, last = path.rpartition(".")
            parent = self.model.get_submodule(above)
            parent._modules[last] = module
        for path, parameter in others.items():
            _set_parameter(self.model, path, parameter)
        for holder, table, key, tensor in kept:
            getattr(holder, table)[key] = tensor
        self._untie()
        return self.model

    def _kept(self) -> list[tuple[nn.Module, str, str, Tensor]]:
        """The merged tensors as they are now, and where each stands."""
        found: list[tuple[nn.Module, str, str, Tensor]] = []
        for assembly in assemblies(self.model).values():
            for path, held in assembly.originals.items():
                module = assembly.mounts[path].site.module
                for table, key, original in held:
                    now = getattr(module, table)[key]
                    if original is not None and isinstance(now, nn.Parameter):
                        now.requires_grad_(now.is_floating_point())
                    found.append((module, table, key, now))
        return found

    def _untie(self) -> None:
        """Says in the model's config that its embeddings are no longer tied, where a merge has untied them."""
        config = getattr(self.model, "config", None)
        if config is None or not getattr(config, "tie_word_embeddings", False):
            return
        ask = [getattr(self.model, name, None) for name in ("get_input_embeddings", "get_output_embeddings")]
        found = [one() for one in ask if callable(one)]
        if len(found) == 2 and None not in found and found[0].weight is not found[1].weight:
            config.tie_word_embeddings = False

    def _unmerged(self, doing: str) -> None:
        if self.merged:
            raise Wrong(f"cannot {doing} while {', '.join(self.merged)} is merged; call unmerge_adapter first")

    # -- per sample ----------------------------------------------------------------------------------------------------

    def sample_strengths(self, names: Sequence[str]) -> dict[str, Strength]:
        """Returns the blend in which sample i has the adapter ``names[i]`` alone."""
        wanted: dict[str, Strength] = {}
        for name in dict.fromkeys(names):
            if name == "__base__":
                continue
            for core in self.cores(name):
                check_known(self.model, core)
                factors = {path: self.scale_of(name, path) for path, _ in self.layers_of(core)}
                plain = _strength(factors)
                samples = [float(one == name) for one in names]
                wanted[core] = Strength(plain.value, blocks=dict(plain.blocks), samples=samples)
        return wanted

    def samples_for(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[str]:
        """Returns the adapter of each row of a call; beams of a sample stand in a row."""
        assert self.samples is not None
        x = next(one for one in (*args, *kwargs.values()) if isinstance(one, Tensor))
        times, rest = divmod(x.shape[0], len(self.samples))
        if rest or (times != 1 and not self.repeats):
            raise Wrong(f"adapter_names names {len(self.samples)} samples, and a module was called with {x.shape[0]}")
        return [name for name in self.samples for _ in range(times)]


def _strength(factors: Mapping[str, float]) -> Strength:
    values = set(factors.values())
    if len(values) <= 1:
        return Strength(values.pop() if values else 1.0)
    return Strength(1.0, blocks={"re:" + re.escape(path): factor for path, factor in factors.items() if factor != 1.0})


def random_start_of(injection: Injection, name: str) -> None:
    """Fills an adapter with random numbers where its config asks for that."""
    config = injection.peft_config[name]
    for _, adapter in injection.layers_of(name):
        random_start(config, adapter.tensors(), adapter.trained)


def _attach(model: nn.Module, config: AdapterConfig, name: str, calibrate: Any, original: Any) -> None:
    with any_rank():
        attach(model, config, name=name, seed=_seed(), calibrate=calibrate, original=original)


def _warn_unsavable(model: nn.Module, name: str) -> None:
    """Says before a training, and not after it, that its adapter is none that PEFT could read."""
    try:
        spelled(model, name, FORMATS["peft"])
    except DoesNotFit as reason:
        warnings.warn(
            f"save_pretrained will refuse this adapter ({reason}); what is trained can be saved with "
            f"studio.save(model.get_base_model(), 'adapter.safetensors', name={name!r})",
            PeftWarning,
            stacklevel=6,
        )


def _seed() -> int:
    """A seed from torch's own generator, so that ``torch.manual_seed`` decides the start, as in PEFT."""
    return int(torch.randint(2**31 - 1, ()).item())


def _get_parameter(model: nn.Module, path: str) -> nn.Parameter:
    above, _, last = path.rpartition(".")
    return cast(nn.Parameter, model.get_submodule(above)._parameters[last])


def _set_parameter(model: nn.Module, path: str, parameter: nn.Parameter) -> None:
    above, _, last = path.rpartition(".")
    model.get_submodule(above)._parameters[last] = parameter
