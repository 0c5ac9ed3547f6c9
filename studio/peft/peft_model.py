"""``PeftModel``: a base with adapters, under PEFT's names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar, Final, cast

from torch import nn

from studio.adapters import trainable
from studio.adapters.tokens.wiring import with_virtual
from studio.atomic import together
from studio.files.soft import HEADS
from studio.peft.configs.checks import check_convertible, note_name, note_starts
from studio.peft.configs.config import PeftConfig
from studio.peft.files.card import write_card
from studio.peft.files.filling import Keys, fill_state, install_state
from studio.peft.files.folder import load_peft_weights, write_folder
from studio.peft.model.activity import set_adapter, switched_off
from studio.peft.model.adding import add, cast_down, check_new
from studio.peft.model.names import names_of_tensors
from studio.peft.model.samples import batch_of, by_sample, check_tasks, repeated_rows
from studio.peft.model.shown import showing
from studio.peft.model.state import State, by_state
from studio.peft.model.status import TunerLayerStatus, TunerModelStatus, get_layer_status, get_model_status
from studio.peft.model.tuner import BaseTuner, tuner_for
from studio.peft.terms.errors import Wrong, refusals

__all__ = [
    "MODEL_TYPE_TO_PEFT_MODEL_MAPPING",
    "PeftMixedModel",
    "PeftModel",
    "PeftModelForCausalLM",
    "PeftModelForFeatureExtraction",
    "PeftModelForQuestionAnswering",
    "PeftModelForSeq2SeqLM",
    "PeftModelForSequenceClassification",
    "PeftModelForTokenClassification",
    "TunerLayerStatus",
    "TunerModelStatus",
    "get_layer_status",
    "get_model_status",
    "model_class",
]


class PeftModel(nn.Module):
    """A base with adapters.

    Args:
        model: the base; it is changed in place. peft_config: the first adapter's config.
        adapter_name: its name. autocast_adapter_dtype: keep half-precision adapters in fp32.
        low_cpu_mem_usage: leave the adapter on the meta device until a file is read into it.
        calibrate, original: as in :func:`get_peft_model`.

    Attributes:
        base_model: the object between this one and the base (``LoraModel``); ``base_model.model`` is the base.
        peft_config: adapter name -> config.
    """

    task: ClassVar[str] = ""
    """What this kind of model is for; the heads of that task are trained whole, where the model has them."""

    whole: ClassVar[bool] = False
    """Whether outputs have the columns of virtual tokens too, as PEFT's have for that kind of model."""

    def __init__(
        self,
        model: nn.Module,
        peft_config: PeftConfig,
        adapter_name: str = "default",
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        *,
        calibrate: Any = None,
        original: Any = None,
    ) -> None:
        super().__init__()
        self._with_heads(peft_config)
        make = tuner_for(str(peft_config.word))
        tuner = make(model, peft_config, adapter_name, low_cpu_mem_usage, autocast=autocast_adapter_dtype,
                     calibrate=calibrate, original=original)  # fmt: skip
        self._take(tuner, peft_config)
        self._prepare_checkpointing()

    def _take(self, tuner: BaseTuner, config: PeftConfig) -> None:
        self.base_model, self.peft_type = tuner, config.peft_type
        self.__class__ = showing(type(self), tuner.model)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__class__ = showing(type(self), self.base_model.model)

    def _prepare_checkpointing(self) -> None:
        base = self.get_base_model()
        if any(vars(module).get("gradient_checkpointing") is True for module in base.modules()):
            self._prepare_model_for_gradient_checkpointing(base)

    @classmethod
    def _with_heads(cls, config: Any) -> None:
        """Adds the heads that models of this kind may have to ``modules_to_save``, as PEFT does."""
        heads = HEADS.get(cls.task, ())
        if heads and config.task_type is None:
            config.task_type = cls.task  # by which it is known that a model may lack some of the heads
        if heads and hasattr(config, "modules_to_save"):
            config.modules_to_save = list(dict.fromkeys([*(config.modules_to_save or []), *heads]))

    @property
    def _state(self) -> State:
        return cast(State, self.base_model.__dict__["state"])

    @property
    def active_peft_config(self) -> PeftConfig:
        """The config of the adapter that acts."""
        return self.peft_config[self.active_adapter]

    @property
    def active_adapter(self) -> str:
        """The adapter that acts, the first of several."""
        return next(iter(self._state.active), "")

    @property
    def modules_to_save(self) -> set[str] | None:
        """Names of the modules that the adapters have copies of."""
        named = [getattr(config, "modules_to_save", None) or () for config in self.peft_config.values()]
        return {name for names in named for name in names} or None

    @property
    def has_active_enabled_adapter(self) -> bool:
        """Whether any adapter acts."""
        return bool(self._state.active) and not self._state.disabled

    def get_base_model(self) -> nn.Module:
        """Returns the base, which carries the adapters."""
        return self.base_model.model

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_model":
                raise
            return getattr(self.base_model, name)

    # -- PEFT's names --------------------------------------------------------------------------------------------------

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Iterates over names and parameters; an adapter's have PEFT's names."""
        names = names_of_tensors(self._state)
        for name, parameter in super().named_parameters("", recurse, remove_duplicate):
            name = names.get(name, name)
            yield (f"{prefix}.{name}" if prefix else name), parameter

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Returns all tensors; an adapter's have PEFT's names."""
        names, prefix = names_of_tensors(self._state), kwargs.get("prefix", "")
        found = super().state_dict(*args, **kwargs)
        for name in [name for name in found if name.removeprefix(prefix) in names]:
            found[prefix + names[name.removeprefix(prefix)]] = found.pop(name)
        return cast("dict[str, Any]", found)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Copies tensors in; an adapter's may have PEFT's names."""
        mine = {theirs: ours for ours, theirs in names_of_tensors(self._state).items()}
        return super().load_state_dict({mine.get(name, name): one for name, one in state_dict.items()}, *args, **kwargs)

    # -- numbers -------------------------------------------------------------------------------------------------------

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """Returns how many numbers are trained, and how many there are."""
        found = trainable(self.get_base_model())
        return found.trainable, found.total

    def print_trainable_parameters(self) -> None:
        """Prints how many numbers are trained, of how many."""
        print(trainable(self.get_base_model()))

    get_layer_status = get_layer_status
    get_model_status = get_model_status

    # -- running -------------------------------------------------------------------------------------------------------

    def forward(self, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> Any:
        """Calls the base.

        Args:
            args, kwargs: the base's own. adapter_names: the adapter of each sample; "__base__" is none.

        Raises:
            Wrong: a name that no adapter has, another number of names than samples, merged adapters, or a prompt of
                several tasks and no task_ids.
        """
        check_tasks(self._state, kwargs)
        columns = with_virtual(self.get_base_model()) if self.whole else nullcontext()
        with by_sample(self._state, adapter_names, batch_of(args, kwargs)), columns:
            return self.base_model(*args, **kwargs)

    def generate(self, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> Any:
        """Calls the base's ``generate``; ``adapter_names`` as in :meth:`forward`, beam search too."""
        base: Any = self.get_base_model()
        check_tasks(self._state, kwargs)
        if adapter_names is None:
            return base.generate(*args, **kwargs)
        samples = by_sample(self._state, adapter_names, batch_of(args, kwargs))
        with samples, repeated_rows(self._state, len(adapter_names)):
            return base.generate(*args, **kwargs)

    disable_adapter = by_state(switched_off)

    # -- adapters ------------------------------------------------------------------------------------------------------

    def add_adapter(
        self,
        adapter_name: str,
        peft_config: PeftConfig,
        low_cpu_mem_usage: bool = False,
        autocast_adapter_dtype: bool = True,
        *,
        calibrate: Any = None,
        original: Any = None,
    ) -> None:
        """Adds an adapter that does not act and is not trained until :meth:`set_adapter` names it.

        Raises:
            Wrong: the name is taken, or the config is of another method.
        """
        if peft_config.peft_type != self.peft_type and not isinstance(self, PeftMixedModel):
            raise Wrong(
                f"Cannot combine adapters with different peft types. Found {self.peft_type} and "
                f"{peft_config.peft_type}; use get_peft_model(..., mixed=True)"
            )
        with refusals():
            check_new(self._state, adapter_name, peft_config)
        note_name(peft_config, adapter_name)
        note_starts([peft_config, *self.peft_config.values()])
        self._with_heads(peft_config)
        add(
            self._state, adapter_name, peft_config, autocast=autocast_adapter_dtype, waits=low_cpu_mem_usage,
            calibrate=calibrate, original=original,
        )  # fmt: skip

    def set_adapter(self, adapter_name: str, inference_mode: bool = False) -> None:
        """Sets the adapter that acts; it is trained and no other is.

        Raises:
            Unknown: no adapter has that name. Wrong: several names, unless the model is a mixed one.
        """
        if not isinstance(adapter_name, str) and not isinstance(self, PeftMixedModel):
            raise Wrong("set_adapter of a PeftModel takes one name; model.base_model.set_adapter takes several")
        set_adapter(self._state, adapter_name, inference_mode)

    def load_adapter(
        self,
        model_id: str | Path,
        adapter_name: str,
        is_trainable: bool = False,
        torch_device: str | None = None,
        autocast_adapter_dtype: bool = True,
        ephemeral_gpu_offload: bool = False,
        low_cpu_mem_usage: bool = False,
        key_mapping: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> Keys:
        """Loads an adapter beside those that are there; it does not act until :meth:`set_adapter` names it.

        Under a name that is there the tensors go into that adapter, and what acts and is trained stays as it is.

        Args:
            model_id: a folder, or a name on the Hub. adapter_name: the name that it gets, or has.
            is_trainable: whether it is trained. key_mapping: expression -> replacement, for keys of the file; None: as
                the model says that its layers were called once.
            torch_device, autocast_adapter_dtype, ephemeral_gpu_offload, low_cpu_mem_usage: accepted; tensors are
                loaded in fp32 to where their layer is.
            kwargs: config, subfolder, revision, cache_dir, token, ignore_mismatched_sizes.

        Returns:
            The keys without a place, both lists empty unless ``ignore_mismatched_sizes`` is given.

        Raises:
            BadFile: no adapter is there. PartialLoad: a key that fits nothing, or one that is missing.
        """
        config = kwargs.pop("config", None)
        partial = bool(kwargs.pop("ignore_mismatched_sizes", False))
        hub = {name: kwargs.pop(name) for name in ("revision", "cache_dir", "token") if name in kwargs}
        subfolder = kwargs.pop("subfolder", None)
        _refuse(kwargs, ("device_map", "max_memory", "offload_dir", "offload_index", "use_safetensors"))
        with refusals():
            config = PeftConfig.strictly_from(model_id, subfolder, **hub) if config is None else config
            if key_mapping is None and not config.is_prompt_learning:  # the names that the model's layers once had
                key_mapping = getattr(self.get_base_model(), "_checkpoint_conversion_mapping", None)
            tensors = load_peft_weights(model_id, subfolder=subfolder, key_mapping=key_mapping, **hub)
            if adapter_name not in self.peft_config:
                note_starts([config, *self.peft_config.values()])
            if adapter_name in self.peft_config:
                found = fill_state(self._state, adapter_name, config, tensors, allow_partial=partial)
            else:
                found = install_state(
                    self._state, adapter_name, config, tensors, trainable=is_trainable, allow_partial=partial
                )
        if not autocast_adapter_dtype:
            cast_down(self._state, adapter_name)
        if not is_trainable:
            self.eval()
        return found

    @classmethod
    def from_pretrained(
        cls,
        model: nn.Module,
        model_id: str | Path,
        adapter_name: str = "default",
        is_trainable: bool = False,
        config: PeftConfig | None = None,
        autocast_adapter_dtype: bool = True,
        ephemeral_gpu_offload: bool = False,
        low_cpu_mem_usage: bool = False,
        key_mapping: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> PeftModel:
        """Puts a saved adapter on a base.

        Args:
            model: the base; it is changed in place.
            model_id, adapter_name, is_trainable, key_mapping, kwargs: as in :meth:`load_adapter`.
            config: the config; None: the one in the folder.

        Raises:
            BadFile: no adapter is there. PartialLoad: a key that fits nothing, or one that is missing.
            Wrong: a config that is none.
        """
        hub = {name: kwargs[name] for name in ("revision", "cache_dir", "token") if name in kwargs}
        with refusals():
            if config is None:
                config = PeftConfig.strictly_from(model_id, kwargs.get("subfolder"), **hub)
            elif not isinstance(config, PeftConfig):
                raise Wrong(f"The input config must be a PeftConfig, got {type(config).__name__}")
        if isinstance(model, PeftModel):
            model = model.get_base_model()
        wrapper = model_class(config) if cls is PeftModel else cls
        made = wrapper.__new__(wrapper)
        nn.Module.__init__(made)
        made._with_heads(config)
        try:
            made._take(tuner_for(config.word).around(State(model)), config)
            made.load_adapter(
                model_id, adapter_name, is_trainable, autocast_adapter_dtype=autocast_adapter_dtype,
                key_mapping=key_mapping, config=config, **kwargs,
            )  # fmt: skip
        except BaseException:
            model.__dict__.pop("peft_config", None)
            raise
        made._prepare_checkpointing()
        return made

    def save_pretrained(
        self,
        save_directory: str | Path,
        safe_serialization: bool = True,
        selected_adapters: Sequence[str] | None = None,
        save_embedding_layers: str | bool = "auto",
        is_main_process: bool = True,
        path_initial_model_for_weight_conversion: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Saves adapters: the one named "default" in the folder itself, each other in a folder of its name.

        Args:
            save_directory: the folder. safe_serialization: safetensors, else ``torch.save``.
            selected_adapters: which; None: all.
            save_embedding_layers: put the base's embeddings beside them; "auto": where an adapter changes them.
            is_main_process: whether to write at all.
            path_initial_model_for_weight_conversion: given, a start that is taken from the weights is worked into a
                plain pair of twice the rank; the folder that it names is not needed. Else it is saved as PEFT does.
            kwargs: ``state_dict``, whose values stand in for the model's (what FSDP has gathered); others are PEFT's
                and change nothing.

        Raises:
            Wrong: a name that no adapter has, or a file in the folder's place.
        """
        if Path(save_directory).is_file():
            raise Wrong(f"Provided path ({save_directory}) should be a directory, not a file")
        names = list(self.peft_config if selected_adapters is None else selected_adapters)
        unknown = sorted(set(names) - set(self.peft_config))
        if unknown:
            raise Wrong(f"You passed an invalid `selected_adapters` arguments, current supported adapter names are "
                        f"{list(self.peft_config)} - got {unknown}.")  # fmt: skip
        plain = path_initial_model_for_weight_conversion is not None
        if plain:
            check_convertible(self.peft_config[name] for name in names)
        if not is_main_process:
            return
        with together():
            for name in names:
                folder = Path(save_directory) if name == "default" else Path(save_directory, name)
                write_folder(self._state, name, folder, safe=safe_serialization, embeddings=save_embedding_layers,
                             plain=plain, given=kwargs.get("state_dict"))  # fmt: skip
            write_card(self._state, Path(save_directory))

    def create_or_update_model_card(self, output_dir: str | Path) -> None:
        """Writes ``README.md`` beside the adapter."""
        write_card(self._state, Path(output_dir))

    def push_to_hub(self, *args: Any, **kwargs: Any) -> None:
        """Refuses: the studio sends nothing anywhere.

        Raises:
            Wrong: always.
        """
        raise Wrong("push_to_hub is not implemented: save_pretrained, then upload the folder with huggingface_hub")

    def _prepare_model_for_gradient_checkpointing(self, model: nn.Module) -> None:
        """Makes the embeddings' outputs require gradients, without which checkpointed blocks get none."""
        found = cast(Any, model)
        if callable(getattr(found, "enable_input_require_grads", None)):
            found.enable_input_require_grads()
        elif callable(getattr(found, "get_input_embeddings", None)):
            found.get_input_embeddings().register_forward_hook(lambda _m, _i, output: output.requires_grad_(True))

    prepare_model_for_gradient_checkpointing = _prepare_model_for_gradient_checkpointing


def _refuse(kwargs: Mapping[str, Any], harmless: Sequence[str]) -> None:
    stray = sorted(name for name, value in kwargs.items() if name not in harmless and value is not None)
    if stray:
        raise Wrong(f"load_adapter does not know the argument {stray[0]!r}")


class PeftModelForSequenceClassification(PeftModel):
    """A classifier of texts with adapters; its head is trained whole."""

    task = "SEQ_CLS"


class PeftModelForTokenClassification(PeftModel):
    """A classifier of tokens with adapters; its head is trained whole."""

    task = "TOKEN_CLS"
    whole = True


class PeftModelForQuestionAnswering(PeftModel):
    """An extractive answerer with adapters; its head is trained whole."""

    task = "QUESTION_ANS"
    whole = True


class PeftModelForCausalLM(PeftModel):
    """A causal language model with adapters."""

    whole = True


class PeftModelForSeq2SeqLM(PeftModel):
    """An encoder-decoder language model with adapters."""


class PeftModelForFeatureExtraction(PeftModel):
    """An encoder with adapters."""

    whole = True


class PeftMixedModel(PeftModel):
    """A base with adapters of several methods; several can act together."""


MODEL_TYPE_TO_PEFT_MODEL_MAPPING: Final[dict[str, type[PeftModel]]] = {
    "SEQ_CLS": PeftModelForSequenceClassification,
    "SEQ_2_SEQ_LM": PeftModelForSeq2SeqLM,
    "CAUSAL_LM": PeftModelForCausalLM,
    "TOKEN_CLS": PeftModelForTokenClassification,
    "QUESTION_ANS": PeftModelForQuestionAnswering,
    "FEATURE_EXTRACTION": PeftModelForFeatureExtraction,
}
"""Task -> the class that a model with adapters is of."""


def model_class(config: PeftConfig) -> type[PeftModel]:
    """Returns the class of a model whose adapter is for the task of ``config``."""
    task = getattr(config.task_type, "value", config.task_type)
    return MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(str(task), PeftModel)
