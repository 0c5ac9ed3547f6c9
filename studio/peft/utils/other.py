"""``peft.utils.other``."""

from studio.peft.contexts import cast_mixed_precision_params, prepare_model_for_kbit_training
from studio.peft.modules import TrainableTokensWrapper, _get_submodules, fsdp_auto_wrap_policy, infer_device, transpose
from studio.peft.saved_modules import AuxiliaryTrainingWrapper, ModulesToSaveWrapper

__all__ = [
    "AuxiliaryTrainingWrapper",
    "ModulesToSaveWrapper",
    "TrainableTokensWrapper",
    "_get_submodules",
    "cast_mixed_precision_params",
    "fsdp_auto_wrap_policy",
    "infer_device",
    "prepare_model_for_kbit_training",
    "transpose",
]
