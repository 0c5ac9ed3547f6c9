"""``peft.utils.transformers_weight_conversion``."""

from studio.peft.renaming import build_peft_weight_mapping

__all__ = ["build_peft_weight_mapping"]
