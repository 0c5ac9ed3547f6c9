"""Adapter files: formats of PEFT, diffusers, kohya, llama.cpp and MLX, read and written strictly and reproducibly."""

from studio.files import diffusers as _diffusers  # noqa: F401  (registers its format)
from studio.files import gguf as _gguf  # noqa: F401
from studio.files import kohya as _kohya  # noqa: F401
from studio.files import mlx as _mlx  # noqa: F401
from studio.files import peft as _peft  # noqa: F401
from studio.files.combine import Parent, combine_files
from studio.files.convert import ConvertReport, convert
from studio.files.embedding import EMBEDDINGS, Embedding
from studio.files.embedding_file import read_embeddings, save_embedding
from studio.files.embedding_load import embeddings, remove_embedding
from studio.files.extract import ExtractReport, extract
from studio.files.format import FORMATS, Format, common_formats
from studio.files.inspect import AdapterFile, inspect
from studio.files.load import load
from studio.files.report import LoadReport
from studio.files.resize import ResizeReport, resize
from studio.files.save import save

__all__ = [
    "EMBEDDINGS",
    "FORMATS",
    "AdapterFile",
    "ConvertReport",
    "Embedding",
    "ExtractReport",
    "Format",
    "LoadReport",
    "Parent",
    "ResizeReport",
    "combine_files",
    "common_formats",
    "convert",
    "embeddings",
    "extract",
    "inspect",
    "load",
    "read_embeddings",
    "remove_embedding",
    "resize",
    "save",
    "save_embedding",
]
