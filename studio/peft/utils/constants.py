"""``peft.utils.constants``."""

from studio.files.peft import CONFIG_FILE as CONFIG_NAME
from studio.files.peft import TENSOR_FILE as SAFETENSORS_WEIGHTS_NAME

__all__ = ["CONFIG_NAME", "SAFETENSORS_WEIGHTS_NAME"]
