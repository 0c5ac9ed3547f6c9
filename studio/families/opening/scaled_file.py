"""Denoisers in ComfyUI's scaled fp8: 8-bit floats, and beside each weight the number that it is multiplied by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from studio.errors import BadFile
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

    Raises:
        BadFile: a scale of another packing, or a weight of another size than the configs say.
    """
    from accelerate import init_empty_weights

    config = cls.load_config(folder, subfolder=part, local_files_only=True)
    with init_empty_weights(include_buffers=False):
        model: nn.Module = cls.from_config(config)
    codes, each = (_converted(cls, config, state, model) for state in _parted(tensors))
    for path, layer in list(model.named_modules()):
        weight = codes.get(f"{path}.weight")
        if isinstance(layer, nn.Linear) and weight is not None and weight.dtype == torch.uint8:
            if weight.shape != (layer.out_features, layer.in_features):
                raise BadFile(
                    f"{path} is {tuple(weight.shape)} in the file and ({layer.out_features}, {layer.in_features}) in "
                    f"{folder}; name the folder of its configs with --config-of (config_of=)"
                )
            bias = codes.pop(f"{path}.bias", None)
            own = None if bias is None else nn.Parameter(bias.to(dtype), requires_grad=False)
            packed = codes.pop(f"{path}.weight").view(torch.float8_e4m3fn)
            replace_layer(model, path, ScaledLinear(packed, each[f"{path}.weight"].contiguous(), own, dtype))
    left = {name: _times(tensor, each[name]).to(dtype) for name, tensor in codes.items()}
    model.load_state_dict(left, strict=False, assign=True)
    return model.requires_grad_(False).eval()


def _parted(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights, and the same with scales ``(rows, 1)`` in the places of those that stay in 8 bits.

    These are bytes, which can be cut and joined as 8-bit floats cannot. What is scaled otherwise is multiplied out.

    Raises:
        BadFile: a scale without its weight, or one of another packing.
    """
    weights = {name: _dense(tensor) for name, tensor in tensors.items() if not name.endswith(BESIDE)}
    rows: dict[str, Tensor] = {}
    for name, beside in scale_names(tensors).items():
        weight, scale = tensors.get(name), tensors[beside].float()
        if (
            weight is None
            or not weight.dim()
            or not weight.is_floating_point()
            or scale.numel() not in (1, len(weight))
        ):
            raise BadFile(
                f"{beside} does not scale 8-bit floats, all of them or row by row; ComfyUI's other packings are not "
                "read: give the model as scaled fp8, or as it was before"
            )
        if weight.dtype == torch.float8_e4m3fn and weight.dim() == 2:
            weights[name] = weight.view(torch.uint8)
            rows[name] = scale.reshape(-1, 1).expand(len(weight), 1).contiguous()
        else:
            weights[name] = weight.float() * scale.reshape(-1, *(1 for _ in weight.shape[1:]))
    return weights, weights | rows


def _dense(tensor: Tensor) -> Tensor:
    """8-bit floats as numbers that can be cut and joined."""
    return tensor.float() if tensor.is_floating_point() and tensor.itemsize == 1 else tensor


def _times(tensor: Tensor, scale: Tensor) -> Tensor:
    """What is still in 8 bits, since no linear layer has it, as its numbers."""
    return tensor.view(torch.float8_e4m3fn).float() * scale if tensor.dtype == torch.uint8 else tensor


def _converted(cls: Any, config: Mapping[str, Any], state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The tensors under diffusers' names."""
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    if set(model.state_dict()) == set(state):
        return state
    convert = SINGLE_FILE_LOADABLE_CLASSES[cls.__name__]["checkpoint_mapping_fn"]
    found: dict[str, Tensor] = convert(config=config, checkpoint=dict(state))
    return found
