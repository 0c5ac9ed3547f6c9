"""PEFT's configs of methods that the studio does not have: importing one works, making one says so."""

from __future__ import annotations

from typing import Any, Final

from studio.adapters import METHODS
from studio.peft.configs.config import PeftConfig
from studio.peft.terms.errors import Wrong

__all__ = ["ABSENT", "absent"]

ABSENT: Final = dict(
    row.split("=")
    for row in (
        "AdamssConfig=AdaMSS AdaptionPromptConfig=LLaMA-Adapter ArrowConfig=Arrow BdLoraConfig=BD-LoRA C3AConfig=C3A "
        "CPTConfig=CPT CartridgeConfig=Cartridge DeftConfig=DEFT DeloraConfig=DeLoRA FourierFTConfig=FourierFT "
        "FrodConfig=FRoD GloraConfig=GLoRA GraloraConfig=GraLoRA HiraConfig=HiRA KasaConfig=KaSA LilyConfig=Lily "
        "LoraGAConfig=LoRA-GA MissConfig=MiSS MontecloraConfig=MonteCLoRA OSFConfig=OSF PeanutConfig=PEANuT "
        "PolyConfig=Poly PsoftConfig=PSOFT PveraConfig=PVeRA RandLoraConfig=RandLoRA ShadowConfig=Shadow "
        "ShiraConfig=SHiRA SupertuningConfig=Super-Tuning TinyLoraConfig=TinyLoRA UniLoraConfig=UniLoRA "
        "VBLoRAConfig=VB-LoRA VeloraConfig=VeLoRA WaveFTConfig=WaveFT XLoraConfig=X-LoRA"
    ).split()
)
"""PEFT's name of a config -> the method's name."""


def absent(name: str) -> type[PeftConfig]:
    """Makes the config class of that name; calling it says that the studio does not have the method.

    Args:
        name: a key of :data:`ABSENT`.
    """

    def refuse(self: PeftConfig, *args: Any, **kwargs: Any) -> None:
        raise Wrong(f"{name}: the studio does not have {ABSENT[name]}; it has {', '.join(METHODS)}")

    return type(name, (PeftConfig,), {"__init__": refuse, "__module__": "studio.peft", "__doc__": refuse.__doc__})
