"""PEFT's config of each method that the studio has: names and defaults as in PEFT 0.21."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeVar

from studio.peft.configs.config import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    LayeredConfig,
    PeftConfig,
    PromptLearningConfig,
    TargetedConfig,
)
from studio.peft.terms.errors import Wrong
from studio.peft.terms.types import PeftType

C = TypeVar("C", bound=type[PeftConfig])


def _of(word: str) -> Any:
    """Registers a config class under PEFT's word for its method."""

    def register(kind: C) -> C:
        kind.word = word
        PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(word)] = kind
        return kind

    return register


# -- parts of LoRA's config --------------------------------------------------------------------------------------------


@dataclass
class LoraRuntimeConfig:
    """What holds only while a model runs."""

    ephemeral_gpu_offload: bool = False


@dataclass
class LoftQConfig:
    """The quantisation that a LoftQ start makes up for."""

    loftq_bits: int = 4
    loftq_iter: int = 1


@dataclass
class EvaConfig:
    """How an EVA start looks at the data."""

    rho: float = 2.0
    tau: float = 0.99
    use_label_mask: bool = True
    label_mask_value: int = -100
    whiten: bool = False
    adjust_scaling_factors: bool = True


@dataclass
class CordaConfig:
    """How a CorDA start looks at the data."""

    cache_file: str | None = None
    covariance_file: str | None = None
    corda_method: str = "ipm"
    verbose: bool = False
    use_float16_for_covariance: bool = False
    prune_temporary_fields: bool = True


# -- methods that change weights ---------------------------------------------------------------------------------------


@_of("LORA")
@dataclass(kw_only=True)
class LoraConfig(LayeredConfig):
    """LoRA, DoRA and QA-LoRA."""

    r: int = 8
    lora_alpha: float = 8
    lora_dropout: float = 0.0
    fan_in_fan_out: bool = False
    bias: str = "none"
    use_rslora: bool = False
    init_lora_weights: bool | str | None = True
    rank_pattern: dict[str, int] | None = field(default_factory=dict)
    alpha_pattern: dict[str, float] | None = field(default_factory=dict)
    megatron_config: dict[str, Any] | None = None
    megatron_core: str | None = "megatron.core"
    trainable_token_indices: Any = None
    loftq_config: Any = field(default_factory=dict)
    eva_config: Any = None
    corda_config: Any = None
    lora_ga_config: Any = None
    use_dora: bool = False
    velora_config: Any = None
    alora_invocation_tokens: list[int] | None = None
    use_qalora: bool = False
    qalora_group_size: int = 16
    monteclora_config: Any = None
    layer_replication: list[tuple[int, int]] | None = None
    runtime_config: Any = field(default_factory=LoraRuntimeConfig)
    lora_bias: bool = False
    target_parameters: list[str] | None = None
    use_bdlora: Any = None
    arrow_config: Any = None
    kasa_config: Any = None
    ensure_weight_tying: bool = False


@_of("ADALORA")
@dataclass(kw_only=True)
class AdaLoraConfig(LoraConfig):
    """AdaLoRA."""

    target_r: int = 8
    init_r: int = 12
    tinit: int = 0
    tfinal: int = 0
    deltaT: int = 1
    beta1: float = 0.85
    beta2: float = 0.85
    orth_reg_weight: float = 0.5
    total_step: int | None = None
    rank_pattern: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.total_step is None or self.total_step <= 0:
            raise Wrong("AdaLoRA does not work when `total_step` is None, supply a value > 0.")
        if self.tinit >= self.total_step - self.tfinal:
            raise Wrong(
                f"AdaLoraConfig(tinit={self.tinit}, tfinal={self.tfinal}, total_step={self.total_step}) leaves no step "
                "for the budget to fall; tinit + tfinal must be smaller than total_step"
            )


@_of("IA3")
@dataclass(kw_only=True)
class IA3Config(TargetedConfig):
    """IA³."""

    feedforward_modules: Any = None
    fan_in_fan_out: bool = False
    init_ia3_weights: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.feedforward_modules is not None and not isinstance(self.feedforward_modules, str):
            self.feedforward_modules = set(self.feedforward_modules)
        if isinstance(self.feedforward_modules, set) and isinstance(self.target_modules, set):
            stray = sorted(self.feedforward_modules - self.target_modules)
            if stray:
                raise Wrong(f"`feedforward_modules` should be a subset of `target_modules`; {stray} are not targets")


@_of("LOHA")
@dataclass(kw_only=True)
class LoHaConfig(LayeredConfig):
    """LoHa."""

    rank_pattern: dict[str, int] | None = field(default_factory=dict)
    alpha_pattern: dict[str, float] | None = field(default_factory=dict)
    r: int = 8
    alpha: float = 8
    rank_dropout: float = 0.0
    module_dropout: float = 0.0
    use_effective_conv2d: bool = False
    init_weights: bool = True


@_of("LOKR")
@dataclass(kw_only=True)
class LoKrConfig(LayeredConfig):
    """LoKr."""

    rank_pattern: dict[str, int] | None = field(default_factory=dict)
    alpha_pattern: dict[str, float] | None = field(default_factory=dict)
    r: int = 8
    alpha: float = 8
    rank_dropout: float = 0.0
    module_dropout: float = 0.0
    use_effective_conv2d: bool = False
    decompose_both: bool = False
    decompose_factor: int = -1
    rank_dropout_scale: bool = False
    init_weights: bool | str = True


@_of("OFT")
@dataclass(kw_only=True)
class OFTConfig(LayeredConfig):
    """OFT."""

    r: int = 0
    oft_block_size: int = 32
    module_dropout: float = 0.0
    fan_in_fan_out: bool = False
    bias: str = "none"
    init_weights: bool = True
    coft: bool = False
    eps: float = 6e-5
    block_share: bool = False
    use_cayley_neumann: bool = True
    num_cayley_neumann_terms: int = 5


@_of("BOFT")
@dataclass(kw_only=True)
class BOFTConfig(LayeredConfig):
    """BOFT."""

    boft_block_size: int = 4
    boft_block_num: int = 0
    boft_n_butterfly_factor: int = 1
    boft_dropout: float = 0.0
    fan_in_fan_out: bool = False
    bias: str = "none"
    init_weights: bool = True


@_of("HRA")
@dataclass(kw_only=True)
class HRAConfig(LayeredConfig):
    """HRA."""

    r: int = 8
    apply_GS: bool = False
    init_weights: bool = True
    bias: str = "none"


@_of("VERA")
@dataclass(kw_only=True)
class VeraConfig(LayeredConfig):
    """VeRA."""

    r: int = 256
    projection_prng_key: int = 0
    save_projection: bool = True
    vera_dropout: float = 0.0
    d_initial: float = 0.1
    fan_in_fan_out: bool = False
    bias: str = "none"
    init_weights: bool = True


@_of("ROAD")
@dataclass(kw_only=True)
class RoadConfig(TargetedConfig):
    """RoAd."""

    variant: str = "road_1"
    group_size: int = 64
    init_weights: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        known = ("road_1", "road_2", "road_4")
        if self.variant not in known:
            raise Wrong(f"Invalid variant {self.variant} specified. Please choose from {', '.join(known)}")


@_of("LN_TUNING")
@dataclass(kw_only=True)
class LNTuningConfig(TargetedConfig):
    """Tuning of the normalisation layers."""


@_of("BEFT")
@dataclass(kw_only=True)
class BeftConfig(TargetedConfig):
    """Tuning of biases."""

    init_weights: bool = True


@_of("TRAINABLE_TOKENS")
@dataclass(kw_only=True)
class TrainableTokensConfig(TargetedConfig):
    """Training of single rows of an embedding."""

    token_indices: list[int] = field(default_factory=list)
    init_weights: bool = True


# -- methods that add virtual tokens -----------------------------------------------------------------------------------


class PromptTuningInit(str, Enum):
    """What soft prompts start from."""

    RANDOM = "RANDOM"
    TEXT = "TEXT"
    SAMPLE_VOCAB = "SAMPLE_VOCAB"


class MultitaskPromptTuningInit(str, Enum):
    """What multitask prompts start from."""

    TEXT = "TEXT"
    RANDOM = "RANDOM"
    AVERAGE_SOURCE_TASKS = "AVERAGE_SOURCE_TASKS"
    EXACT_SOURCE_TASK = "EXACT_SOURCE_TASK"
    ONLY_SOURCE_SHARED = "ONLY_SOURCE_SHARED"


class PromptEncoderReparameterizationType(str, Enum):
    """The encoder of P-tuning."""

    MLP = "MLP"
    LSTM = "LSTM"


@_of("PROMPT_TUNING")
@dataclass(kw_only=True)
class PromptTuningConfig(PromptLearningConfig):
    """Prompt tuning."""

    prompt_tuning_init: PromptTuningInit | str = PromptTuningInit.RANDOM
    prompt_tuning_init_text: str | None = None
    tokenizer_name_or_path: str | None = None
    tokenizer_kwargs: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompt_tuning_init == "TEXT" and not (self.prompt_tuning_init_text and self.tokenizer_name_or_path):
            missing = "prompt_tuning_init_text" if not self.prompt_tuning_init_text else "tokenizer_name_or_path"
            raise Wrong(f"When prompt_tuning_init='TEXT', {missing} can't be None: it is what the prompt starts from")


@_of("P_TUNING")
@dataclass(kw_only=True)
class PromptEncoderConfig(PromptLearningConfig):
    """P-tuning."""

    encoder_reparameterization_type: PromptEncoderReparameterizationType | str = PromptEncoderReparameterizationType.MLP
    encoder_hidden_size: int | None = None
    encoder_num_layers: int = 2
    encoder_dropout: float = 0.0


@_of("PREFIX_TUNING")
@dataclass(kw_only=True)
class PrefixTuningConfig(PromptLearningConfig):
    """Prefix tuning, P-tuning v2."""

    init_weights: str | None = None
    encoder_hidden_size: int | None = None
    prefix_projection: bool = False


@_of("MULTITASK_PROMPT_TUNING")
@dataclass(kw_only=True)
class MultitaskPromptTuningConfig(PromptTuningConfig):
    """Multitask prompt tuning."""

    prompt_tuning_init: MultitaskPromptTuningInit | str = MultitaskPromptTuningInit.RANDOM
    prompt_tuning_init_state_dict_path: str | None = None
    prompt_tuning_init_task: int = 0
    num_ranks: int = 1
    num_tasks: int = 1
