"""``peft.utils``."""

from studio.files.peft import CONFIG_FILE as CONFIG_NAME
from studio.files.peft import TENSOR_FILE as SAFETENSORS_WEIGHTS_NAME
from studio.peft.contexts import (
    cast_mixed_precision_params,
    get_base_model_state_dict,
    get_peft_model_state_dict,
    prepare_model_for_kbit_training,
    set_base_model_state_dict,
    set_peft_model_state_dict,
)
from studio.peft.folder import load_peft_weights
from studio.peft.kinds import PeftType, TaskType
from studio.peft.modules import TrainableTokensWrapper, _get_submodules, fsdp_auto_wrap_policy, infer_device, transpose
from studio.peft.saved_modules import AuxiliaryTrainingWrapper, ModulesToSaveWrapper

__all__ = [
    "AuxiliaryTrainingWrapper",
    "CONFIG_NAME",
    "ModulesToSaveWrapper",
    "PeftType",
    "SAFETENSORS_WEIGHTS_NAME",
    "TaskType",
    "TrainableTokensWrapper",
    "_get_submodules",
    "cast_mixed_precision_params",
    "fsdp_auto_wrap_policy",
    "get_base_model_state_dict",
    "get_peft_model_state_dict",
    "infer_device",
    "load_peft_weights",
    "prepare_model_for_kbit_training",
    "set_base_model_state_dict",
    "set_peft_model_state_dict",
    "transpose",
]
