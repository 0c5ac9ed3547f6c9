"""PEFT's public names over the studio's core: a script written for PEFT runs when its import line says ``studio.peft``.

Nothing here computes: configs are translated by the tables that the methods carry, models are changed by the core's
verbs, files are read and written by ``studio.files``. The product never imports ``peft``.

``terms`` has PEFT's words, errors and folders; ``configs`` its configs; ``model`` what is on a base beside what the
core keeps, and what each verb does with it; ``files`` an adapter's tensors and folder. What a script calls stands
beside them, and ``paths`` says what is found under PEFT's own module paths.
"""

import importlib
from typing import Any

from studio.peft import paths
from studio.peft.absent import ABSENT
from studio.peft.auto import (
    AutoPeftModel,
    AutoPeftModelForCausalLM,
    AutoPeftModelForFeatureExtraction,
    AutoPeftModelForQuestionAnswering,
    AutoPeftModelForSeq2SeqLM,
    AutoPeftModelForSequenceClassification,
    AutoPeftModelForTokenClassification,
)
from studio.peft.configs import methods
from studio.peft.configs.config import PEFT_TYPE_TO_CONFIG_MAPPING, PeftConfig, PromptLearningConfig, get_peft_config
from studio.peft.files.folder import load_peft_weights
from studio.peft.get_model import get_peft_model
from studio.peft.listed import LISTED
from studio.peft.model.status import get_layer_status, get_model_status
from studio.peft.model.tuner import PEFT_TYPE_TO_TUNER_MAPPING, BaseTuner, LoraModel, inject_adapter_in_model
from studio.peft.peft_model import (
    MODEL_TYPE_TO_PEFT_MODEL_MAPPING,
    PeftMixedModel,
    PeftModel,
    PeftModelForCausalLM,
    PeftModelForFeatureExtraction,
    PeftModelForQuestionAnswering,
    PeftModelForSeq2SeqLM,
    PeftModelForSequenceClassification,
    PeftModelForTokenClassification,
)
from studio.peft.precision import cast_mixed_precision_params, prepare_model_for_kbit_training
from studio.peft.state_dicts import (
    get_base_model_state_dict,
    get_peft_model_state_dict,
    set_base_model_state_dict,
    set_peft_model_state_dict,
)
from studio.peft.terms.errors import NoMatchingPeftModuleError, PeftError, PeftWarning
from studio.peft.terms.types import VERSION, PeftType, TaskType

__version__ = VERSION
"""The version of PEFT whose names these are; programs that ask which PEFT they have find it here."""

__all__ = [
    "MODEL_TYPE_TO_PEFT_MODEL_MAPPING",
    "PEFT_TYPE_TO_CONFIG_MAPPING",
    "PEFT_TYPE_TO_TUNER_MAPPING",
    "AutoPeftModel",
    "AutoPeftModelForCausalLM",
    "AutoPeftModelForFeatureExtraction",
    "AutoPeftModelForQuestionAnswering",
    "AutoPeftModelForSeq2SeqLM",
    "AutoPeftModelForSequenceClassification",
    "AutoPeftModelForTokenClassification",
    "BaseTuner",
    "LoraModel",
    "NoMatchingPeftModuleError",
    "PeftConfig",
    "PeftError",
    "PeftMixedModel",
    "PeftModel",
    "PeftModelForCausalLM",
    "PeftModelForFeatureExtraction",
    "PeftModelForQuestionAnswering",
    "PeftModelForSeq2SeqLM",
    "PeftModelForSequenceClassification",
    "PeftModelForTokenClassification",
    "PeftType",
    "PeftWarning",
    "PromptLearningConfig",
    "TaskType",
    "cast_mixed_precision_params",
    "get_base_model_state_dict",
    "get_layer_status",
    "get_model_status",
    "get_peft_config",
    "get_peft_model",
    "get_peft_model_state_dict",
    "inject_adapter_in_model",
    "load_peft_weights",
    "prepare_model_for_kbit_training",
    "set_base_model_state_dict",
    "set_peft_model_state_dict",
]

__all__ += methods.names()
paths.install()


def __getattr__(name: str) -> Any:
    if name in paths.PATHS or name == "optimizers":
        return importlib.import_module(f"studio.peft.{name}")
    if name in methods.names():
        return getattr(methods, name)
    if name not in LISTED["peft"] and name not in ABSENT:
        raise AttributeError(f"module 'studio.peft' has no attribute {name!r}")
    globals()[name] = paths.lookup("peft", name)
    return globals()[name]
