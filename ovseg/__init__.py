"""Open-vocabulary segmentation: an image and words in, a label for every pixel out.

Example:
    import ovseg
    result = ovseg.segment("beach.jpg", ["sky", "grass", "sand"])
    result.coverage()
    result.overlay().save("overlay.png")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ovseg.errors import (
        BackendError as BackendError,
    )
    from ovseg.errors import (
        DatasetError as DatasetError,
    )
    from ovseg.errors import (
        InvalidArgumentError as InvalidArgumentError,
    )
    from ovseg.errors import (
        InvalidImageError as InvalidImageError,
    )
    from ovseg.errors import (
        InvalidLabelsError as InvalidLabelsError,
    )
    from ovseg.errors import (
        MissingDependencyError as MissingDependencyError,
    )
    from ovseg.errors import (
        OutputError as OutputError,
    )
    from ovseg.errors import (
        OvsegError as OvsegError,
    )
    from ovseg.errors import (
        UnknownModelError as UnknownModelError,
    )
    from ovseg.errors import (
        UnsupportedOperationError as UnsupportedOperationError,
    )
    from ovseg.errors import (
        WeightsError as WeightsError,
    )
    from ovseg.examples import load_labels as load_labels
    from ovseg.examples import save_labels as save_labels
    from ovseg.features import ImageFeatures as ImageFeatures
    from ovseg.hints import Hints as Hints
    from ovseg.image import load_image as load_image
    from ovseg.jobs.folder import segment_folder as segment_folder
    from ovseg.jobs.video import segment_video as segment_video
    from ovseg.registry import ModelCard as ModelCard
    from ovseg.result import Classification as Classification
    from ovseg.result import Segmentation as Segmentation
    from ovseg.scenes import segment_scene as segment_scene
    from ovseg.segmenter import Segmenter as Segmenter
    from ovseg.segmenter import classify as classify
    from ovseg.segmenter import list_models as list_models
    from ovseg.segmenter import load as load
    from ovseg.segmenter import segment as segment
    from ovseg.teaching import teach as teach
    from ovseg.vocabulary import Label as Label
    from ovseg.vocabulary import Vocabulary as Vocabulary

__version__ = "0.1.0"

_HOMES = {
    "ovseg.errors": (
        "BackendError DatasetError InvalidArgumentError InvalidImageError InvalidLabelsError MissingDependencyError "
        "OutputError OvsegError UnknownModelError UnsupportedOperationError WeightsError"
    ),
    "ovseg.examples": "load_labels save_labels",
    "ovseg.features": "ImageFeatures",
    "ovseg.hints": "Hints",
    "ovseg.image": "load_image",
    "ovseg.jobs.folder": "segment_folder",
    "ovseg.jobs.video": "segment_video",
    "ovseg.registry": "ModelCard",
    "ovseg.result": "Classification Segmentation",
    "ovseg.scenes": "segment_scene",
    "ovseg.segmenter": "Segmenter classify list_models load segment",
    "ovseg.teaching": "teach",
    "ovseg.vocabulary": "Label Vocabulary",
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names.split()}

__all__ = [*sorted(_HOME_OF), "__version__"]  # noqa: PLE0604


def __getattr__(name: str) -> object:
    """Import a public name when it is first used: `import ovseg` itself costs nothing."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'ovseg' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return list(__all__)
