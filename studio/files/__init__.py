"""Adapter files: reading and writing the formats of PEFT, diffusers and kohya, strictly and reproducibly."""

from studio.files import diffusers as _diffusers  # noqa: F401  (registers its format)
from studio.files import kohya as _kohya  # noqa: F401
from studio.files import peft as _peft  # noqa: F401
from studio.files.combine import Parent, combine_files
from studio.files.convert import ConvertReport, convert
from studio.files.extract import ExtractReport, extract
from studio.files.format import FORMATS, Format
from studio.files.inspect import AdapterFile, inspect
from studio.files.load import load
from studio.files.report import LoadReport
from studio.files.resize import ResizeReport, resize
from studio.files.save import save

__all__ = [
    "FORMATS",
    "AdapterFile",
    "ConvertReport",
    "ExtractReport",
    "Format",
    "LoadReport",
    "Parent",
    "ResizeReport",
    "combine_files",
    "convert",
    "extract",
    "inspect",
    "load",
    "resize",
    "save",
]
