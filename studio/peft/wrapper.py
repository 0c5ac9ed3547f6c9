"""``PeftModel``: a base with adapters, under PEFT's names."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final, cast

from torch import Tensor, nn

from studio.adapters import Adapter, blended, sample_rows, trainable
from studio.peft.card import write_card
from studio.peft.configs.config import PeftConfig
from studio.peft.folder import load_peft_weights, write_folder
from studio.peft.injection import Injection
from studio.peft.kinds import Wrong, refusals
from studio.peft.layers import peft_name
from studio.peft.status import TunerLayerStatus, TunerModelStatus, get_layer_status, get_model_status
from studio.peft.tensors import Keys, install_state
from studio.peft.tuner import tuner_for

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
]

_BATCHES: Final = ("input_ids", "inputs_embeds", "decoder_input_ids", "decoder_inputs_embeds", "pixel_values", "X")


class PeftModel(nn.Module):
    """A base with adapters.

    Args:
        model: the base; it is changed in place. peft_config: the first adapter's config.
        adapter_name: its name. autocast_adapter_dtype: keep half-precision adapters in fp32.
        low_cpu_mem_usage: accepted for PEFT's sake. calibrate, original: as in :func:`get_peft_model`.

    Attributes:
        base_model: the object between this one and the base (``LoraModel``); ``base_model.model`` is the base.
        peft_config: adapter name -> config.
    """

    heads: ClassVar[tuple[str, ...]] = ()
    """Modules of this kind of model that are trained whole, where the model has them."""

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
        self._with_heads(model, peft_config)
        kind = tuner_for(str(peft_config.word))
        self.base_model = kind(
            model, peft_config, adapter_name, low_cpu_mem_usage, autocast=autocast_adapter_dtype, calibrate=calibrate,
            original=original,
        )  # fmt: skip
        self._begin(peft_config)

    def _begin(self, config: PeftConfig) -> None:
        self.peft_type = config.peft_type
        base = self.get_base_model()
        if any(vars(module).get("gradient_checkpointing") is True for module in base.modules()):
            self._prepare_model_for_gradient_checkpointing(base)

    @classmethod
    def _with_heads(cls, model: nn.Module, config: Any) -> None:
        """Adds the modules that belong to this kind of model to ``modules_to_save``, if the model has them."""
        have = {name.rpartition(".")[2] for name, _ in model.named_modules()}
        heads = [name for name in cls.heads if name in have]
        if heads and hasattr(config, "modules_to_save"):
            config.modules_to_save = list(dict.fromkeys([*(config.modules_to_save or []), *heads]))

    @property
    def injection(self) -> Injection:
        """What is on the base."""
        return cast(Injection, self.base_model.__dict__["injection"])

    @property
    def peft_config(self) -> dict[str, PeftConfig]:
        """Adapter name -> config."""
        return self.injection.peft_config

    @property
    def active_peft_config(self) -> PeftConfig:
        """The config of the adapter that acts."""
        return self.peft_config[self.active_adapter]

    @property
    def active_adapters(self) -> list[str]:
        """The adapters that act."""
        return list(self.injection.active)

    @property
    def active_adapter(self) -> str:
        """The adapter that acts, the first of several."""
        return self.injection.active[0] if self.injection.active else ""

    @property
    def modules_to_save(self) -> set[str] | None:
        """Names of the modules that the adapters have copies of."""
        found = {
            name for config in self.peft_config.values() for name in getattr(config, "modules_to_save", None) or ()
        }
        return found or None

    @property
    def has_active_enabled_adapter(self) -> bool:
        """Whether any adapter acts."""
        return bool(self.injection.active) and not self.injection.disabled

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

    def _renamed(self) -> dict[str, str]:
        """The core's names of the adapters' tensors -> PEFT's."""
        found: dict[str, str] = {}
        for name in self.peft_config:
            for core in self.injection.cores(name):
                for path, adapter in self.injection.layers_of(core):
                    owner, held = path, "adapters"
                    if adapter.site.hosting == "owner":  # a bare parameter, whose path ends in its name
                        owner, _, parameter = path.rpartition(".")
                        held = f"adapters.{parameter}"
                    outer = "token_adapter" if core != name else _wrapped(self.get_base_model(), adapter, name)
                    for key in adapter.tensors():
                        mine = _dotted("base_model.model", owner, held, core, key)
                        found[mine] = _dotted("base_model.model", owner, outer, peft_name(adapter, key).format(name))
        return found

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Iterates over names and parameters; an adapter's have PEFT's names."""
        names = self._renamed()
        for name, parameter in super().named_parameters("", recurse, remove_duplicate):
            name = names.get(name, name)
            yield (f"{prefix}.{name}" if prefix else name), parameter

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Returns all tensors; an adapter's have PEFT's names."""
        names, prefix = self._renamed(), kwargs.get("prefix", "")
        found = super().state_dict(*args, **kwargs)
        for name in [name for name in found if name.removeprefix(prefix) in names]:
            found[prefix + names[name.removeprefix(prefix)]] = found.pop(name)
        return cast("dict[str, Any]", found)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Copies tensors in; an adapter's may have PEFT's names."""
        mine = {theirs: ours for ours, theirs in self._renamed().items()}
        return super().load_state_dict({mine.get(name, name): one for name, one in state_dict.items()}, *args, **kwargs)

    # -- numbers -------------------------------------------------------------------------------------------------------

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """Returns how many numbers are trained, and how many there are."""
        found = trainable(self.get_base_model())
        return found.trainable, found.total

    def print_trainable_parameters(self) -> None:
        """Prints how many numbers are trained, of how many."""
        print(trainable(self.get_base_model()))

    def get_layer_status(self) -> list[TunerLayerStatus]:
        """Returns the state of every adapted layer."""
        return get_layer_status(self)

    def get_model_status(self) -> TunerModelStatus:
        """Returns the state of the whole model."""
        return get_model_status(self)

    # -- running -------------------------------------------------------------------------------------------------------

    def forward(self, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> Any:
        """Calls the base.

        Args:
            args, kwargs: the base's own. adapter_names: the adapter of each sample; "__base__" is none.

        Raises:
            Wrong: a name that no adapter has, another number of names than samples, or merged adapters.
        """
        with self._by_sample(adapter_names, _batch_of(args, kwargs)):
            return self.base_model(*args, **kwargs)

    def generate(self, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> Any:
        """Calls the base's ``generate``; ``adapter_names`` as in :meth:`forward`, beam search too."""
        base = cast(Any, self.get_base_model())
        if adapter_names is None:
            return base.generate(*args, **kwargs)
        with self._by_sample(adapter_names, _batch_of(args, kwargs)), self._repeated_rows(len(adapter_names)):
            return base.generate(*args, **kwargs)

    @contextmanager
    def _by_sample(self, names: Sequence[str] | None, batch: int | None) -> Iterator[None]:
        if names is None:
            yield
            return
        injection = self.injection
        names = ["__base__"] * len(names) if injection.disabled else list(names)
        with refusals():
            unknown = sorted({name for name in names if name != "__base__" and name not in self.peft_config})
            if unknown:
                raise Wrong(
                    f"Trying to infer with non-existing adapter(s): {', '.join(unknown)} (there are: "
                    f"{', '.join(self.peft_config)}, and __base__)"
                )
            if injection.merged:
                raise Wrong(
                    "Cannot pass `adapter_names` when there are merged adapters, please call `unmerge_adapter` first."
                )
            if batch is not None and batch != len(names):
                raise Wrong(
                    "Length of `adapter_names` should be the same as the number of inputs, but got "
                    f"{len(names)} and {batch} respectively."
                )
            biased = [name for name in dict.fromkeys(names) if name != "__base__" and injection.extras[name].parameters]
            if biased or any(injection.extras[name].parameters for name in injection.active):
                raise Wrong("adapter_names cannot be mixed in a batch with adapters that replace biases of the base")
        before, injection.samples = injection.samples, names
        try:
            with refusals(), blended(self.get_base_model(), injection.sample_strengths(names)):
                yield
        finally:
            injection.samples = before

    @contextmanager
    def _repeated_rows(self, samples: int) -> Iterator[None]:
        """While it lasts, a batch with several rows per sample has them in a row, as generation makes beams."""
        base = cast(Any, self.get_base_model())
        encoder = base.get_encoder() if getattr(getattr(base, "config", None), "is_encoder_decoder", False) else None
        opened: list[contextlib.AbstractContextManager[None]] = []

        def begin(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            rows = _batch_of(args, kwargs)
            times = 1 if rows is None else rows // samples
            context = sample_rows(base, [row // times for row in range(samples * times)] if times > 1 else None)
            context.__enter__()
            opened.append(context)

        def end(module: nn.Module, args: Any, output: Any) -> None:
            opened.pop().__exit__(None, None, None)

        handles = []
        for module in [base] + ([encoder] if encoder is not None else []):
            handles.append(module.register_forward_pre_hook(begin, with_kwargs=True, prepend=True))
            handles.append(module.register_forward_hook(end, always_call=True))
        self.injection.repeats = True
        try:
            yield
        finally:
            self.injection.repeats = False
            for handle in handles:
                handle.remove()
            while opened:
                opened.pop().__exit__(None, None, None)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Switches all adapters off while the context lasts; what was before comes back, after an error too."""
        injection = self.injection
        before = injection.snapshot()
        injection.enable(False)
        try:
            yield
        finally:
            injection.restore(before)

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
        if peft_config.peft_type != self.peft_type and type(self) is not PeftMixedModel:
            raise Wrong(
                f"Cannot combine adapters with different peft types. Found {self.peft_type} and "
                f"{peft_config.peft_type}; use get_peft_model(..., mixed=True)"
            )
        with refusals():
            self.injection.check_new(adapter_name, peft_config)
        self._with_heads(self.get_base_model(), peft_config)
        self.injection.add(
            adapter_name, peft_config, autocast=autocast_adapter_dtype, calibrate=calibrate, original=original
        )

    def set_adapter(self, adapter_name: str, inference_mode: bool = False) -> None:
        """Sets the adapter that acts; it is trained and no other is.

        Raises:
            UnknownName: no adapter has that name.
        """
        if isinstance(adapter_name, str):
            self.injection.activate([adapter_name], inference_mode)
        elif type(self) is PeftMixedModel:
            self.injection.activate(list(adapter_name), inference_mode)
        else:
            raise Wrong("set_adapter of a PeftModel takes one name; model.base_model.set_adapter takes several")

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        """Sets whether adapters are trained, whether they act or not."""
        self.base_model.set_requires_grad(adapter_names, requires_grad)

    def delete_adapter(self, adapter_name: str) -> None:
        """Takes an adapter off.

        Raises:
            UnknownName: no adapter has that name. Wrong: it is merged.
        """
        self.injection.remove(adapter_name)

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

        Args:
            model_id: a folder, or a name on the Hub. adapter_name: the name that it gets.
            is_trainable: whether it is trained. key_mapping: expression -> replacement, for keys of the file.
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
            config = PeftConfig.from_pretrained(model_id, subfolder, **hub) if config is None else config
            tensors = load_peft_weights(model_id, subfolder=subfolder, key_mapping=key_mapping, **hub)
            found = install_state(
                self.injection, adapter_name, config, tensors, trainable=is_trainable, partial=partial
            )
        if not autocast_adapter_dtype:
            self.injection._cast_down(adapter_name)
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
        """
        hub = {name: kwargs[name] for name in ("revision", "cache_dir", "token") if name in kwargs}
        with refusals():
            if config is None:
                config = PeftConfig.from_pretrained(model_id, kwargs.get("subfolder"), **hub)
            elif not isinstance(config, PeftConfig):
                raise Wrong(f"The input config must be a PeftConfig, got {type(config).__name__}")
        if isinstance(model, PeftModel):
            model = model.get_base_model()
        kind = model_class(config) if cls is PeftModel else cls
        made = kind.__new__(kind)
        nn.Module.__init__(made)
        made._with_heads(model, config)
        made.base_model = tuner_for(config.word).around(model, Injection(model))
        made.peft_type = config.peft_type
        try:
            made.load_adapter(
                model_id, adapter_name, is_trainable, autocast_adapter_dtype=autocast_adapter_dtype,
                key_mapping=key_mapping, config=config, **kwargs,
            )  # fmt: skip
        except BaseException:
            model.__dict__.pop("peft_config", None)
            raise
        made._begin(config)
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
            path_initial_model_for_weight_conversion: not needed; a start that is taken from the weights is saved as a
                plain pair already.
            kwargs: accepted are ``state_dict=None`` and ``max_shard_size``.

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
        if not is_main_process:
            return
        for name in names:
            folder = Path(save_directory) if name == "default" else Path(save_directory, name)
            folder.mkdir(parents=True, exist_ok=True)
            write_folder(self.injection, name, folder, safe=safe_serialization, embeddings=save_embedding_layers)
        write_card(self, Path(save_directory))

    # -- merging -------------------------------------------------------------------------------------------------------

    def create_or_update_model_card(self, output_dir: str | Path) -> None:
        """Writes ``README.md`` beside the adapter."""
        write_card(self, Path(output_dir))

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


def _dotted(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def _wrapped(base: nn.Module, adapter: Adapter, name: str) -> str:
    """How far inside PEFT's wrappers an adapter of a bare parameter is: one for each that follows on its module."""
    site = adapter.site
    if site.hosting != "owner":
        return ""
    held = cast(Any, site.module._modules["adapters"])._modules
    beside = [one for one in site.module._parameters if one in held and name in held[one]._modules]
    return ".".join(["base_layer"] * (len(beside) - 1 - beside.index(site.weight_name)))


def _refuse(kwargs: Mapping[str, Any], harmless: Sequence[str]) -> None:
    stray = sorted(name for name, value in kwargs.items() if name not in harmless and value is not None)
    if stray:
        raise Wrong(f"load_adapter does not know the argument {stray[0]!r}")


def _batch_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int | None:
    """The rows of a call, where a tensor among its arguments shows them."""
    for name in _BATCHES:
        if isinstance(kwargs.get(name), Tensor):
            return int(kwargs[name].shape[0])
    first = next((one for one in args if isinstance(one, Tensor) and one.dim()), None)
    return None if first is None else int(first.shape[0])


class PeftModelForSequenceClassification(PeftModel):
    """A classifier of texts with adapters; its head is trained whole."""

    heads = ("classifier", "score")


class PeftModelForTokenClassification(PeftModel):
    """A classifier of tokens with adapters; its head is trained whole."""

    heads = ("classifier", "score")


class PeftModelForQuestionAnswering(PeftModel):
    """An extractive answerer with adapters; its head is trained whole."""

    heads = ("qa_outputs",)


class PeftModelForCausalLM(PeftModel):
    """A causal language model with adapters."""


class PeftModelForSeq2SeqLM(PeftModel):
    """An encoder-decoder language model with adapters."""


class PeftModelForFeatureExtraction(PeftModel):
    """An encoder with adapters."""


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
