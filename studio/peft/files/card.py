"""The model card beside a saved adapter: ``README.md`` with a few facts at its head."""

from __future__ import annotations

from pathlib import Path

from studio.atomic import atomic_path
from studio.peft.model.state import State

__all__ = ["write_card"]


def write_card(state: State, folder: Path) -> None:
    """Writes the card; the text of one that is there stays, and so do the facts that are not ours.

    Args:
        state: what is on the model. folder: where to.
    """
    file = folder / "README.md"
    facts, text = _read(file)
    where = getattr(getattr(state.model, "config", None), "_name_or_path", None)
    if where is not None:
        facts["base_model"] = [f"base_model: {where}" if where else "base_model: ''"]
    facts["library_name"] = ["library_name: peft"]
    if any(config.task_type == "CAUSAL_LM" for config in state.configs.values()):
        facts.setdefault("pipeline_tag", ["pipeline_tag: text-generation"])
    have = [line.strip()[2:].strip() for line in facts.get("tags", [])[1:]]
    tags = sorted({*have, *_tags(state, where)})
    if tags:
        facts["tags"] = ["tags:", *(f"- {tag}" for tag in tags)]
    head = [line for name in sorted(facts) for line in facts[name]]
    with atomic_path(file) as temporary:
        temporary.write_text("\n".join(["---", *head, "---", text.lstrip("\n")]), encoding="utf-8")


def _tags(state: State, where: str | None) -> set[str]:
    """By what the adapter is found on the Hub: its base, the base's own tags, the library that opens it, LoRA."""
    tags = {config.word.lower() for config in state.configs.values()} & {"lora"}
    tags |= {f"base_model:adapter:{where}"} if where else set()
    tags |= set(getattr(state.model, "model_tags", None) or ())
    if any(one.__module__.startswith("transformers.") for one in type(state.model).__mro__):
        tags.add("transformers")
    return tags


def _read(file: Path) -> tuple[dict[str, list[str]], str]:
    """The facts of a card by name, each with its lines, and the text below them."""
    content = file.read_text(encoding="utf-8") if file.is_file() else "\n# An adapter\n"
    if not content.startswith("---\n") or "\n---" not in content[3:]:
        return {}, content
    head, _, text = content[4:].partition("\n---")
    facts: dict[str, list[str]] = {}
    name = ""
    for line in head.splitlines():
        if line and not line[0].isspace() and not line.startswith("-") and ":" in line:
            name = line.partition(":")[0]
            facts[name] = [line]
        elif name:
            facts[name].append(line)
    return facts, text.partition("\n")[2]
