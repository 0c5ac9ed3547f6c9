"""PEFT's public names over the studio's core: a script written for PEFT runs when its import line says ``studio.peft``.

Nothing here computes: configs are translated by the tables that the methods carry, models are changed by the core's
verbs, files are read and written by ``studio.files``. The product never imports ``peft``.
"""

import importlib
from typing import TYPE_CHECKING, Any

from studio.peft.automatic import (
    AutoPeftModel,
    AutoPeftModelForCausalLM,
    AutoPeftModelForFeatureExtraction,
    AutoPeftModelForQuestionAnswering,
    AutoPeftModelForSeq2SeqLM,
    AutoPeftModelForSequenceClassification,
    AutoPeftModelForTokenClassification,
)
from studio.peft.configs.config import PEFT_TYPE_TO_CONFIG_MAPPING, PeftConfig, PromptLearningConfig, get_peft_config
from studio.peft.configs.methods import (
    AdaLoraConfig,
    BeftConfig,
    BOFTConfig,
    CordaConfig,
    EvaConfig,
    HRAConfig,
    IA3Config,
    LNTuningConfig,
    LoftQConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    LoraRuntimeConfig,
    MultitaskPromptTuningConfig,
    MultitaskPromptTuningInit,
    OFTConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptEncoderReparameterizationType,
    PromptTuningConfig,
    PromptTuningInit,
    RoadConfig,
    TrainableTokensConfig,
    VeraConfig,
)
from studio.peft.contexts import (
    cast_mixed_precision_params,
    get_base_model_state_dict,
    get_peft_model_state_dict,
    prepare_model_for_kbit_training,
    set_base_model_state_dict,
    set_peft_model_state_dict,
)
from studio.peft.folder import load_peft_weights
from studio.peft.kinds import VERSION, NoMatchingPeftModuleError, PeftError, PeftType, PeftWarning, TaskType
from studio.peft.mapping_func import get_peft_model
from studio.peft.status import get_layer_status, get_model_status
from studio.peft.tuner import PEFT_TYPE_TO_TUNER_MAPPING, BaseTuner, LoraModel, inject_adapter_in_model
from studio.peft.wrapper import (
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

if TYPE_CHECKING:
    from collections.abc import Mapping

__version__ = VERSION
"""The version of PEFT whose names these are; programs that ask which PEFT they have find it here."""

__all__ = [
    "MODEL_TYPE_TO_PEFT_MODEL_MAPPING",
    "PEFT_TYPE_TO_CONFIG_MAPPING",
    "PEFT_TYPE_TO_TUNER_MAPPING",
    "AdaLoraConfig",
    "AutoPeftModel",
    "AutoPeftModelForCausalLM",
    "AutoPeftModelForFeatureExtraction",
    "AutoPeftModelForQuestionAnswering",
    "AutoPeftModelForSeq2SeqLM",
    "AutoPeftModelForSequenceClassification",
    "AutoPeftModelForTokenClassification",
    "BOFTConfig",
    "BaseTuner",
    "BeftConfig",
    "CordaConfig",
    "EvaConfig",
    "HRAConfig",
    "IA3Config",
    "LNTuningConfig",
    "LoHaConfig",
    "LoKrConfig",
    "LoftQConfig",
    "LoraConfig",
    "LoraModel",
    "LoraRuntimeConfig",
    "MultitaskPromptTuningConfig",
    "MultitaskPromptTuningInit",
    "NoMatchingPeftModuleError",
    "OFTConfig",
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
    "PrefixTuningConfig",
    "PromptEncoderConfig",
    "PromptEncoderReparameterizationType",
    "PromptLearningConfig",
    "PromptTuningConfig",
    "PromptTuningInit",
    "RoadConfig",
    "TaskType",
    "TrainableTokensConfig",
    "VeraConfig",
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

# PEFT's names of what the studio does not have: importing them works, using them says so
_ABSENT: "Mapping[str, str]" = {
    "AdamssConfig": "AdaMSS",
    "AdaptionPromptConfig": "LLaMA-Adapter",
    "ArrowConfig": "Arrow",
    "BdLoraConfig": "BD-LoRA",
    "C3AConfig": "C3A",
    "CPTConfig": "CPT",
    "CartridgeConfig": "Cartridge",
    "DeftConfig": "DEFT",
    "DeloraConfig": "DeLoRA",
    "FourierFTConfig": "FourierFT",
    "FrodConfig": "FRoD",
    "GloraConfig": "GLoRA",
    "GraloraConfig": "GraLoRA",
    "HiraConfig": "HiRA",
    "KasaConfig": "KaSA",
    "LilyConfig": "Lily",
    "LoraGAConfig": "LoRA-GA",
    "MissConfig": "MiSS",
    "MontecloraConfig": "MonteCLoRA",
    "OSFConfig": "OSF",
    "PeanutConfig": "PEANuT",
    "PolyConfig": "Poly",
    "PsoftConfig": "PSOFT",
    "PveraConfig": "PVeRA",
    "RandLoraConfig": "RandLoRA",
    "ShadowConfig": "Shadow",
    "ShiraConfig": "SHiRA",
    "SupertuningConfig": "Super-Tuning",
    "TinyLoraConfig": "TinyLoRA",
    "UniLoraConfig": "UniLoRA",
    "VBLoRAConfig": "VB-LoRA",
    "VeloraConfig": "VeLoRA",
    "WaveFTConfig": "WaveFT",
    "XLoraConfig": "X-LoRA",
}


_SUBMODULES = ("functional", "helpers", "optimizers", "tuners", "utils")


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"studio.peft.{name}")
    if name not in _ABSENT:
        raise AttributeError(f"module 'studio.peft' has no attribute {name!r}")
    from studio.peft.absent import absent

    globals()[name] = absent(name, _ABSENT[name])
    return globals()[name]
