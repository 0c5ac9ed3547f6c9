"""Optional packages: one way to ask for them, one table of what each extra adds."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from types import ModuleType

from studio.errors import MissingPackage

__all__ = ["EXTRAS", "Extra", "need", "version_of"]


@dataclass(frozen=True)
class Extra:
    """One optional part of the distribution.

    Args:
        packages: names on the package index: those that ``pip install '.[NAME]'`` brings in a checkout.
        adds: what the user gains, as the end of "adds ...".
    """

    packages: tuple[str, ...]
    adds: str

    @property
    def command(self) -> str:
        """What installs it, wherever the studio itself was installed from.

        Example:
            >>> EXTRAS["heic"].command
            'pip install pillow-heif'
        """
        return f"pip install {' '.join(self.packages)}"


EXTRAS: dict[str, Extra] = {
    "xformers": Extra(("xformers",), "xFormers' attention in diffusers' pipelines, in which adapters act as before"),
    "quant": Extra(("bitsandbytes", "torchao", "optimum-quanto"), "adapters on bases that these have quantised"),
    "gguf": Extra(("gguf",), "bases and adapters in llama.cpp's .gguf files"),
    "llm": Extra(("datasets", "trl"), "Hugging Face's data sets and TRL's trainers, for scripts with studio.peft"),
    "distributed": Extra(("deepspeed",), "ZeRO-2 and ZeRO-3, with parts that rest in the CPU's memory"),
    "metrics": Extra(("tensorboard",), "TensorBoard curves of a run"),
    "heic": Extra(("pillow-heif",), "HEIC pictures, as phones make them"),
    "audio": Extra(("soundfile",), "sounds in FLAC, MP3, OGG and other files than plain WAV"),
    "ray": Extra(("ray", "pyarrow", "pandas"), "lists of pictures that are drawn on a Ray cluster"),
    "bench": Extra(("peft", "psutil", "matplotlib"), "side-by-side measurements against PEFT"),
    "test": Extra(
        (
            "pytest",
            "pytest-xdist",
            "hypothesis",
            "peft",
            "lycoris-lora",
            "tensorboard",
            "scikit-image",
            "bitsandbytes",
            "gguf",
            "datasets",
            "trl",
        ),
        "the studio's own tests",
    ),
    "dev": Extra(("ruff", "mypy", "build"), "the tools of the studio's developers"),
}


def need(module: str, purpose: str, *, extra: str) -> ModuleType:
    """Imports an optional package, or says which extra brings it.

    Args:
        module: the import name, such as ``"bitsandbytes"``.
        purpose: what needs it, as the subject of a sentence: ``"4-bit bases"``.
        extra: a key of :data:`EXTRAS`.

    Returns:
        The imported module.

    Raises:
        MissingPackage: it is not installed, or its own import fails.
        KeyError: no extra has that name, which is a mistake in the program.

    Example:
        >>> need("json", "run logs", extra="test").dumps([1])
        '[1]'
        >>> need("no_such_package", "4-bit bases", extra="quant")
        Traceback (most recent call last):
        ...
        studio.errors.MissingPackage: 4-bit bases need no_such_package: pip install bitsandbytes torchao optimum-quanto
    """
    if extra not in EXTRAS:
        raise KeyError(extra)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        if missing.partition(".")[0] == module.partition(".")[0]:
            raise MissingPackage(f"{purpose} need {module}: {EXTRAS[extra].command}") from None
        found = f"its own requirement {missing} is missing"
    except ImportError as error:
        found = str(error)
    raise MissingPackage(
        f"{purpose} need {module}, which is installed but cannot be imported ({found}): "
        f"{EXTRAS[extra].command} --force-reinstall"
    )


def version_of(package: str) -> str | None:
    """Returns the installed version of a package (its name on the package index), or None; imports nothing.

    Example:
        >>> version_of("no-such-package") is None
        True
    """
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
