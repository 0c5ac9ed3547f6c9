"""``peft.helpers``."""

from studio.peft.contexts import check_if_peft_model, disable_input_dtype_casting, rescale_adapter_scale

__all__ = ["check_if_peft_model", "disable_input_dtype_casting", "rescale_adapter_scale"]
