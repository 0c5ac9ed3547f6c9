"""Settings of a training out of the texts in which trainers write them: one word and one form for each."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from studio.config import finite
from studio.given import parse_json

__all__ = ["TRAINING", "first_value", "plain_value"]

Said = Mapping[str, Any]
Reader = Callable[[Said], str]
_NOTHING: Final = ("", "none", "null", "[]", "{}")
_LONGEST: Final = 400  # characters of one value


def plain_value(value: Any) -> str:
    """Returns a value of metadata as it is read: the text "None" is nothing, JSON's quotes go, numbers get short.

    Example:
        >>> [plain_value(one) for one in ("None", '"sks dog"', "1e-04", 0.00010000000000000001, True, "12")]
        ['', 'sks dog', '0.0001', '0.0001', 'yes', '12']
    """
    if isinstance(value, bool) or value in ("True", "False", "true", "false"):
        return "yes" if str(value).lower() == "true" else ""
    if isinstance(value, (int, float)):
        return f"{value:.12g}" if finite(value) else ""
    if not isinstance(value, str) or value.strip().lower() in _NOTHING:
        return ""
    text = value.strip()
    if text[:1] == text[-1:] == '"' and len(text) > 1:
        text = _unquoted(text)
    if re.fullmatch(r"-?\d{1,17}\.\d+|-?\d{1,17}(\.\d+)?[eE][+-]?\d{1,3}", text):
        return f"{float(text):.12g}"
    return text[:_LONGEST]


def _unquoted(text: str) -> str:
    try:
        found = parse_json(text)
    except ValueError:
        return text
    return found.strip() if isinstance(found, str) else text


def first_value(said: Said, keys: Iterable[str]) -> str:
    """Returns what the first of these keys says that says anything, or "".

    Args:
        said: the texts and tables of a file. keys: under which programs say the same.
    """
    return next(filter(None, (plain_value(said.get(key)) for key in keys)), "")


def _first(*keys: str) -> Reader:
    return lambda said: first_value(said, keys)


def _positive(*keys: str) -> Reader:
    """The same, of numbers of which 0 says nothing."""
    found = _first(*keys)
    return lambda said: "" if found(said) == "0" else found(said)


def _tool(said: Said) -> str:
    software = said.get("software")
    if isinstance(software, str) and software.lstrip().startswith("{"):
        try:
            table = parse_json(software)
        except ValueError:
            table = {}
        named = [plain_value(table.get(key)) for key in ("name", "version")] if isinstance(table, dict) else []
        return " ".join(filter(None, named))
    if plain_value(software):
        return plain_value(software)
    if "ot_branch" in said or "ot_revision" in said:
        return f"OneTrainer {plain_value(said.get('ot_revision'))[:8]}".strip()
    network = plain_value(said.get("ss_network_module"))
    return "kohya's scripts" if network.startswith(("networks.", "lycoris.")) and "ss_session_id" in said else ""


def _network(said: Said) -> str:
    module = plain_value(said.get("ss_network_module"))
    text = plain_value(said.get("ss_network_args"))
    try:
        table = parse_json(text) if text.startswith("{") else {}
    except ValueError:
        table = {}
    parts = [f"{key} {plain_value(value)}" for key, value in table.items() if plain_value(value)]
    return ", ".join([module, *parts]) if module and "studio" not in said else ""


def _epochs(said: Said) -> str:
    now, total = first_value(said, ("ss_epoch", "epoch")), first_value(said, ("ss_num_epochs", "epochs"))
    return f"{now} of {total}" if now and total and now != total else now or total


def _optimizer(said: Said) -> str:
    """``bitsandbytes.optim.adamw.AdamW8bit(weight_decay=0.1)`` without the modules; OneTrainer's is a table."""
    value = said.get("ss_optimizer") or said.get("optimizer")
    if isinstance(value, dict):
        return plain_value(value.get("optimizer"))
    name, bracket, rest = plain_value(value).partition("(")
    return name.rpartition(".")[2] + bracket + rest


def _schedule(said: Said) -> str:
    name = _first("ss_lr_scheduler", "learning_rate_scheduler")(said)
    warmup = _positive("ss_lr_warmup_steps", "learning_rate_warmup_steps")(said)
    return f"{name}, {warmup} steps of warm-up" if name and warmup else name


def _size(said: Said) -> str:
    """``(512, 768)``, ``512,768`` and ``512`` are sizes."""
    text = _first("resolution", "ss_resolution", "modelspec.resolution")(said)
    numbers = re.findall(r"\d+", text)
    return "x".join(numbers) if len(numbers) == 2 else text


TRAINING: Final[Mapping[str, Reader]] = {
    "tool": _tool,
    "network": _network,
    "task": _first("task"),
    "steps": _first("steps", "ss_steps", "step", "ss_max_train_steps"),
    "epochs": _epochs,
    "learning rate": _positive("learning_rate", "ss_learning_rate"),
    "denoiser's rate": _positive("ss_unet_lr"),
    "text encoder's rate": _positive("ss_text_encoder_lr"),
    "optimizer": _optimizer,
    "schedule": _schedule,
    "batch": _first("batch_size", "ss_total_batch_size", "ss_batch_size_per_device"),
    "accumulation": _first("ss_gradient_accumulation_steps", "gradient_accumulation_steps"),
    "resolution": _size,
    "images": _first("images", "ss_num_train_images"),
    "class images": _positive("ss_num_reg_images"),
    "seed": _first("seed", "ss_seed"),
    "precision": _first("ss_mixed_precision"),
    "prediction": _first("modelspec.prediction_type"),
    "clip skip": _first("ss_clip_skip"),
    "noise offset": _positive("ss_noise_offset"),
    "min-SNR gamma": _positive("ss_min_snr_gamma"),
    "dropout": _positive("ss_network_dropout"),
    "caption dropout": _positive("ss_caption_dropout_rate"),
    "weight norms held to": _positive("ss_scale_weight_norms"),
    "dataset": _first("dataset"),
}
"""What is said of a training, in the order in which it is told -> how it is read."""
