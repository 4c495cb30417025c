"""SigLIP 2's text tower in plain torch, with the parameter names of its Hugging Face release, and its tokenizer.

Tschannen et al., "SigLIP 2: Multilingual Vision-Language Encoders with Improved Semantic Understanding, Localization, and Dense
Features", arXiv:2502.14786; the configuration is that of the released models (open_clip's ViT-SO400M-16-SigLIP2-384 and
ViT-gopt-16-SigLIP2-384 give the same). A bidirectional pre-norm transformer over 64 tokens. Padding is not masked: the models were
trained so, and the output at the last position, which is padding in most texts, goes through a linear head.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from ovseg.errors import MissingDependencyError, WeightsError

_PAD, _EOS = 0, 1  # Gemma's vocabulary
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class TextConfig:
    """Sizes of a text tower.

    Attributes:
        embed_dim: Size D of the shared space.
        width: Channels of a token.
        layers: Blocks.
        heads: Attention heads.
        hidden: Channels inside a block's MLP.
        vocabulary: Known tokens.
        context: Tokens of a text, padding and end included.
    """

    embed_dim: int
    width: int = 1152
    layers: int = 27
    heads: int = 16
    hidden: int = 4304
    vocabulary: int = 256000
    context: int = 64


class Embeddings(nn.Module):
    """A vector for each token plus one for each place."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocabulary, config.width)
        self.position_embedding = nn.Embedding(config.context, config.width)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Map (N, T) to (N, T, C)."""
        x: Tensor = self.token_embedding(input_ids) + self.position_embedding.weight[: input_ids.shape[1]]
        return x


class Attention(nn.Module):
    """Multi-head attention of all tokens to all tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, T, C) to the same shape."""
        n, t, c = x.shape
        q, k, v = (part(x).view(n, t, self.heads, c // self.heads).transpose(1, 2) for part in (self.q_proj, self.k_proj, self.v_proj))
        mixed = F.scaled_dot_product_attention(q, k, v)
        y: Tensor = self.out_proj(mixed.transpose(1, 2).reshape(n, t, c))
        return y


class Mlp(nn.Module):
    """The two linear layers of a block."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, T, C) to the same shape."""
        y: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return y


class Block(nn.Module):
    """Attention and MLP, each behind a norm and around a shortcut."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.width, eps=1e-6)
        self.self_attn = Attention(config.width, config.heads)
        self.layer_norm2 = nn.LayerNorm(config.width, eps=1e-6)
        self.mlp = Mlp(config.width, config.hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, T, C) to the same shape."""
        x = x + self.self_attn(self.layer_norm1(x))
        y: Tensor = x + self.mlp(self.layer_norm2(x))
        return y


class TextTower(nn.Module):
    """Token ids to embeddings; the published names of its tensors begin with `text_model.`."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = nn.ModuleDict({"layers": nn.Sequential(*(Block(config) for _ in range(config.layers)))})
        self.final_layer_norm = nn.LayerNorm(config.width, eps=1e-6)
        self.head = nn.Linear(config.width, config.embed_dim)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Embed texts.

        Args:
            input_ids: (N, 64) int64 token ids, padded with 0.

        Returns:
            (N, D), not normalised.
        """
        x = self.embeddings(input_ids)
        x = self.final_layer_norm(self.encoder["layers"](x))
        y: Tensor = self.head(x[:, -1])
        return y


def canonicalize(text: str) -> str:
    """Lower-case a text and drop its ASCII punctuation, as SigLIP's training did; without that, zero-shot accuracy falls by twelve points.

    Source: big_vision, evaluators/proj/image_text/prompt_engineering.py; the points: NVlabs/RADIO, pull request 142.
    """
    return " ".join(text.replace("_", " ").translate(_NO_PUNCTUATION).lower().split())


def siglip_tokenizer(file: Path, context: int = 64) -> Callable[[Sequence[str]], list[list[int]]]:
    """Read SigLIP 2's tokenizer, which is Gemma's.

    Args:
        file: tokenizer.json of the release.
        context: Tokens of a text, padding and end included.

    Returns:
        A function from texts to token ids: no token for the start, one for the end, then padding up to `context`.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingDependencyError("SigLIP 2 needs the package tokenizers: pip install tokenizers") from error
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises Exception itself
        raise WeightsError(f"{file} is no tokenizer: {error}. Download it again.") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()

    def tokenize(texts: Sequence[str]) -> list[list[int]]:
        batch = tokenizer.encode_batch([canonicalize(text) for text in texts], add_special_tokens=False)
        rows = [[*entry.ids[: context - 1], _EOS] for entry in batch]
        return [row + [_PAD] * (context - len(row)) for row in rows]

    return tokenize
