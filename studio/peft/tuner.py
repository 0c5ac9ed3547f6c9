"""The object that stands between a PEFT model and its base: ``LoraModel`` and its like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, cast

from torch import nn

from studio.adapters.training import on_step, penalty
from studio.peft.configs.config import PeftConfig, config_for
from studio.peft.injection import Injection
from studio.peft.kinds import PeftType, Wrong
from studio.peft.layers import INJECTION
from studio.peft.weighted import add_weighted

__all__ = [
    "PEFT_TYPE_TO_TUNER_MAPPING",
    "AdaLoraModel",
    "BaseTuner",
    "LoraModel",
    "inject_adapter_in_model",
    "tuner_for",
]


class BaseTuner(nn.Module):
    """A base and what is on it.

    Args:
        model: the base. peft_config: a config, or name to config. adapter_name: the adapter's name.
        low_cpu_mem_usage: accepted for PEFT's sake. autocast: keep half-precision adapters in fp32.
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
        injection = model.__dict__.get(INJECTION)
        fresh = injection is None
        injection = Injection(model) if injection is None else injection
        injection.add(adapter_name, config, autocast=autocast, calibrate=calibrate, original=original)
        if fresh and config.inference_mode:
            injection.require([adapter_name], False)
        self._take(model, injection)

    def _take(self, model: nn.Module, injection: Injection) -> None:
        self.model = model
        self.__dict__["injection"] = injection
        if not hasattr(type(model), "peft_config"):
            model.__dict__["peft_config"] = injection.peft_config

    @classmethod
    def around(cls, model: nn.Module, injection: Injection) -> BaseTuner:
        """Returns a tuner around a base that carries adapters already."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made._take(model, injection)
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
            return getattr(self.model, name)

    def _own(self) -> Injection:
        return cast(Injection, self.__dict__["injection"])

    @property
    def peft_config(self) -> dict[str, PeftConfig]:
        """Adapter name -> config."""
        return self._own().peft_config

    @property
    def active_adapters(self) -> list[str]:
        """The adapters that act."""
        return list(self._own().active)

    @property
    def active_adapter(self) -> list[str]:
        """The adapters that act."""
        return list(self._own().active)

    def inject_adapter(self, model: nn.Module, adapter_name: str, low_cpu_mem_usage: bool = False) -> None:
        """Attaches the adapter whose config stands in ``peft_config``."""
        config = self.peft_config.pop(adapter_name)
        self._own().add(adapter_name, config)

    def set_adapter(self, adapter_name: str | Sequence[str], inference_mode: bool = False) -> None:
        """Sets the adapters that act; they are trained and no other is.

        Raises:
            UnknownName: a name that no adapter has.
        """
        names = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
        self._own().activate(names, inference_mode)

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        """Sets whether adapters are trained, whether they act or not."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        self._own().require(names, requires_grad)

    def delete_adapter(self, adapter_name: str) -> None:
        """Takes an adapter off."""
        self._own().remove(adapter_name)

    def enable_adapter_layers(self) -> None:
        """Switches all adapters on."""
        self._own().enable(True)

    def disable_adapter_layers(self) -> None:
        """Switches all adapters off."""
        self._own().enable(False)

    def merge_adapter(self, adapter_names: Sequence[str] | None = None, safe_merge: bool = False) -> None:
        """Folds adapters into the weights; the originals are kept."""
        self._own().merge(adapter_names, safe=safe_merge)

    def unmerge_adapter(self) -> None:
        """Gives the base its weights back, bit for bit."""
        self._own().unmerge()

    def merge_and_unload(
        self, progressbar: bool = False, safe_merge: bool = False, adapter_names: Sequence[str] | None = None
    ) -> nn.Module:
        """Returns the base with adapters in its weights and nothing else on it."""
        model = self._own().merge_and_unload(adapter_names, safe=safe_merge)
        model.__dict__.pop("peft_config", None)
        return model

    def unload(self) -> nn.Module:
        """Returns the base as it was."""
        self._own().unload()
        self.model.__dict__.pop("peft_config", None)
        return self.model

    def add_weighted_adapter(
        self,
        adapters: Sequence[str],
        weights: Sequence[float],
        adapter_name: str,
        combination_type: str | None = None,
        svd_rank: int | None = None,
        svd_clamp: float | None = None,
        svd_full_matrices: bool = True,
        svd_driver: str | None = None,
        density: float | None = None,
        majority_sign_method: str = "total",
    ) -> None:
        """Makes one new adapter out of several.

        Args:
            adapters: their names. weights: one number for each. adapter_name: the new name.
            combination_type: "svd", "linear", "cat", "ties", "ties_svd", "dare_linear", "dare_ties", "dare_linear_svd",
                "dare_ties_svd", "magnitude_prune", "magnitude_prune_svd"; None: "svd" for LoRA, the weighted sum else.
            svd_rank: rank of the new adapter; None: the largest. svd_clamp: quantile at which factors are cut off.
            svd_full_matrices, svd_driver: accepted; they change how the same factors are found.
            density: part of the numbers that is kept (ties, dare, magnitude_prune).
            majority_sign_method: "total" or "frequency" (ties).

        Raises:
            Wrong: a name that is taken, an unknown type, or adapters that cannot be combined so.
        """
        add_weighted(
            self._own(), adapters, weights, adapter_name, combination_type, svd_rank=svd_rank, clamp=svd_clamp,
            density=density, sign=majority_sign_method,
        )  # fmt: skip

    def get_model_config(self, model: nn.Module) -> dict[str, Any]:
        """Returns the base's config as a table."""
        config = getattr(model, "config", {"model_type": "custom"})
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


def _class(name: str, word: str, prefix: str) -> type[BaseTuner]:
    body = {"word": word, "prefix": prefix, "__doc__": f"A base with {word} on it.", "__module__": __name__}
    return type(name, (BaseTuner,), body)


PEFT_TYPE_TO_TUNER_MAPPING: Final[dict[PeftType, type[BaseTuner]]] = {
    PeftType("LORA"): LoraModel,
    PeftType("ADALORA"): AdaLoraModel,
    PeftType("IA3"): _class("IA3Model", "IA3", "ia3_"),
    PeftType("LOHA"): _class("LoHaModel", "LOHA", "hada_"),
    PeftType("LOKR"): _class("LoKrModel", "LOKR", "lokr_"),
    PeftType("OFT"): _class("OFTModel", "OFT", "oft_"),
    PeftType("BOFT"): _class("BOFTModel", "BOFT", "boft_"),
    PeftType("HRA"): _class("HRAModel", "HRA", "hra_"),
    PeftType("ROAD"): _class("RoadModel", "ROAD", "road_"),
    PeftType("VERA"): _class("VeraModel", "VERA", "vera_lambda_"),
    PeftType("LN_TUNING"): _class("LNTuningModel", "LN_TUNING", "ln_tuning_"),
    PeftType("BEFT"): _class("BeftModel", "BEFT", "beft_"),
    PeftType("TRAINABLE_TOKENS"): _class("TrainableTokensModel", "TRAINABLE_TOKENS", "trainable_tokens_"),
}
"""PEFT's word for a method -> the class that stands around its bases."""


def tuner_for(word: str) -> type[BaseTuner]:
    """Returns the tuner class of a method."""
    config_for(word)
    return PEFT_TYPE_TO_TUNER_MAPPING.get(PeftType(word), BaseTuner)


def inject_adapter_in_model(
    peft_config: PeftConfig,
    model: nn.Module,
    adapter_name: str = "default",
    low_cpu_mem_usage: bool = False,
    state_dict: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Attaches an adapter to a model and returns the model itself.

    Args:
        peft_config: the config. model: any module. adapter_name: the adapter's name.
        low_cpu_mem_usage: accepted for PEFT's sake.
        state_dict: where given, the adapter's layers are those that its keys name, and not those of ``target_modules``.

    Raises:
        Wrong: a method that is no change of layers, a taken name, or targets that fit nothing.
    """
    if peft_config.is_prompt_learning:
        raise Wrong("`create_and_replace` does not support prompt learning and adaption prompt yet.")
    config: Any = peft_config
    if state_dict is not None:
        config = _targeted_by(peft_config, model, state_dict)
    tuner_for(str(peft_config.word))(model, config, adapter_name, low_cpu_mem_usage)
    injection = cast(Injection, model.__dict__[INJECTION])
    injection.peft_config[adapter_name] = peft_config
    return model


def _targeted_by(config: Any, model: nn.Module, tensors: Mapping[str, Any]) -> Any:
    """The config with the layers that the keys of a state dict name as its targets."""
    import copy

    from studio.files.spelling import part_of
    from studio.peft.tensors import PREFIX

    split = [part_of(key.removeprefix(PREFIX)) for key in tensors]
    names = sorted({found[0] for found in split if found is not None})
    if not names:
        raise Wrong("none of the keys of `state_dict` is the tensor of an adapter")
    made = copy.copy(config)
    made.target_modules = set(names)
    made.layers_to_transform = made.layers_pattern = None
    return made
