"""What is known from an adapter's folder alone: whether it is one, and which base to open for it."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

from studio.errors import BadFile
from studio.peft.configs.config import PeftConfig
from studio.peft.peft_model import PeftModel
from studio.peft.terms.errors import Unknown, Wrong, refusals

__all__ = [
    "AutoPeftModel",
    "AutoPeftModelForCausalLM",
    "AutoPeftModelForFeatureExtraction",
    "AutoPeftModelForQuestionAnswering",
    "AutoPeftModelForSeq2SeqLM",
    "AutoPeftModelForSequenceClassification",
    "AutoPeftModelForTokenClassification",
    "check_if_peft_model",
]

_LIBRARIES: Final = ("transformers", "diffusers")


class AutoPeftModel:
    """A base and its adapter; the base's class is the one that the adapter's config names."""

    auto: ClassVar[str] = ""
    task: ClassVar[str] = ""

    def __init__(self) -> None:
        """Refuses: an auto class is not made, it makes a model.

        Raises:
            OSError: always.
        """
        raise OSError(f"{type(self).__name__} is made by {type(self).__name__}.from_pretrained(...)")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        adapter_name: str = "default",
        is_trainable: bool = False,
        config: PeftConfig | None = None,
        revision: str | None = None,
        import_allowlist: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> PeftModel:
        """Opens a base and puts the adapter on it.

        Args:
            pretrained_model_name_or_path: the adapter's folder. adapter_name, is_trainable, config: as in
                :meth:`PeftModel.from_pretrained`. revision: the adapter's version on the Hub.
            import_allowlist: the libraries that a config may name; None: transformers and diffusers.
            kwargs: for the base's ``from_pretrained``.

        Raises:
            Wrong: the config names no base, another task, or a class of a library that is not opened unasked.
        """
        with refusals():
            where: dict[str, Any] = {"revision": revision} if revision is not None else {}
            found = PeftConfig.strictly_from(pretrained_model_name_or_path, **where) if config is None else config
            base = found.base_model_name_or_path
            if not base:
                raise Wrong(f"the config of {pretrained_model_name_or_path} names no base (base_model_name_or_path)")
            task = getattr(found.task_type, "value", found.task_type)
            if cls.task and task is not None and task != cls.task:
                raise Wrong(f"Expected target PEFT class for {cls.task}, but the adapter is for {task}")
            base_class = _class(cls.auto, found, _LIBRARIES if import_allowlist is None else import_allowlist)
        if found.revision is not None:
            kwargs.setdefault("revision", found.revision)
        model = base_class.from_pretrained(base, **kwargs)
        _fit_vocabulary(model, Path(pretrained_model_name_or_path))
        return PeftModel.from_pretrained(
            model, pretrained_model_name_or_path, adapter_name, is_trainable, config=found, **where
        )


def _class(auto: str, config: PeftConfig, allowed: Sequence[str]) -> Any:
    named = config.auto_mapping or {}
    library, name = str(named.get("parent_library", "")), str(named.get("base_model_class", ""))
    if library and not any(library == one or library.startswith(f"{one}.") for one in allowed):
        raise Wrong(
            f"The auto mapping wants to import '{library}' which is not in the import allowlist "
            f"({', '.join(allowed)}): if {library}.{name} is the base's class, open the base yourself, then "
            "PeftModel.from_pretrained"
        )
    if auto:
        return getattr(importlib.import_module("transformers"), auto)
    if not name:
        raise Wrong("Cannot infer the auto class from the config, please make sure that you are using the correct "
                    "AutoPeftModel class for your task type (the config has no auto_mapping)")  # fmt: skip
    return getattr(importlib.import_module(library), name)


def _fit_vocabulary(model: Any, folder: Path) -> None:
    """Makes room for the tokens that the adapter's own tokenizer has."""
    if not (folder / "tokenizer_config.json").is_file() or not callable(
        getattr(model, "resize_token_embeddings", None)
    ):
        return
    from transformers import AutoTokenizer

    count = len(AutoTokenizer.from_pretrained(folder))
    if count > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(count)


def check_if_peft_model(model_name_or_path: str | Path) -> bool:
    """Says whether a folder, or a name on the Hub, is an adapter."""
    try:
        PeftConfig.from_pretrained(model_name_or_path)
    except (BadFile, Unknown, Wrong, OSError):
        return False
    return True


class AutoPeftModelForCausalLM(AutoPeftModel):
    """A causal language model and its adapter."""

    auto, task = "AutoModelForCausalLM", "CAUSAL_LM"


class AutoPeftModelForSeq2SeqLM(AutoPeftModel):
    """An encoder-decoder and its adapter."""

    auto, task = "AutoModelForSeq2SeqLM", "SEQ_2_SEQ_LM"


class AutoPeftModelForSequenceClassification(AutoPeftModel):
    """A classifier of texts and its adapter."""

    auto, task = "AutoModelForSequenceClassification", "SEQ_CLS"


class AutoPeftModelForTokenClassification(AutoPeftModel):
    """A classifier of tokens and its adapter."""

    auto, task = "AutoModelForTokenClassification", "TOKEN_CLS"


class AutoPeftModelForQuestionAnswering(AutoPeftModel):
    """An extractive answerer and its adapter."""

    auto, task = "AutoModelForQuestionAnswering", "QUESTION_ANS"


class AutoPeftModelForFeatureExtraction(AutoPeftModel):
    """An encoder and its adapter."""

    auto, task = "AutoModel", "FEATURE_EXTRACTION"
