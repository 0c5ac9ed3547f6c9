"""Prompt tuning: embeddings before the input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, cast

from torch import Tensor

from studio.adapters.contract.adapter import METHODS, Given
from studio.adapters.contract.foreign import Choice, Layers, Peft, Settings, Sites
from studio.adapters.sites.site import Site
from studio.adapters.tokens.contract import (
    STARTS,
    PromptAdapter,
    PromptConfig,
    none_before_decoder,
    started_rows,
    text_tokens,
)
from studio.errors import BadConfig

__all__ = ["PromptTuning", "PromptTuningAdapter", "StartedConfig", "new_prompt"]


@dataclass(frozen=True, kw_only=True)
class StartedConfig(PromptConfig):
    """Fields of a prompt that can start from tokens of the model.

    Attributes:
        init: the start. ``"random"`` (normal with deviation 1, as PEFT's), ``"vocabulary"`` (the embeddings of tokens
            drawn from the vocabulary), ``"text"`` (those of ``start_tokens``).
        start_tokens: token ids of a text, repeated or cut to the length of the prompt; :meth:`of_text` makes them.
    """

    init: str = "random"
    start_tokens: tuple[int, ...] = ()

    def check(self) -> None:
        super().check()
        self.require(self.init in STARTS, "init", f"one of {', '.join(STARTS)}")
        object.__setattr__(self, "start_tokens", tuple(self.start_tokens))
        said = "given" if self.init == "text" else "left out"
        self.require(
            (self.init == "text") == bool(self.start_tokens), "start_tokens", f"{said} with init={self.init!r}"
        )

    @classmethod
    def of_text(cls, text: str, tokenizer: Any, **fields: Any) -> Any:
        """Makes a config whose prompt starts from a text.

        Args:
            text: the text. tokenizer: the model's. fields: the config's other fields.

        Raises:
            BadConfig: the text has no token, or a field is impossible.
        """
        return cls(init="text", start_tokens=text_tokens(text, tokenizer), **fields)


@METHODS.register("prompttuning")
@dataclass(frozen=True, kw_only=True)
class PromptTuning(StartedConfig):
    r"""Prompt tuning puts learned embeddings before those of the text: ``x' = [P; E(ids)]``.

    Attributes:
        tokens: rows of ``P``.

    Raises:
        BadConfig: a field with an impossible value.

    References:
        The Power of Scale for Parameter-Efficient Prompt Tuning (Lester et al., 2021), https://arxiv.org/abs/2104.08691

    Example:
        >>> import studio
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=16,
        ...     num_hidden_layers=1, num_attention_heads=2))
        >>> studio.attach(model, studio.PromptTuning(tokens=4)).parameters
        64
    """

    method = "prompttuning"
    rate = 30.0


INITS: Final = Choice("PromptTuningInit", ("RANDOM", "TEXT", "SAMPLE_VOCAB"), "RANDOM")


def _check_peft(config: Any) -> None:
    if config.prompt_tuning_init == "TEXT" and not (config.prompt_tuning_init_text and config.tokenizer_name_or_path):
        missing = "prompt_tuning_init_text" if not config.prompt_tuning_init_text else "tokenizer_name_or_path"
        raise BadConfig(f"When prompt_tuning_init='TEXT', {missing} can't be None: it is what the prompt starts from")


def new_prompt(config: Any, sites: Sites) -> dict[str, Any]:
    """Makes our fields of what PEFT's prompt starts from.

    Raises:
        BadConfig: a word that is no start.
    """
    word = getattr(config.prompt_tuning_init, "value", config.prompt_tuning_init)
    if word == "RANDOM":
        return {}
    if word == "SAMPLE_VOCAB":
        return {"init": "vocabulary"}
    if word == "TEXT":
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(config.tokenizer_name_or_path, **(config.tokenizer_kwargs or {}))
        return {"init": "text", "start_tokens": text_tokens(config.prompt_tuning_init_text, tokenizer)}
    raise BadConfig(f"prompt_tuning_init={word!r} is no start of a prompt; it must be one of {', '.join(INITS.words)}")


def _stated(config: StartedConfig, sites: Sites, layers: Layers) -> dict[str, Any]:
    return {"prompt_tuning_init": "RANDOM"}  # what it started from matters no more


SETTINGS: Final = Settings(
    name="PromptTuningConfig",
    defaults={
        "prompt_tuning_init": INITS,
        "prompt_tuning_init_text": None,
        "tokenizer_name_or_path": None,
        "tokenizer_kwargs": None,
    },
    check=_check_peft,
    new=new_prompt,
    state=_stated,
)


class PromptTuningAdapter(PromptAdapter[PromptTuning]):
    """Prompt tuning on one model: ``prompt`` ``(m, width)``, the encoder's rows before the decoder's."""

    trained = ("prompt",)
    peft = Peft(
        type="PROMPT_TUNING",
        settings=SETTINGS,
        tensors={"prompt": "prompt_embeddings"},
        store=none_before_decoder,
    )

    @classmethod
    def start(cls, site: Site, config: PromptTuning, given: Given) -> dict[str, Tensor]:
        total = config.tokens * (2 if config.decoder else 1)
        return {"prompt": started_rows(site, config, total, given.generator)}

    def fit(self) -> None:
        super().fit()
        self.require("prompt", (self.total, self.site.rows))

    def embedded(self, rows: int, tasks: Tensor | None) -> Tensor:
        return cast(Tensor, self._parameters["prompt"])


PromptTuning.adapter = PromptTuningAdapter
