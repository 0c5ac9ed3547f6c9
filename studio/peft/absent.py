"""PEFT's names of what the studio does not have: importing one works, using one says so."""

from __future__ import annotations

from typing import Any, Final, NoReturn

from studio.adapters import METHODS
from studio.peft.configs.config import PeftConfig
from studio.peft.terms.errors import Wrong

__all__ = ["ABSENT", "absent", "stand_in"]

ABSENT: Final = dict(
    row.split("=")
    for row in (
        "AdamssConfig=AdaMSS AdaptionPromptConfig=LLaMA-Adapter ArrowConfig=Arrow BdLoraConfig=BD-LoRA "
        "C3AConfig=C3A CPTConfig=CPT CartridgeConfig=Cartridge DeftConfig=DEFT DeloraConfig=DeLoRA FrodConfig=FRoD "
        "GloraConfig=GLoRA GraloraConfig=GraLoRA HiraConfig=HiRA KasaConfig=KaSA LilyConfig=Lily "
        "LoraGAConfig=LoRA-GA MontecloraConfig=MonteCLoRA OSFConfig=OSF PeanutConfig=PEANuT PolyConfig=Poly "
        "PsoftConfig=PSOFT PveraConfig=PVeRA ShadowConfig=Shadow SupertuningConfig=Super-Tuning "
        "TinyLoraConfig=TinyLoRA UniLoraConfig=UniLoRA VBLoRAConfig=VB-LoRA VeloraConfig=VeLoRA WaveFTConfig=WaveFT "
        "XLoraConfig=X-LoRA"
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


class Absent(Wrong, AttributeError, NotImplementedError):
    """Something of PEFT's that the studio does not have was used."""


_INSTEAD: Final = {
    "preprocess_loraga": "get_peft_model(..., calibrate=batches) with init_lora_weights='eva' or 'corda'",
    "initialize_lora_eva_weights": "get_peft_model(..., calibrate=batches)",
    "get_eva_state_dict": "get_peft_model(..., calibrate=batches)",
    "replace_lora_weights_loftq": "init_lora_weights='loftq' and get_peft_model(..., original=model_before_quantising)",
}
"""What does the same here."""


class _StandIn(type):
    """The class of a stand-in: whatever is done with it but naming it and ``isinstance`` says that it is absent."""

    def _refuse(cls, *args: Any, **kwargs: Any) -> NoReturn:
        name = cls.__name__
        instead = _INSTEAD.get(name)
        hint = f"; here it is {instead}" if instead else "; docs/from-peft.md lists what there is"
        raise Absent(f"{cls.__module__}.{name} is a part of PEFT that the studio does not have{hint}")

    __call__ = __iter__ = __len__ = __getitem__ = __contains__ = _refuse

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"type object {cls.__name__!r} has no attribute {name!r}")
        cls._refuse()


def stand_in(path: str, name: str) -> type:
    """Makes what is imported under a name of PEFT's that the studio does not have.

    Args:
        path: the module's path below ``peft``; "peft" is the package. name: the name.

    Example:
        >>> from studio.peft.tuners.xlora.model import XLoraModel
        >>> XLoraModel(3)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        studio.peft.absent.Absent: peft.tuners.xlora.model.XLoraModel is a part of PEFT that the studio ...
    """
    module = path if path == "peft" else f"peft.{path}"
    return _StandIn(name, (), {"__module__": module, "__doc__": "A part of PEFT that the studio does not have."})
