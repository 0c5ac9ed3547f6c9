"""``studio families``: the models that can be opened, adapted and trained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from studio.commands.options import example, output_options
from studio.commands.show import Show

if TYPE_CHECKING:
    from studio.families.family import Family, Model

__all__ = ["families"]

_PAGE = """# The families

Made from the registry by `studio families --markdown > docs/families.md`.

A base is an embedded name (`emoji`), a diffusers folder, a checkpoint of one file (`.safetensors`), or a hub id:
`owner/name`, `owner/name@revision`, with a folder or a file of the repository behind it. A path that exists is never
asked of the hub. An id is looked for in the hub's cache on this machine, and downloaded once where it is not there:
only safetensors, and only the files that are needed. `--offline` and `HF_HUB_OFFLINE=1` never ask. Adapters and
language bases are named in the same way.

A checkpoint of one file lacks configs and tokenizers: they come from `--config-of BASE`, else from the hub's folder of
such a base, of which only these small files are fetched. *Whole*: it may hold the text encoders and the VAE too.
*Denoiser*: these come from `--config-of`.

Weights are read in the type that the files hold; on a CPU, small bases (up to 6 GiB in fp32) in fp32. In an fp16 base
the components of the last column stay fp32.

Pictures are made with the steps, the guidance and the size of this table where nothing else is asked for. Text encoders
in brackets are adapted where they are named.
"""


@click.command(
    short_help="List the models that can be opened, adapted, trained.",
    epilog=example("studio families", "studio families --json"),
)
@click.option("--markdown", "as_markdown", is_flag=True, help="Print docs/families.md.")
@output_options
def families(as_markdown: bool, as_json: bool, quiet: bool) -> None:
    """List the model families: public bases, components, size, steps, guidance, what is trained, file formats."""
    from studio.families import FAMILIES

    if as_markdown:
        click.echo(_markdown(), nl=False)
        return
    show = Show(as_json, quiet)
    if show.talks:
        show.table(row for family in FAMILIES.values() for row in _rows(family))
    show.result({name: _facts(family) for name, family in FAMILIES.items()})


def _facts(family: Family) -> dict[str, Any]:
    """What the JSON output says about a family."""
    from studio.files import common_formats

    return {
        "title": family.title,
        "pipelines": list(family.pipelines),
        "denoiser": family.denoiser,
        "text_encoders": {one.component: {"trained": one.trained, "kohya": one.kohya} for one in family.encoders},
        "process": family.process.__name__.lower(),
        "multiple": family.multiple,
        "presets": list(family.presets),
        "tasks": list(family.recipes),
        "formats": list(common_formats()),
        "kohya": dict(family.flat),
        "single_file": _single(family),
        "dtypes": dict(family.dtypes),
        "models": [
            {
                "title": model.title, "id": model.id, "size": [model.side, model.side], "steps": model.defaults.steps,
                "guidance": model.defaults.guidance, "embedded_guidance": model.defaults.embedded,
                "negative": model.defaults.negative, "tokens": model.defaults.length,
            }
            for model in family.models
        ],
    }  # fmt: skip


def _rows(family: Family) -> Iterator[tuple[str, str]]:
    from studio.files import common_formats

    facts = f"trained by {_tasks(family)} · files: {', '.join(common_formats())} · one file: {_single(family)}"
    yield family.name, f"{family.title} · adapted: {_components(family)} · {facts}"
    for model in family.models:
        yield "", f"{model.id} · {_drawn(model)}"


def _drawn(model: Model) -> str:
    """How a base draws unless told otherwise."""
    return f"{model.side} x {model.side} · {model.defaults.steps} steps · {_guidance(model)}"


def _guidance(model: Model) -> str:
    own = model.defaults
    if own.embedded is not None:
        return f"embedded guidance {own.embedded:g}"
    return f"guidance {own.guidance:g}" if own.guidance != 1 else "no guidance"


def _components(family: Family) -> str:
    encoders = [one.component if one.trained else f"({one.component})" for one in family.encoders]
    return ", ".join([family.denoiser, *encoders])


def _tasks(family: Family) -> str:
    return ", ".join(family.recipes)


def _single(family: Family) -> str:
    """What a checkpoint of one file may be."""
    if family.single is None:
        return "no"
    return "whole" if family.single.parts else "denoiser"


def _markdown() -> str:
    """Writes ``docs/families.md``."""
    from studio.families import FAMILIES
    from studio.files import common_formats

    lines = [
        _PAGE,
        "| family | base | size | steps | guidance |",
        "|---|---|---|---:|---|",
        *(_base(family, model) for family in FAMILIES.values() for model in family.models),
        "",
        "Every family takes adapters of every method that covers its layers, with the presets",
        f"{_common('presets')}, and is trained by {_common('recipes')}.",
        f"Adapter files are read and written as {', '.join(common_formats())}.",
        "",
        "| family | `family` | adapted | process | sides are multiples of | one file | in kohya's files | fp32 |",
        "|---|---|---|---|---:|---|---|---|",
        *(_line(family) for family in FAMILIES.values()),
        "",
    ]
    return "\n".join(lines)


def _common(field: str) -> str:
    """The names that a table of every family has."""
    from studio.families import FAMILIES

    names = set.intersection(*(set(getattr(family, field)) for family in FAMILIES.values()))
    return ", ".join(f"`{name}`" for name in sorted(names))


def _base(family: Family, model: Model) -> str:
    cells = [
        family.title, f"`{model.id}`", f"{model.side} × {model.side}", str(model.defaults.steps), _guidance(model)
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _line(family: Family) -> str:
    flat = ", ".join(f"`{prefix}`" for prefix in family.flat.values())
    cells = [
        family.title, f"`{family.name}`", _components(family), family.process.__name__.lower(), str(family.multiple),
        _single(family), flat, ", ".join(family.dtypes) or "–",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"
