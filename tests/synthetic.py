"""Weights that are a pure function of their names and shapes, so that two implementations agree on them without a file."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch

_SCALES = ("norm", "ln_", "bn1", "bn2", "layrnorm", "layernorm")


def synthetic_tensor(name: str, shape: Sequence[int]) -> torch.Tensor:
    """Draw one tensor: kernels N(0, 1 / fan-in); biases and embeddings N(0, 0.02²); scales of norms near 1; variances in [1, 1.1]."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    *path, leaf = name.split(".")
    if leaf == "num_batches_tracked":
        return torch.zeros(tuple(shape), dtype=torch.int64)
    if leaf == "running_var":
        return torch.from_numpy(np.asarray(1 + 0.1 * random.random_sample(tuple(shape)), np.float32))
    values = np.asarray(random.standard_normal(tuple(shape)), np.float32)
    if leaf == "weight" and path and any(hint in path[-1].lower() for hint in _SCALES):
        values = 1 + np.float32(0.1) * values
    elif len(shape) > 1 and "embed" not in leaf and "token" not in leaf and "embedding" not in name:
        values = values / np.sqrt(np.prod(shape[1:]))
    else:
        values = values * np.float32(0.02)
    return torch.from_numpy(np.asarray(values, np.float32))


def synthetic_state_dict(shapes: Mapping[str, Sequence[int]]) -> dict[str, torch.Tensor]:
    """Draw every tensor of `shapes` (name -> shape)."""
    return {name: synthetic_tensor(name, shape) for name, shape in shapes.items()}


def synthesise(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Give a module synthetic weights in place, and return them."""
    state = synthetic_state_dict({name: tuple(value.shape) for name, value in module.state_dict().items()})
    module.load_state_dict(state)
    return state
