"""What may only get better: how long functions are, and what their docstrings leave out.

``ratchet.toml`` beside this file lists what is past the limits today, with its figure. A function past a limit that is
not listed fails, one that is worse than its figure fails, and so does one that is better, until the figure is lowered:

    python tests/support/ratchet.py            check (`make lint` does this)
    python tests/support/ratchet.py --lower    lower the figures first, and never raise one (`make format` does this)

How many branches a function may have is ruff's to say (C901, PLR0912, PLR0915), without exceptions.
"""

from __future__ import annotations

import ast
import builtins
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from product import ROOT, SOURCES, TREES, listed

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LIST = Path(__file__).with_name("ratchet.toml")
LIMITS = {"lines": 30, "raises": 0, "shapes": 0}
SAYS = {
    "lines": "has {} lines of code, its signature and docstring left out; a part of it wants a name of its own",
    "raises": "raises {} error(s) that are missing under Raises in its docstring",
    "shapes": "takes {} tensor(s) without a shape in its docstring: `x: the inputs ``(B, C, H, W)``.`",
}
Function = ast.FunctionDef | ast.AsyncFunctionDef
Figures = dict[str, dict[str, int]]
CLASSES: dict[str, list[ast.ClassDef]] = {}
for _tree in TREES.values():
    for _node in ast.walk(_tree):
        if isinstance(_node, ast.ClassDef):
            CLASSES.setdefault(_node.name, []).append(_node)


def measure() -> Figures:
    """Returns measure -> ``file:function`` -> figure, of every function past a limit."""
    found: Figures = {name: {} for name in LIMITS}
    for file in files():
        for name, function in functions(ast.parse(file.read_text(encoding="utf-8"))):
            found["lines"][f"{file.relative_to(ROOT).as_posix()}:{name}"] = length(function)
    for module, tree in TREES.items():
        for name, function, owner in public_functions(tree):
            key = f"{SOURCES[module].relative_to(ROOT).as_posix()}:{name}"
            found["raises"][key] = len(unsaid(function, owner))
            found["shapes"][key] = len(shapeless(function, owner))
    return {name: {key: n for key, n in table.items() if n > LIMITS[name]} for name, table in found.items()}


def files() -> Iterator[Path]:
    """Yields the files of the product, the benchmarks, the examples and the tests, each once."""
    yield from SOURCES.values()
    for folder in ("benchmarks", "examples", "tests"):
        yield from sorted((ROOT / folder).rglob("*.py"))


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, Function]]:
    """Yields every function of a file with its name, those inside classes and functions too."""
    for node in ast.iter_child_nodes(tree):
        named = isinstance(node, Function | ast.ClassDef)
        if isinstance(node, Function):
            yield prefix + node.name, node
        yield from functions(node, f"{prefix}{node.name}." if named else prefix)


def public_functions(tree: ast.Module) -> Iterator[tuple[str, Function, ast.ClassDef | None]]:
    """Yields the functions and the classes' methods that ``__all__`` makes public, with their names and classes."""
    for node in tree.body:
        if isinstance(node, Function) and node.name in listed(tree):
            yield node.name, node, None
        elif isinstance(node, ast.ClassDef) and node.name in listed(tree):
            for child in node.body:
                made = ("__init__", "__post_init__", "__call__")
                if isinstance(child, Function) and (child.name in made or not child.name.startswith("_")):
                    yield f"{node.name}.{child.name}", child, node


def length(function: Function) -> int:
    """Returns the lines of a function's body without its docstring.

    Example:
        >>> length(ast.parse('def f(\\n    x,\\n):\\n    "It adds."\\n    y = x\\n    return y').body[0])
        2
    """
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return (function.end_lineno or 0) - body[0].lineno + 1 if body else 0


def unsaid(function: Function, owner: ast.ClassDef | None = None) -> set[str]:
    """Returns the errors that a function raises by name and that its docstring, or its base's, does not.

    Example:
        >>> code = "def f(x):\\n    'Raises:\\\\n    OSError: x.'\\n    if x: raise KeyError\\n    raise IOError"
        >>> unsaid(ast.parse(code).body[0])
        {'KeyError'}
    """
    said = set()
    for part in re.split(r"\bRaises:", words(function, owner))[1:]:
        section = re.split(r"\n\s*\n|\n\s*(?:Example|Returns|References)s?:", part)[0]
        said |= {name for head in re.findall(r"((?:\b[A-Z]\w+(?:, )?)+):", section) for name in head.split(", ")}
    return {name for name in raised(function) if not said & {name, *bases(name)}}


def raised(function: Function) -> set[str]:
    """Returns the names of the errors that a function raises itself; an abstract method's is none."""
    found = set()
    waiting: list[ast.AST] = [*function.body]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Raise) and node.exc is not None:
            error = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            name = error.attr if isinstance(error, ast.Attribute) else getattr(error, "id", "")
            found |= {name} if name[:1].isupper() else set()
        if not isinstance(node, Function | ast.ClassDef):  # what stands inside is raised when that is called
            waiting += ast.iter_child_nodes(node)
    return found - {"NotImplementedError"}


def shapeless(function: Function, owner: ast.ClassDef | None = None) -> set[str]:
    """Returns the tensors among a function's arguments whose shape neither its docstring nor its base's gives.

    Example:
        >>> code = "def f(x: Tensor, y: Tensor | None):\\n    'Adds.\\\\n\\\\n    x: what ``(B, C)``.\\\\n    y: what.'"
        >>> shapeless(ast.parse(code).body[0])
        {'y'}
    """
    text = words(function, owner, classes=True)
    inside = r"(?:(?!\n\s*\n|\n\s+\w+: )[\s\S])*?(?:``\(|any shape|scalar)"  # up to the next argument or paragraph
    arguments = (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)
    return {
        argument.arg
        for argument in arguments
        if argument.annotation is not None
        and re.fullmatch(r"(torch\.)?Tensor( \| None)?", ast.unparse(argument.annotation))
        and not re.search(rf"(?<!\w){argument.arg}(?!\w){inside}", text)
    }


def words(function: Function, owner: ast.ClassDef | None, *, classes: bool = False) -> str:
    """Returns a function's docstring and those of the methods that it overrides.

    With ``classes`` those of the classes too, where letters that all methods use are explained once; always so for what
    makes an object, which has its class's docstring.
    """
    texts = [ast.get_docstring(function) or ""]
    waiting: list[ast.ClassDef] = [] if owner is None else [owner]
    seen: list[ast.ClassDef] = []  # a class may be called as its base is
    while waiting:
        node = waiting.pop()
        seen.append(node)
        texts += [ast.get_docstring(node) or ""] if classes or function.name.startswith("__") else []
        texts += [ast.get_docstring(child) or "" for child in node.body if getattr(child, "name", "") == function.name]
        above = [known for base in node.bases for known in CLASSES.get(_name(base), ())]
        waiting += [known for known in above if known not in seen]
    return "\n\n".join(texts)


def bases(error: str) -> set[str]:
    """Returns the names of the classes that an error is one of."""
    known = getattr(builtins, error, None)
    if isinstance(known, type):
        return {one.__name__ for one in known.__mro__}
    above = {_name(base) for one in CLASSES.get(error, ()) for base in one.bases}
    return above.union(*(bases(name) for name in above))


def _name(base: ast.expr) -> str:
    """``Adapter`` of a base that is written ``Adapter``, ``Adapter[Config]`` or ``contract.Adapter``."""
    return ast.unparse(base).partition("[")[0].rpartition(".")[2]


def complaints(now: Mapping[str, Mapping[str, int]], before: Mapping[str, Mapping[str, int]]) -> Iterable[str]:
    """Yields a sentence for each figure that is not the listed one.

    Example:
        >>> print(*complaints({"lines": {"a.py:f": 50}}, {"lines": {"a.py:f": 40, "a.py:g": 60}}), sep="\\n")
        a.py:f has 50 lines of code, its signature and docstring left out; a part of it wants a name of its own \
(listed with 40)
        a.py:g is better than its lines=60 in the list: run `make format`
    """
    for measured, table in now.items():
        old = before.get(measured, {})
        for key, figure in table.items():
            if figure > old.get(key, LIMITS[measured]):
                allowed = f" (listed with {old[key]})" if key in old else f" (the limit is {LIMITS[measured]})"
                yield f"{key} {SAYS[measured].format(figure)}{allowed}"
        for key, figure in old.items():
            if table.get(key, LIMITS[measured]) < figure:
                yield f"{key} is better than its {measured}={figure} in the list: run `make format`"


def read() -> Figures:
    """Returns the list."""
    return tomllib.loads(LIST.read_text(encoding="utf-8"))


def write(figures: Mapping[str, Mapping[str, int]]) -> None:
    """Writes the list, sorted."""
    lines = ["# what is past the limits of ratchet.py; it only shrinks: `make format` lowers it"]
    for measured, table in figures.items():
        lines += ["", f"[{measured}]", *(f'"{key}" = {figure}' for key, figure in sorted(table.items()))]
    LIST.write_text("\n".join(lines) + "\n", encoding="utf-8")


def lowered(now: Figures, before: Figures) -> Figures:
    """Returns the list with the figures that are better; none is added, none gets worse.

    An entry follows its function into another file.

    Example:
        >>> lowered({"lines": {"new.py:f": 38, "new.py:g": 90}}, {"lines": {"old.py:f": 40, "old.py:h": 50}})
        {'lines': {'new.py:f': 38}}
    """
    found: Figures = {}
    for measured, table in before.items():
        new = {key.partition(":")[2]: key for key in now[measured] if key not in table}
        here = {key if key in now[measured] else new.get(key.partition(":")[2], key): table[key] for key in table}
        found[measured] = {key: min(n, now[measured][key]) for key, n in here.items() if key in now[measured]}
    return found


if __name__ == "__main__":
    figures = measure()
    if "--lower" in sys.argv:
        write(lowered(figures, read()))
    found = list(complaints(figures, read()))
    print(*found, sep="\n", end="\n" if found else "")
    sys.exit(bool(found))
