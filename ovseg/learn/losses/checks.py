"""What the losses ask of their inputs."""

from __future__ import annotations

from torch import Tensor

from ovseg.errors import InvalidArgumentError


def check_map(values: Tensor, name: str) -> None:
    """Refuse what is no (B, K, H, W) floating-point tensor.

    Args:
        values: What was given.
        name: Its name, for the message.

    Raises:
        InvalidArgumentError: If it has another shape or type.
    """
    if values.ndim != 4 or not values.is_floating_point():
        raise InvalidArgumentError(f"{name} must be a (B, K, H, W) floating-point tensor; got {tuple(values.shape)}, {values.dtype}.")


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
