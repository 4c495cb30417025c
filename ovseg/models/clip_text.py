"""CLIP's text tower in plain torch, with the parameter names of OpenAI's release (which open_clip shares), and its tokenizer.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021, section 2.4: a causal
transformer with pre-norm; the output at the end-of-text token is the embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovseg.errors import MissingDependencyError
from ovseg.models.base import QuickGELU

CONTEXT = 77
"""Tokens that the released models read, with the two that mark start and end."""
VOCABULARY = 49408
"""Tokens that CLIP's byte-pair encoding knows."""


class CausalAttention(nn.Module):
    """Multi-head attention of tokens to themselves and to those before them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.randn(3 * width, width) * width**-0.5)
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, T, C) to the same shape."""
        n, t, c = x.shape
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias).view(n, t, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (N, heads, T, C / heads) each
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        y: Tensor = self.out_proj(mixed.transpose(1, 2).reshape(n, t, c))
        return y


class Mlp(nn.Module):
    """The two linear layers of a block."""

    def __init__(self, width: int, quick_gelu: bool) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.gelu = QuickGELU() if quick_gelu else nn.GELU()
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, T, C) to the same shape."""
        y: Tensor = self.c_proj(self.gelu(self.c_fc(x)))
        return y


class Block(nn.Module):
    """Attention and MLP, each behind a norm and around a shortcut."""

    def __init__(self, width: int, heads: int, quick_gelu: bool) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = CausalAttention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, quick_gelu)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, T, C) to the same shape."""
        x = x + self.attn(self.ln_1(x))
        y: Tensor = x + self.mlp(self.ln_2(x))
        return y


class Transformer(nn.Module):
    """The blocks, under the name that the published files give them."""

    def __init__(self, width: int, layers: int, heads: int, quick_gelu: bool) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads, quick_gelu) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, T, C) to the same shape."""
        for block in self.resblocks:
            x = block(x)
        return x


class CLIPText(nn.Module):
    """Token ids to text embeddings.

    Args:
        width: Channels C of the transformer.
        layers: Blocks.
        heads: Heads of each attention.
        embed_dim: Size D of the space shared with images.
        context: Most tokens of a text, T at most.
        vocab: Token ids are below this.
        quick_gelu: Whether the activation is OpenAI's x * sigmoid(1.702 x) or the exact GELU of later trainings.
    """

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        embed_dim: int,
        context: int = CONTEXT,
        vocab: int = VOCABULARY,
        quick_gelu: bool = True,
    ) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocab, width)
        self.positional_embedding = nn.Parameter(torch.randn(context, width) * 0.01)
        self.transformer = Transformer(width, layers, heads, quick_gelu)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, embed_dim) * width**-0.5)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Embed texts.

        Args:
            input_ids: (N, T) int64. The end-of-text token is the one with the largest id; what follows it is not looked at.

        Returns:
            (N, D) embeddings in the module's dtype, not normalised.
        """
        end = input_ids.argmax(-1)  # (N,)
        if not torch.compiler.is_compiling():
            # No token sees those after it, so what stands after the last end changes nothing. A graph keeps the full length:
            # its shapes must not depend on what the tokens are.
            input_ids = input_ids[:, : int(end.max()) + 1]
        x = self.token_embedding(input_ids) + self.positional_embedding[: input_ids.shape[1]]
        x = self.transformer(x)
        pooled = x[torch.arange(x.shape[0], device=x.device), end]  # the norm is of each token alone, so pooling may come first
        y: Tensor = self.ln_final(pooled) @ self.text_projection
        return y


def build_clip_tokenizer(context: int = CONTEXT) -> Callable[[Sequence[str]], list[list[int]]]:
    """Return CLIP's tokenizer, which lower-cases and comes with open_clip.

    Args:
        context: Length of every list of ids.

    Returns:
        A function from N texts to N lists of `context` ids: start, tokens, end, zeros. Of a longer text the beginning stays, and
        the end mark.

    Raises:
        MissingDependencyError: If open_clip is not installed.
    """
    try:
        from open_clip.tokenizer import SimpleTokenizer
    except ImportError as error:
        raise MissingDependencyError("CLIP's tokenizer needs open_clip: pip install 'ovseg[torch]'") from error
    tokenizer = SimpleTokenizer(context_length=context)

    def tokenize(texts: Sequence[str]) -> list[list[int]]:
        rows = []
        for text in texts:
            ids = [tokenizer.sot_token_id, *tokenizer.encode(text)[: context - 2], tokenizer.eot_token_id]
            rows.append(ids + [0] * (context - len(ids)))
        return rows

    return tokenize
