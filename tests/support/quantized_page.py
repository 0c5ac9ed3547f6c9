"""The tables of docs/quantized.md: the ways to quantise, and what every method does on each packing.

``python tests/support/quantized_page.py`` writes them into the page; the tests hold the page against them, and each
cell is a case of ``tests/adapters/test_quantized_bases.py``.
"""

from __future__ import annotations

import re
from pathlib import Path

from studio.adapters import METHODS
from studio.quantization import BACKENDS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "quantized.md"

PACKED = {
    "grid": "grid4", "fp8": "fp8", "nf4, fp4": "nf4", "int8": "int8", "torchao": "torchao-int4",
    "quanto": "quanto-int4", "gguf": "gguf-q4-0",
}  # fmt: skip
"""Column -> a backend of that packing."""

_OWN_ZEROS = {"grid", "torchao", "quanto"}
_SIZE = 4096


def on_linear() -> list[str]:
    """The methods that act on Linear layers."""
    return sorted(method for method in METHODS if {"linear", "conv"} <= set(METHODS[method].adapter.kinds))


def ways() -> str:
    """One row per way to quantise."""
    lines = ["| name | what it is | bits per weight | inputs divide by | needs |", "|---|---|---|---|---|"]
    for name, backend in BACKENDS.items():
        bits = 8 * backend.bytes(_SIZE, _SIZE, 2) / _SIZE**2
        package = backend.package.replace("optimum.quanto", "optimum-quanto")
        needs = f"`{package}`" if package else "nothing"
        lines.append(
            f"| `{name}` | {backend.says} | {bits:.2f} | {backend.step if backend.step > 1 else 'any'} | {needs} |"
        )
    return "\n".join(lines)


def matrix() -> str:
    """One row per method, one column per packing."""
    lines = [f"| method | {' | '.join(PACKED)} |", f"|---|{'---|' * len(PACKED)}"]
    for method in on_linear():
        bakes = METHODS[method].adapter.bakes
        cells = [
            "zeros" if method == "qalora" and column in _OWN_ZEROS else "dense" if bakes else "live"
            for column in PACKED
        ]
        lines.append(f"| `{method}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def written(page: str) -> str:
    """The page with both tables as they are now."""
    for mark, table in (("ways", ways()), ("matrix", matrix())):
        page = re.sub(rf"(<!-- {mark} -->\n).*?(\n<!-- end -->)", rf"\g<1>{table}\g<2>", page, flags=re.S)
    return page


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
