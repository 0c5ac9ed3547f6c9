"""What ``studio complete`` says where a base has labels to give and no words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from studio.commands.show import Show
from studio.errors import BadConfig

if TYPE_CHECKING:
    from studio.pipelines import TextPipeline

__all__ = ["labels_said", "tell_verdicts"]


def labels_said(pipe: TextPipeline) -> tuple[str, ...]:
    """Returns the labels that all adapters on a model that writes were trained to say; none where they differ.

    Args:
        pipe: the model, with its adapters.
    """
    from studio.pipelines.kinds import stated_labels

    stated = {stated_labels(info.metadata) for info in pipe.adapters.values()}
    return stated.pop() if len(stated) == 1 and not pipe.base.kind.head else ()


def tell_verdicts(
    pipe: TextPipeline, prompts: Sequence[str], used: Sequence[Mapping[str, Any]], show: Show, *, labels: Sequence[str],
    chat: bool | None, per_sample: bool, batch_size: int,
) -> None:  # fmt: skip
    """Judges texts and prints the label of each, with its probability.

    Args:
        pipe: judges. prompts: the texts, with their tags; where the adapters were trained on pairs, two for a verdict.
        used: what was loaded. show: takes the lines. labels: what a model that writes could say.
        chat: whether it says them through the chat template. per_sample: each text has the adapter in its place.
        batch_size: texts that are judged together.

    Raises:
        BadConfig: an odd number of texts for pairs. UsageError: as :meth:`studio.pipelines.TextPipeline.classify`.
    """
    from studio.adapters import current_blend

    size = 2 if {info.metadata.get("form") for info in pipe.adapters.values()} == {"pair"} else 1
    if len(prompts) % size:
        raise BadConfig(
            f"the adapter was trained on pairs of texts, and {len(prompts)} are given: give two for each verdict"
        )
    tagged = [pipe.read_tags(prompt) for prompt in prompts]
    usual = current_blend(pipe.carrier)
    blend: Any = [usual if one.blend is None else one.blend for one in tagged[::size]]
    if per_sample:
        blend = [{entry["name"]: entry["strength"]} for entry in used]
    ends = [prompt[len(prompt.rstrip()) :] for prompt in prompts]  # a blank before a label that is said counts
    texts = [f"{one.text}{end}" for one, end in zip(tagged, ends, strict=True)]
    asked = texts if size == 1 else list(zip(texts[::2], texts[1::2], strict=True))
    made = pipe.classify(asked, blend=blend, labels=labels or None, chat=chat, batch_size=batch_size)
    for verdict in made:
        show.say(f"> {verdict.text}\n{verdict.line}\n" if len(made) > 1 else verdict.line)
    show.result({"verdicts": [asdict(verdict) for verdict in made], "adapters": list(used)})
