"""The object that stands between a PEFT model and its base: ``LoraModel`` and its like."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Final, cast

from torch import Tensor, nn

from studio.adapters.training import on_step, penalty
from studio.files.spelling import part_of
from studio.peft.configs import methods as _methods  # noqa: F401  (registers the configs)
from studio.peft.configs.checks import prefix_of
from studio.peft.configs.config import PEFT_TYPE_TO_CONFIG_MAPPING, PeftConfig, PromptLearningConfig, config_for
from studio.peft.configs.select import tied_with_embedding
from studio.peft.model.activity import disable_adapter_layers, enable_adapter_layers, set_adapter, set_requires_grad
from studio.peft.model.adding import add
from studio.peft.model.converting import supports_lora_conversion
from studio.peft.model.merging import merge_adapter, unmerge_adapter
from studio.peft.model.removing import delete_adapter, merge_and_unload, unload
from studio.peft.model.state import KEY, State, by_state, state_of
from studio.peft.model.weighted import add_weighted_adapter
from studio.peft.terms.errors import Wrong
from studio.peft.terms.types import PeftType

__all__ = [
    "PEFT_TYPE_TO_PREFIX_MAPPING",
    "PEFT_TYPE_TO_TUNER_MAPPING",
    "AdaLoraModel",
    "BaseTuner",
    "LoraModel",
    "base_of",
    "inject_adapter_in_model",
    "tuner_for",
    "tuner_of",
    "unwrapped",
]


class BaseTuner(nn.Module):
    """A base and what is on it.

    Args:
        model: the base. peft_config: a config, or name to config. adapter_name: the adapter's name.
        low_cpu_mem_usage: leave the adapter on the meta device until a file is read into it.
        autocast: keep half-precision adapters in fp32.
        calibrate, original: as in :func:`get_peft_model`.
    """

    word: ClassVar[str] = ""
    prefix: ClassVar[str] = ""

    def __init__(
        self,
        model: nn.Module,
        peft_config: PeftConfig | Mapping[str, PeftConfig],
        adapter_name: str,
        low_cpu_mem_usage: bool = False,
        *,
        autocast: bool = True,
        calibrate: Any = None,
        original: Any = None,
    ) -> None:
        super().__init__()
        config = peft_config[adapter_name] if isinstance(peft_config, Mapping) else peft_config
        base = unwrapped(model)
        state = base.__dict__.get(KEY) or State(base)
        add(state, adapter_name, config, autocast=autocast, waits=low_cpu_mem_usage, calibrate=calibrate,
            original=original)  # fmt: skip
        self._take(state)
        self.model = model

    def _take(self, state: State) -> None:
        self.model = state.model
        self.__dict__["state"] = state
        if not hasattr(type(state.model), "peft_config"):
            state.model.__dict__["peft_config"] = state.configs

    @classmethod
    def around(cls, state: State) -> BaseTuner:
        """Returns a tuner around a base that has a state already."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made._take(state)
        return made

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the base."""
        return self.model(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model":
                raise
            shared = {} if name.startswith("__") else self._state.shared(name)
            return shared or getattr(self.model, name)

    @property
    def _state(self) -> State:
        return cast(State, self.__dict__["state"])

    @property
    def peft_config(self) -> dict[str, PeftConfig]:
        """Adapter name -> config."""
        return self._state.configs

    @property
    def active_adapters(self) -> list[str]:
        """The adapters that act."""
        return self._state.active

    active_adapter = active_adapters

    def inject_adapter(self, model: nn.Module, adapter_name: str, low_cpu_mem_usage: bool = False) -> None:
        """Attaches the adapter whose config stands in ``peft_config``."""
        add(self._state, adapter_name, self.peft_config.pop(adapter_name))

    set_adapter = by_state(set_adapter)
    set_requires_grad = by_state(set_requires_grad)
    enable_adapter_layers = by_state(enable_adapter_layers)
    disable_adapter_layers = by_state(disable_adapter_layers)
    delete_adapter = by_state(delete_adapter)
    unload = by_state(unload)
    merge_adapter = by_state(merge_adapter)
    unmerge_adapter = by_state(unmerge_adapter)
    merge_and_unload = by_state(merge_and_unload)
    add_weighted_adapter = by_state(add_weighted_adapter)
    supports_lora_conversion = by_state(supports_lora_conversion)

    @property
    def targeted_module_names(self) -> list[str]:
        """The paths of the layers that carry adapters."""
        beside = self._beside()
        return [path for path in self._state.paths() if path not in beside]

    @property
    def targeted_parameter_names(self) -> list[str]:
        """The names of the parameters that carry adapters, where the configs name parameters and not layers."""
        beside = self._beside()
        return [beside[path] for path in self._state.paths() if path in beside]

    def _beside(self) -> dict[str, str]:
        return {path: name for extras in self._state.extras.values() for path, name in extras.beside.items()}

    def _get_module_names_tied_with_embedding(self) -> list[str]:
        return tied_with_embedding(self._state.model)

    @staticmethod
    def get_model_config(model: nn.Module) -> dict[str, Any]:
        """Returns the base's config as a table."""
        config = getattr(model, "config", {"model_type": "custom"})
        if dataclasses.is_dataclass(config) and not isinstance(config, type):
            return dataclasses.asdict(config)
        return cast("dict[str, Any]", config.to_dict() if hasattr(config, "to_dict") else config)


class LoraModel(BaseTuner):
    """A base with LoRA or DoRA on it."""

    word, prefix = "LORA", "lora_"


class AdaLoraModel(LoraModel):
    """A base with AdaLoRA on it."""

    word = "ADALORA"

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the base; while it is trained, a loss that it returns has AdaLoRA's penalty in it."""
        found = super().forward(*args, **kwargs)
        if self.training and getattr(found, "loss", None) is not None:
            for name in self.active_adapters:
                more = penalty(self.model, name)
                found.loss = found.loss if more is None else found.loss + more
        return found

    def update_and_allocate(self, global_step: int) -> None:
        """Does AdaLoRA's part of a training step: call it after ``backward`` and before ``zero_grad``.

        Args:
            global_step: steps done so far, this one too; ``total_step`` of the config is how many there will be.
        """
        for name in self.active_adapters:
            config: Any = self.peft_config[name]
            on_step(self.model, name, step=global_step, steps=config.total_step)


def _made(word: str, config: type[PeftConfig]) -> type[BaseTuner]:
    """The tuner class of a method that needs no code of its own, named as PEFT names it."""
    body = {
        "word": word,
        "prefix": prefix_of(config),
        "__doc__": f"A base with {word} on it.",
        "__module__": __name__,
    }
    return type(f"{config.__name__.removesuffix('Config')}Model", (BaseTuner,), body)


PEFT_TYPE_TO_TUNER_MAPPING: Final[dict[PeftType, type[BaseTuner]]] = {
    word: {"LORA": LoraModel, "ADALORA": AdaLoraModel}.get(word.value) or _made(word.value, config)
    for word, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()
    if not issubclass(config, PromptLearningConfig)
}
"""PEFT's word for a method -> the class that stands around its bases."""


PEFT_TYPE_TO_PREFIX_MAPPING: Final = {word: tuner.prefix for word, tuner in PEFT_TYPE_TO_TUNER_MAPPING.items()}
"""PEFT's word for a method -> what PEFT's names of its tensors begin with."""


def tuner_for(word: str) -> type[BaseTuner]:
    """Returns the tuner class of a method.

    Raises:
        Wrong: the studio does not have the method.
    """
    config_for(word)
    return PEFT_TYPE_TO_TUNER_MAPPING.get(PeftType(word), BaseTuner)


# -- what stands around a base -----------------------------------------------------------------------------------------


def unwrapped(model: nn.Module) -> nn.Module:
    """Takes off what ``torch.compile``, FSDP or DDP put around a model."""
    wraps = ("_orig_mod", "_fsdp_wrapped_module", "module")
    inner = next((model._modules[name] for name in wraps if name in model._modules and len(model._modules) == 1), None)
    return model if inner is None else unwrapped(inner)


def tuner_of(model: nn.Module) -> BaseTuner | None:
    """Returns the tuner inside a PEFT model, or None for a base."""
    inner = unwrapped(model)
    found = inner if isinstance(inner, BaseTuner) else inner._modules.get("base_model")
    return found if isinstance(found, BaseTuner) else None


def base_of(model: nn.Module) -> nn.Module:
    """Returns the base of a PEFT model, or the model itself."""
    tuner = tuner_of(model)
    return unwrapped(model if tuner is None else tuner.model)


def inject_adapter_in_model(
    peft_config: PeftConfig,
    model: nn.Module,
    adapter_name: str = "default",
    low_cpu_mem_usage: bool = False,
    state_dict: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """Attaches an adapter to a model and returns the model itself.

    Args:
        peft_config: the config. model: any module. adapter_name: the adapter's name.
        low_cpu_mem_usage: leave the adapter on the meta device until ``set_peft_model_state_dict`` fills it.
        state_dict: tensors ``(...)`` by PEFT's keys; where given, the adapter's layers are those that the keys name,
            and not those of ``target_modules``.

    Raises:
        Wrong: a method that is no change of layers, a taken name, or targets that fit nothing.
    """
    if peft_config.is_prompt_learning:
        raise Wrong("`create_and_replace` does not support prompt learning and adaption prompt yet.")
    config = peft_config if state_dict is None else _targeted_by(peft_config, state_dict)
    base = base_of(model)
    tuner_for(str(peft_config.word))(base, config, adapter_name, low_cpu_mem_usage)
    state_of(base).configs[adapter_name] = peft_config
    return model


def _targeted_by(config: Any, tensors: Mapping[str, Any]) -> Any:
    """The config with the layers that the keys of a state dict name as its targets."""
    split = [part_of(key.removeprefix("base_model.model.")) for key in tensors]
    names = {found[0] for found in split if found is not None}
    if not names:
        raise Wrong("none of the keys of `state_dict` is the tensor of an adapter")
    made = copy.copy(config)
    made.target_modules = names
    made.layers_to_transform = made.layers_pattern = None
    return made
