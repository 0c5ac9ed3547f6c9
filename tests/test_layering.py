"""The layout and the import rules of the package, checked on the source."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from arrows import arrows_of, circles, draw
from product import LINKED, ROOT, SOURCES, TREES, listed
from studio.packages import EXTRAS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

MAPPED = ("studio", "benchmarks", "examples", "docs", "tests")
# the ground is open to everybody; the command line and what only it calls may import everything
GROUND = {"", *"version errors registry config atomic caches claims packages device limits given launched".split()}
GROUND |= set("gguf_header shown rgb exif runs signals sounds temporary mapped".split())
PARTS = {
    "quantization": set(),
    "families": {"quantization"},
    "datasets": set(),
    "adapters": {"families", "quantization"},
    "files": {"adapters", "families"},
    "fidelity": {"families"},
    "planning": {"families", "quantization"},
    "pipelines": {"adapters", "families", "files", "quantization"},
    "trainers": {"adapters", "families", "files", "pipelines", "datasets", "fidelity", "planning", "quantization"},
    "peft": {"adapters", "files"},
}
FREE = {"__main__", "cli", "commands", "doctor", "survey"}
# a part's rooms, and which of them each may import; "" is what stands directly in the part: its doors
ROOMS = {
    "studio": {
        **{part: GROUND | allowed for part, allowed in PARTS.items()},
        **dict.fromkeys(GROUND, GROUND),
        **dict.fromkeys(FREE, GROUND | FREE | set(PARTS)),
        "": GROUND | set(PARTS),  # the lazy front door
    },
    "studio.adapters": {
        "sites": set(),
        "contract": {"sites"},
        "targets": {"sites", "contract"},
        "hosting": {"sites", "contract"},
        "tokens": {"sites", "contract", "hosting"},
        "methods": {"sites", "contract", "tokens"},
        "combining": {"sites", "contract"},
        "": {"sites", "contract", "targets", "hosting", "tokens", "methods", "combining"},
    },
    "studio.trainers": {
        "loop": set(),
        "image": {"loop"},
        "language": {"loop"},
        "forecast": {"loop", "image", "language", ""},  # of the doors the recipes, which open nothing
        "": {"loop", "image", "language", "forecast"},
    },
    "studio.peft": {
        "terms": set(),
        "configs": {"terms"},
        "model": {"terms", "configs"},
        "files": {"terms", "configs", "model"},
        "": {"terms", "configs", "model", "files"},
    },
}
ARROWS = arrows_of(TREES)


def imports(tree: ast.AST) -> list[tuple[str, int]]:
    """All modules that a file imports anywhere, with the line."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}: imports are absolute here"
            module = node.module or ""
            # `from studio import files` names a module of ours
            found += [(f"studio.{alias.name}", node.lineno) for alias in node.names] if module == "studio" else []
            found.append((module, node.lineno))
    return found


def at_import(tree: ast.Module) -> list[str]:
    """The modules that are imported when the file itself is: not those inside functions or for type checkers."""
    found: list[str] = []

    def walk(node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            found.extend(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.append(node.module or "")
        for child in ast.iter_child_nodes(node):
            typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
            if not typing_only and not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                walk(child)

    walk(tree)
    return found


def test_the_links_stand_and_are_relative():
    for name in LINKED:
        link = ROOT / "studio" / name
        assert link.is_symlink(), f"studio/{name} must be a link to ../{name}"
        assert link.readlink() == Path("..", name)


def test_datasets_is_a_namespace_so_hugging_faces_package_stays_visible():
    assert not (ROOT / "datasets" / "__init__.py").exists()
    specification = importlib.util.find_spec("studio.datasets")
    assert specification is not None and specification.origin is None


def test_tests_are_no_package():
    assert not (ROOT / "tests" / "__init__.py").exists()


def test_packages_lists_every_folder_with_python_in_it():
    found = {name if file.name == "__init__.py" else name.rpartition(".")[0] for name, file in SOURCES.items()}
    assert found == set(PYPROJECT["tool"]["setuptools"]["packages"])


def test_every_asset_goes_into_the_wheel():
    """What is no Python in the product's folders matches a pattern of package-data."""
    listed: set[Path] = set()
    for package, patterns in PYPROJECT["tool"]["setuptools"]["package-data"].items():
        folder = Path(PYPROJECT["tool"]["setuptools"]["package-dir"].get(package, package.replace(".", "/")))
        listed |= {file for pattern in patterns for file in (ROOT / folder).glob(pattern)}
    assets = {
        file
        for folder in ("studio", *LINKED)
        for place, _, names in os.walk(ROOT / folder)
        for file in (Path(place, name) for name in names)
        if file.suffix not in (".py", ".pyc", ".tmp") and "__pycache__" not in file.parts
    }
    assert assets - listed == set()
    assert any(file.name == "model_index.json" for file in assets)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_the_map_is_true(page):
    """Every path that a page names is there."""
    words = re.findall(r"`([a-z]+/[\w./-]*)`", (ROOT / page).read_text(encoding="utf-8"))
    paths = [word for word in words if word.partition("/")[0] in {*MAPPED, *LINKED}]
    assert len(paths) > 5
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_extras_are_described_and_described_extras_exist():
    declared = PYPROJECT["project"]["optional-dependencies"]
    assert set(declared) == set(EXTRAS)
    for name, requirements in declared.items():
        names = {re.split(r"[\[<>=!~; ]", requirement)[0] for requirement in requirements}
        assert names - {"adapter-studio"} == set(EXTRAS[name].packages), name


def test_the_version_is_one():
    import studio

    assert studio.__version__ == PYPROJECT["project"]["version"]


def test_no_circle_exists():
    """Anywhere in the product; imports inside functions and under ``TYPE_CHECKING`` count."""
    found = circles(ARROWS)
    drawn = "\n\n".join(draw(circle) for circle in found)
    assert not found, f"these modules import each other in a circle:\n\n{drawn}"


def room_of(module: str, part: str) -> str | None:
    """The room of a part in which a module stands: ``""`` for its doors, None for a module of another part."""
    if f"{module}.".startswith(f"{part}."):
        room = module.removeprefix(part).strip(".").split(".")[0]
        return room if part == "studio" or f"{part}.{room}" in PYPROJECT["tool"]["setuptools"]["packages"] else ""
    return None


@pytest.mark.parametrize("part", ROOMS)
def test_rooms_import_only_the_rooms_before_them(part):
    allowed = ROOMS[part]
    assert {room_of(module, part) for module in TREES} - {None} == set(allowed)
    back = []
    for arrow in ARROWS:
        source, target = room_of(arrow.source, part), room_of(arrow.target, part)
        if source is not None and target is not None and source != target and target not in allowed[source]:
            rooms = ", ".join(sorted(allowed[source])) or "no other room"
            back.append(f"{draw([arrow])}\n{source or 'a door'} may import only {rooms}")
    assert not back, "these arrows go back up:\n\n" + "\n\n".join(back)


@pytest.mark.parametrize("name", TREES)
def test_nobody_imports_the_bare_folders_or_peft(name):
    for module, line in imports(TREES[name]):
        top = module.split(".")[0]
        assert top not in ("trainers", "pipelines"), f"{name}:{line}: say studio.{module}"
        assert top != "peft", f"{name}:{line}: the product never imports peft"
        if top == "datasets":  # Hugging Face's, an optional package
            assert room_of(name, "studio") in ("datasets", "trainers"), f"{name}:{line}"


@pytest.mark.parametrize("name", TREES)
def test_heavy_packages_are_imported_where_they_are_needed(name):
    heavy = {"diffusers", "transformers", "accelerate", "rich", "jinja2", "skimage", "tensorboard", "datasets"}
    if room_of(name, "studio") in {
        "",
        "errors",
        "registry",
        "config",
        "atomic",
        "packages",
        "cli",
        "commands",
        "doctor",
    }:
        heavy |= {"torch", "numpy", "PIL", "safetensors"}
    for module in at_import(TREES[name]):
        assert module.split(".")[0] not in heavy, f"{name} imports {module} at its top"


@pytest.mark.parametrize("name", TREES)
def test_one_file_knows_devices(name):
    if name == "studio.device":
        return
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
            assert not re.fullmatch(r"(cuda|mps|xpu)(:\d+)?", text), (
                f"{name}:{node.lineno}: only studio.device says that"
            )
        if isinstance(node, ast.Attribute) and node.attr in ("cuda", "mps", "xpu"):
            raise AssertionError(f"{name}:{node.lineno}: only studio.device touches torch.{node.attr}")


def declared_packages() -> set[str]:
    project = PYPROJECT["project"]
    requirements = [
        *project["dependencies"],
        *(line for lines in project["optional-dependencies"].values() for line in lines),
    ]
    return {re.split(r"[\[<>=!~; ]", requirement)[0].lower() for requirement in requirements}


@pytest.mark.parametrize("name", TREES)
def test_every_package_that_is_imported_is_declared(name):
    distributions = {
        "PIL": "pillow", "pillow_heif": "pillow-heif", "skimage": "scikit-image", "tomli_w": "tomli-w",
        "yaml": "pyyaml", "optimum": "optimum-quanto",
        # diffusers and transformers bring these, and we go with what they bring
        "huggingface_hub": "diffusers", "tokenizers": "transformers",
    }  # fmt: skip
    declared = declared_packages()
    for module, line in imports(TREES[name]):
        top = module.split(".")[0]
        if top in sys.stdlib_module_names or top == "studio":
            continue
        assert distributions.get(top, top).lower() in declared, f"{name}:{line} imports {top}, which nothing declares"


def public_names() -> list[tuple[str, str, ast.AST]]:
    """Functions, classes and their public methods that a module lists in ``__all__``."""
    found = []
    for name, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name in listed(tree):
                found.append((name, node.name, node))
    return found


@pytest.mark.parametrize("name", TREES)
def test_modules_say_what_they_hold(name):
    assert ast.get_docstring(TREES[name]), f"{name} has no docstring"


@pytest.mark.parametrize(
    ("module", "name", "node"), public_names(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_public_names_are_documented(module, name, node):
    assert ast.get_docstring(node), f"{module}.{name} has no docstring"
    if isinstance(node, ast.ClassDef) and not node.bases:  # a subclass may inherit the words of its base
        methods = [
            child for child in node.body if isinstance(child, ast.FunctionDef) and not child.name.startswith("_")
        ]
        assert [method.name for method in methods if not ast.get_docstring(method)] == [], f"in {module}.{name}"


def run(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=os.sep, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_importing_the_front_door_imports_nothing_heavy():
    code = (
        "import sys, studio, studio.config, studio.errors, studio.registry, studio.packages; "
        "heavy = {'torch', 'numpy', 'PIL', 'diffusers', 'transformers', 'accelerate', 'peft', 'rich'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert run(code) == "[]"


def test_touching_the_core_imports_torch_and_nothing_else_heavy():
    code = (
        "import sys, studio; studio.attach, studio.LoRA, studio.save; "
        "print(sorted({'torch', 'diffusers', 'transformers', 'accelerate', 'peft', 'rich'} & set(sys.modules)))"
    )
    assert run(code) == "['torch']"


def test_every_name_of_the_front_door_is_there():
    import studio

    for name in studio.__all__:
        assert getattr(studio, name) is not None
    assert set(studio.__all__) <= set(dir(studio))
    with pytest.raises(AttributeError, match="no attribute 'atach'"):
        studio.atach  # noqa: B018
    assert callable(studio.adapters), "studio.adapters is the package and, called, the list of a model's adapters"


def test_hugging_faces_datasets_is_not_shadowed():
    if importlib.util.find_spec("datasets") is None or importlib.util.find_spec("datasets").origin is None:
        pytest.skip("Hugging Face's datasets is not installed")
    import datasets

    assert datasets.__file__ and not Path(datasets.__file__).is_relative_to(ROOT / "datasets")
