"""``nn.MultiheadAttention`` with adapters.

The layer reads ``in_proj_weight`` and ``out_proj.weight`` itself and calls no sublayer, so adapters act through the
weight: ``W + Σ s_i ΔW_i`` takes the place of ``W`` in the same attention function that torch uses. Where samples have
strengths of their own, every row of the batch is computed with its own weight.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from studio.adapters.hosting.apart import other_rows
from studio.adapters.hosting.mount import MOUNT, Mount, Pair

__all__ = ["attend"]


def _tensors(mount: Mount | None, weight: Tensor, bias: Tensor | None, row: int) -> Pair:
    return (weight, bias) if mount is None else mount.adapted(weight, bias, row)


def attend(
    layer: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Computes the attention of ``layer`` with its adapters; arguments and results are those of torch's layer.

    Args:
        layer: the attention.
        query, key, value: the sequences, ``(L, B, in)``, ``(S, B, in)`` twice; ``(B, L, in)`` with ``batch_first``.
        key_padding_mask: what is not read, ``(B, S)``.
        need_weights: whether the weights are returned too.
        attn_mask: what each query does not read, ``(L, S)`` or ``(B · heads, L, S)``.
        average_attn_weights: whether the weights are averaged over the heads.
        is_causal: whether ``attn_mask`` is the causal one.
    """
    own = cast(Mount, layer.__dict__[MOUNT])
    out = cast("Mount | None", layer.out_proj.__dict__.get(MOUNT))
    batched = query.dim() == 3
    if layer.batch_first and batched:
        # contiguous: on a view, torch's order of sums depends on whether the weight requires gradients
        query, key, value = (tensor.transpose(0, 1).contiguous() for tensor in (query, key, value))
    options = {"need_weights": need_weights, "average_attn_weights": average_attn_weights, "is_causal": is_causal}
    rows = own.rows() if out is None or own.rows() is not None else out.rows()
    if rows is None or not batched:
        result, weights = _attention(layer, own, out, 0, query, key, value, key_padding_mask, attn_mask, options)
    else:
        count = query.shape[1]
        if count != rows:
            raise other_rows(own.site.path, rows, count)
        parts = []
        for row in range(count):
            one = slice(row, row + 1)
            padding = None if key_padding_mask is None else key_padding_mask[one]
            heads = slice(row * layer.num_heads, (row + 1) * layer.num_heads)
            mask = attn_mask[heads] if attn_mask is not None and attn_mask.dim() == 3 else attn_mask
            sequences = (query[:, one], key[:, one], value[:, one])
            parts.append(_attention(layer, own, out, row, *sequences, padding, mask, options))
        result = torch.cat([part for part, _ in parts], dim=1)
        weights = torch.cat([cast(Tensor, part) for _, part in parts]) if need_weights else None
    return (result.transpose(0, 1) if layer.batch_first and batched else result), weights


def _attention(
    layer: nn.MultiheadAttention,
    own: Mount,
    out: Mount | None,
    row: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None,
    attn_mask: Tensor | None,
    options: dict[str, Any],
) -> tuple[Tensor, Tensor | None]:
    if layer.in_proj_weight is None:
        in_weight, in_bias = None, layer.in_proj_bias
    else:
        in_weight, in_bias = _tensors(own, layer.in_proj_weight, layer.in_proj_bias, row)
    out_weight, out_bias = _tensors(out, layer.out_proj.weight, layer.out_proj.bias, row)
    return F.multi_head_attention_forward(
        query,
        key,
        value,
        layer.embed_dim,
        layer.num_heads,
        in_weight,
        in_bias,
        layer.bias_k,
        layer.bias_v,
        layer.add_zero_attn,
        layer.dropout,
        out_weight,
        cast(Tensor, out_bias),
        training=layer.training,
        key_padding_mask=key_padding_mask,
        attn_mask=attn_mask,
        **_separate(layer),
        **options,
    )


def _separate(layer: nn.MultiheadAttention) -> dict[str, Any]:
    """The projections of an attention with a kdim or vdim of its own, whose output projection alone can be adapted."""
    if layer.in_proj_weight is not None:
        return {}
    return {
        "use_separate_proj_weight": True,
        "q_proj_weight": layer.q_proj_weight,
        "k_proj_weight": layer.k_proj_weight,
        "v_proj_weight": layer.v_proj_weight,
    }
