"""The exceptions of ovseg.

Each one derives from `OvsegError` and from the builtin exception that a caller would catch anyway.
"""

from __future__ import annotations


class OvsegError(Exception):
    """Base of every error that ovseg raises on purpose."""


class InvalidImageError(OvsegError, ValueError):
    """The image cannot be read, or is not an image ovseg understands."""


class InvalidLabelsError(OvsegError, ValueError):
    """The labels, synonyms or templates are empty, duplicate or not text."""


class InvalidArgumentError(OvsegError, ValueError):
    """An option has a value outside its range."""


class UnknownModelError(OvsegError, ValueError):
    """No model card has this name."""


class WeightsError(OvsegError, RuntimeError):
    """Weights are missing, damaged or do not fit the model."""


class MissingDependencyError(OvsegError, ImportError):
    """An optional package is needed and not installed, or two installed packages exclude each other."""


class BackendError(OvsegError, RuntimeError):
    """The runtime cannot run the model as asked."""


class UnsupportedOperationError(OvsegError, NotImplementedError):
    """The model has no such operation."""


class DatasetError(OvsegError, ValueError):
    """A dataset folder does not have the layout that ovseg expects."""


class OutputError(OvsegError, OSError):
    """A result cannot be written where it was asked for."""
