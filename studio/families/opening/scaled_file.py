"""Denoisers in ComfyUI's scaled fp8: 8-bit floats, and beside each weight the number that it is multiplied by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from studio.quantization.layers import replace_layer
from studio.quantization.scaled import ScaledLinear

__all__ = ["BESIDE", "read_scaled", "scale_names"]

_SCALES: Final = (".scale_weight", ".weight_scale")
BESIDE: Final = (*_SCALES, ".scale_input", ".input_scale", ".comfy_quant", "scaled_fp8")
"""Ends of the names of what stands beside weights; scales of inputs are for kernels that round those too."""


def scale_names(names: Iterable[str]) -> dict[str, str]:
    """Returns the scales in a file: name of a weight -> that of its scale.

    Example:
        >>> scale_names(["a.weight", "a.scale_weight", "b.weight"])
        {'a.weight': 'a.scale_weight'}
    """
    return {f"{name.removesuffix(end)}.weight": name for name in names for end in _SCALES if name.endswith(end)}


def read_scaled(cls: Any, tensors: Mapping[str, Tensor], folder: str, part: str, dtype: torch.dtype) -> nn.Module:
    """Makes a denoiser whose scaled weights stay as they are in the file.

    diffusers' conversion of names takes the weights apart where they are fused; the scales go the same way, one number
    per row.

    Args:
        cls: the diffusers class. tensors: of the file, under the names that its conversion knows.
        folder: with the configs. part: the denoiser's folder in it. dtype: in which it computes.
    """
    from accelerate import init_empty_weights

    config = cls.load_config(folder, subfolder=part, local_files_only=True)
    with init_empty_weights(include_buffers=False):
        model: nn.Module = cls.from_config(config)
    weights = {name: _bytes(tensor) for name, tensor in tensors.items() if not name.endswith(BESIDE)}
    rows = dict(weights)
    scales = scale_names(tensors)
    for name, beside in scales.items():
        rows[name] = tensors[beside].float().reshape(-1, 1).expand(len(tensors[name]), 1).contiguous()
    codes, each = (_converted(cls, config, state, model) for state in (weights, rows))
    for path, layer in list(model.named_modules()):
        weight, scale = codes.get(f"{path}.weight"), each.get(f"{path}.weight")
        if isinstance(layer, nn.Linear) and weight is not None and weight is not scale and weight.dtype == torch.uint8:
            assert scale is not None, "both are converted alike"
            bias = codes.pop(f"{path}.bias", None)
            own = None if bias is None else nn.Parameter(bias.to(dtype), requires_grad=False)
            packed = codes.pop(f"{path}.weight").view(torch.float8_e4m3fn)
            replace_layer(model, path, ScaledLinear(packed, scale.contiguous(), own, dtype))
    left = {name: _numbers(tensor).to(dtype) for name, tensor in codes.items()}
    model.load_state_dict(left, strict=False, assign=True)
    return model.requires_grad_(False).eval()


def _bytes(tensor: Tensor) -> Tensor:
    """8-bit floats as bytes, which can be cut and joined."""
    return tensor.view(torch.uint8) if tensor.dtype == torch.float8_e4m3fn else tensor


def _numbers(tensor: Tensor) -> Tensor:
    return tensor.view(torch.float8_e4m3fn).float() if tensor.dtype == torch.uint8 else tensor


def _converted(cls: Any, config: Mapping[str, Any], state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The tensors under diffusers' names."""
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    if set(model.state_dict()) == set(state):
        return state
    convert = SINGLE_FILE_LOADABLE_CLASSES[cls.__name__]["checkpoint_mapping_fn"]
    found: dict[str, Tensor] = convert(config=config, checkpoint=dict(state))
    return found
