"""The pieces of an open_clip transformer, run one by one: heads, blocks, position embeddings, and the text tower up to its last word.

Attention goes through `scaled_dot_product_attention` on the published weights of `nn.MultiheadAttention`: the same numbers, with queries,
keys and values in reach, and a graph that exports.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Keys' cubic convolution with a = -3/4, that of OpenCV and of torch without antialiasing (IEEE Trans. ASSP 29, 1981).
_CUBIC = -0.75
# SCLIP, NACLIP and their kin (following DINO's code) resize position embeddings as if the grid were 0.1 cells larger.
SHIFT = 0.1


def split_heads(attention: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute queries, keys and values.

    Args:
        attention: An `nn.MultiheadAttention` with one input width.
        x: (B, T, C) tokens after the first norm.

    Returns:
        Three tensors (B, heads, T, C / heads).
    """
    joint = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)
    joint = joint.view(x.shape[0], x.shape[1], 3, attention.num_heads, x.shape[2] // attention.num_heads)
    q, k, v = joint.permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def join_heads(attention: Any, x: Tensor) -> Tensor:
    """Map (B, heads, T, C / heads) through the attention's output projection to (B, T, C)."""
    y: Tensor = attention.out_proj(x.transpose(1, 2).flatten(2))
    return y


def finish_block(block: Any, x: Tensor, mixed: Tensor) -> Tensor:
    """Do what a pre-norm block does after its attention: residual, then MLP with residual.

    Args:
        block: An open_clip `ResidualAttentionBlock`.
        x: (B, T, C) tokens that came into the block.
        mixed: (B, T, C) output of its attention.

    Returns:
        (B, T, C).
    """
    x = x + block.ls_1(mixed)
    y: Tensor = x + block.ls_2(block.mlp(block.ln_2(x)))
    return y


def run_block(block: Any, x: Tensor, causal: bool = False) -> Tensor:
    """Run a whole open_clip `ResidualAttentionBlock` on (B, T, C) tokens; a causal one sees no later token."""
    q, k, v = split_heads(block.attn, block.ln_1(x))
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return finish_block(block, x, join_heads(block.attn, mixed))


def _cubic_taps(count: int, grid: int, span: Tensor) -> Tensor:
    """Return (count, grid) weights of a cubic resize of `grid` samples to `count`, as if they were `span`; borders repeat."""
    place = (torch.arange(count, device=span.device, dtype=torch.float32) + 0.5) * (grid / span) - 0.5
    distance = (place[:, None] - torch.arange(-2, grid + 2, device=span.device)).abs()
    near = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance**2 + 1
    far = _CUBIC * (((distance - 5) * distance + 8) * distance - 4)
    taps = torch.where(distance <= 1, near, torch.where(distance < 2, far, 0.0))
    if grid == 1:
        return taps.sum(1, keepdim=True)
    return torch.cat([taps[:, :3].sum(1, keepdim=True), taps[:, 3:-3], taps[:, -3:].sum(1, keepdim=True)], dim=1)


def research_positions(table: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize position embeddings as the published code of SCLIP, NACLIP and their kin does: bicubic, scale (n + 0.1) / grid.

    The 0.1 began as a guard against rounding. It moves the last samples by a tenth of a cell, which is more than all other errors here.
    Where the grids agree the weights are those of the identity, exactly; one graph serves all sizes.

    Args:
        table: (h, w, C) of the grid that the model was trained on.
        size: (h', w') of the grid that is wanted.

    Returns:
        (h', w', C) of the dtype of `table`.
    """
    wanted = [torch.full((), count, dtype=torch.float32, device=table.device) for count in size]
    native = (wanted[0] == table.shape[0]) & (wanted[1] == table.shape[1])
    shift = torch.where(native, 0.0, SHIFT)
    rows, columns = (_cubic_taps(size[axis], table.shape[axis], wanted[axis] + shift) for axis in (0, 1))
    return torch.einsum("ih,jw,hwc->ijc", rows, columns, table.float()).to(table.dtype)


def encode_text(clip: Any, input_ids: Tensor) -> Tensor:
    """Run the text tower of an open_clip model, up to the last word where that is exact.

    A causal tower that reads its answer at the end-of-text token never looks at the padding behind it, so the ids are cut after the
    longest text. CLIPA (no causal mask, the answer at the last place), CoCa (class token) and Hugging Face towers need all ids.

    Args:
        clip: An open_clip `CLIP` or `CustomTextCLIP`.
        input_ids: (N, T) int64 token ids with start and end, padded.

    Returns:
        (N, D), not normalised.
    """
    tower = getattr(clip, "text", clip)
    pool = clip.text_pool_type if tower is clip else getattr(tower, "pool_type", "")
    if getattr(tower, "attn_mask", None) is None or getattr(tower, "cls_emb", None) is not None or pool not in ("argmax", "eos"):
        whole: Tensor = clip.encode_text(input_ids)
        return whole
    if pool == "argmax":  # CLIP's end of text is the largest id
        end = input_ids.argmax(1)
    else:
        end = (input_ids == (clip.text_eos_id if tower is clip else tower.eos_id)).int().argmax(1)
    if not (input_ids.is_meta or torch.compiler.is_compiling()):  # a graph keeps its length
        input_ids = input_ids[:, : int(end.max()) + 1]
    x = tower.token_embedding(input_ids) + tower.positional_embedding[: input_ids.shape[1]]
    for block in tower.transformer.resblocks:
        x = run_block(block, x, causal=True)
    last: Tensor = tower.ln_final(x[torch.arange(x.shape[0], device=x.device), end])
    projection = tower.text_projection
    if isinstance(projection, torch.nn.Linear):
        return F.linear(last, projection.weight, projection.bias)
    return last if projection is None else last @ projection
