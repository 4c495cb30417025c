"""What the losses ask of their inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from ovseg.errors import InvalidArgumentError


def check_map(values: Tensor, name: str) -> Tensor:
    """Refuse what is no (B, K, H, W) floating-point tensor.

    Args:
        values: What was given.
        name: Its name, for the message.

    Returns:
        The values, in single precision where they came in half; see `widened`.

    Raises:
        InvalidArgumentError: If it has another shape or type.
    """
    if values.ndim != 4 or not values.is_floating_point():
        raise InvalidArgumentError(f"{name} must be a (B, K, H, W) floating-point tensor; got {tuple(values.shape)}, {values.dtype}.")
    return widened(values)


def widened(values: Tensor) -> Tensor:
    """Bring half precision to single: sums over thousands of pixels overflow float16, and 1 - 1e-6 is 1 in both half types."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def check_beside(values: Tensor, shape: tuple[int, ...], name: str) -> None:
    """Refuse a tensor whose shape is not the one that goes with the others.

    Args:
        values: What was given.
        shape: The shape it must have; -1 for any length.
        name: Its name, for the message.

    Raises:
        InvalidArgumentError: If it has another shape.
    """
    if values.ndim != len(shape) or any(want not in (-1, got) for want, got in zip(shape, values.shape, strict=True)):
        wanted = "(" + ", ".join("any" if side == -1 else str(side) for side in shape) + ")"
        raise InvalidArgumentError(f"{name} must have the shape {wanted}; got {tuple(values.shape)}.")


def check_mask(mask: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse what is no mask of these pixels.

    Args:
        mask: What was given.
        shape: (B, H, W).

    Raises:
        InvalidArgumentError: If it has another shape or is not bool: other numbers would weigh pixels, which some losses square.
    """
    check_beside(mask, shape, "mask")
    if mask.dtype != torch.bool:
        raise InvalidArgumentError(f"mask must be bool, True where a pixel counts; got {mask.dtype}. Write mask > 0.")


def check_positive(value: float, name: str) -> None:
    """Refuse a number that is not positive and finite.

    Args:
        value: What was given.
        name: Its name, for the message.

    Raises:
        InvalidArgumentError: If it is not.
    """
    if not 0 < value < float("inf"):
        raise InvalidArgumentError(f"{name} must be a positive number; got {value!r}.")


def check_choice(value: str, choices: tuple[str, ...], name: str) -> None:
    """Refuse a word that is none of the choices.

    Args:
        value: What was given.
        choices: The words there are.
        name: Its name, for the message.

    Raises:
        InvalidArgumentError: If it is none of them.
    """
    if value not in choices:
        raise InvalidArgumentError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}.")
