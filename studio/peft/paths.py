"""PEFT's module paths: what can be imported from ``studio.peft.tuners.lora`` and its like, and where it really is.

The modules are made from the table below when they are imported. The same finder answers for ``peft.…`` after
``sys.modules["peft"] = studio.peft``: whatever is imported under that name is our module itself, and no second copy.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Final

from studio.peft.configs.config import PEFT_TYPE_TO_CONFIG_MAPPING
from studio.peft.model.tuner import PEFT_TYPE_TO_TUNER_MAPPING

__all__ = ["PATHS", "install"]

ROOT: Final = "studio.peft"

_STATE_DICTS: Final = (
    "get_peft_model_state_dict set_peft_model_state_dict get_base_model_state_dict set_base_model_state_dict"
)
_OTHER: Final = {
    ".model.copies": "AuxiliaryTrainingWrapper ModulesToSaveWrapper",
    ".modules": "TrainableTokensWrapper _get_submodules fsdp_auto_wrap_policy infer_device transpose",
    ".precision": "cast_mixed_precision_params prepare_model_for_kbit_training",
}
_FILES: Final = {"studio.files.peft": "CONFIG_NAME=CONFIG_FILE SAFETENSORS_WEIGHTS_NAME=TENSOR_FILE"}
_LORA: Final = "CordaConfig EvaConfig LoftQConfig LoraConfig LoraRuntimeConfig"

PATHS: Final[dict[str, Mapping[str, str]]] = {
    "config": {".configs.config": "PeftConfig PromptLearningConfig"},
    "functional": {
        ".model.tuner": "inject_adapter_in_model",
        ".state_dicts": "get_peft_model_state_dict set_peft_model_state_dict",
        ".switching": "delete_adapter set_adapter set_requires_grad",
    },
    "helpers": {".auto": "check_if_peft_model", ".switching": "disable_input_dtype_casting rescale_adapter_scale"},
    "mapping": {
        ".configs.config": "PEFT_TYPE_TO_CONFIG_MAPPING get_peft_config",
        ".model.tuner": "PEFT_TYPE_TO_TUNER_MAPPING inject_adapter_in_model",
    },
    "mapping_func": {".get_model": "get_peft_model", ".peft_model": "MODEL_TYPE_TO_PEFT_MODEL_MAPPING"},
    "mixed_model": {".peft_model": "PeftMixedModel"},
    "tuners": {},
    "tuners.lora": {".configs.methods": _LORA, ".model.layers": "LoraLayer"},
    "tuners.lora.config": {".configs.methods": _LORA},
    "tuners.lora.layer": {".model.layers": "LoraLayer"},
    "tuners.loha": {".model.layers": "LoHaLayer"},
    "tuners.loha.layer": {".model.layers": "LoHaLayer"},
    "tuners.lokr": {".model.layers": "LoKrLayer"},
    "tuners.lokr.layer": {".model.layers": "LoKrLayer", "studio.adapters.methods.lokr": "factorization=peft_split"},
    "tuners.tuners_utils": {".model.layers": "BaseTunerLayer", ".model.tuner": "BaseTuner"},
    "utils": {
        **_FILES,
        **_OTHER,
        ".files.folder": "load_peft_weights",
        ".state_dicts": _STATE_DICTS,
        ".terms.types": "PeftType TaskType",
    },
    "utils.constants": _FILES,
    "utils.hotswap": {
        ".hotswap": "check_hotswap_configs_compatible hotswap_adapter hotswap_adapter_from_state_dict "
        "prepare_model_for_compiled_hotswap"
    },
    "utils.other": _OTHER,
    "utils.peft_types": {".terms.types": "PeftType TaskType"},
    "utils.save_and_load": {".files.folder": "load_peft_weights", ".state_dicts": _STATE_DICTS},
    "utils.transformers_weight_conversion": {".files.renaming": "build_peft_weight_mapping"},
}
"""Path below ``peft`` -> our module, relative to this package -> its names; ``A=B`` gives our ``B`` PEFT's name ``A``.

Every method has ``tuners.<word>`` beside these, with its config and its tuner.
"""


def _methods() -> Mapping[str, dict[str, Any]]:
    """PEFT's path of each method -> its config class and its tuner class, by name."""
    found = {}
    for word, config in PEFT_TYPE_TO_CONFIG_MAPPING.items():
        tuner = PEFT_TYPE_TO_TUNER_MAPPING.get(word)
        classes: list[type] = [config] if tuner is None else [config, tuner]
        found[f"tuners.{word.value.lower()}"] = {one.__name__: one for one in classes}
    return found


def _names(path: str) -> dict[str, Any]:
    """What can be imported from one of PEFT's paths."""
    methods = _methods()
    found = dict(methods.get(path, {}))
    if path == "tuners":
        found = {name: one for names in methods.values() for name, one in names.items()}
    for home, names in PATHS.get(path, {}).items():
        module = importlib.import_module(home, ROOT)
        for theirs, _, ours in (name.partition("=") for name in names.split()):
            found[theirs] = getattr(module, ours or theirs)
    return found


class _Finder(MetaPathFinder, Loader):
    """Finds the modules of the table, and every module of this package under another name of the package."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        above, _, last = fullname.rpartition(".")
        parent = getattr(sys.modules.get(above), "__name__", "")
        if parent != ROOT and not parent.startswith(ROOT + "."):
            return None
        name = f"{parent}.{last}"
        below = name.removeprefix(ROOT + ".")
        if name != fullname:
            known = importlib.util.find_spec(name) is not None
            return ModuleSpec(fullname, self, loader_state=name) if known else None
        if below in PATHS or below in _methods():
            return ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        if spec.loader_state is None:
            return ModuleType(spec.name)
        module = importlib.import_module(spec.loader_state)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        assert spec is not None
        if spec.loader_state is not None:  # ours under another name: it stays what it was
            module.__spec__ = spec.loader_state
            return
        path = spec.name.removeprefix(ROOT + ".")
        found = _names(path)
        module.__dict__.update(found, __doc__=f"``peft.{path}``.", __all__=sorted(found))


def install() -> None:
    """Makes PEFT's module paths importable below this package."""
    if not any(type(one).__module__ == __name__ for one in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
