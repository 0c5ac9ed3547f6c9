"""Prompt tuning: embeddings before the input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from studio.adapters.contract.adapter import METHODS, Given
from studio.adapters.contract.foreign import Foreign
from studio.adapters.sites.site import Site
from studio.adapters.tokens.contract import STARTS, PromptAdapter, PromptConfig, started_rows, text_tokens

__all__ = ["PromptTuning", "PromptTuningAdapter", "StartedConfig"]


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


class PromptTuningAdapter(PromptAdapter):
    """Prompt tuning on one model: ``prompt`` ``(m, width)``, the encoder's rows before the decoder's."""

    trained = ("prompt",)
    foreign = Foreign(peft_type="PROMPT_TUNING", peft_tensors={"prompt": "prompt_embeddings"})

    @classmethod
    def start(cls, site: Site, config: PromptTuning, given: Given) -> dict[str, Tensor]:
        total = config.tokens * (2 if config.decoder else 1)
        return {"prompt": started_rows(site, config, total, given.generator)}  # type: ignore[arg-type]

    def fit(self) -> None:
        super().fit()
        self.require("prompt", (self.total, self.site.rows))

    def embedded(self, rows: int, tasks: Tensor | None) -> Tensor:
        return self._parameters["prompt"]  # type: ignore[return-value]


PromptTuning.adapter = PromptTuningAdapter
