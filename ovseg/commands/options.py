"""Options and words that commands share: which model, which images, which labels."""

from __future__ import annotations

import argparse
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovseg.errors import InvalidArgumentError, InvalidImageError, InvalidLabelsError
from ovseg.image import IMAGE_SUFFIXES

if TYPE_CHECKING:
    from ovseg.segmenter import Segmenter

WINDOWS = ("whole", "sliding", "multiscale")


def model_options(parser: argparse.ArgumentParser) -> None:
    """Declare which model, and how it runs."""
    parser.add_argument("-m", "--model", default="mini", help="a name that `ovseg models` lists, hf-hub:OWNER/NAME, or a folder (mini)")
    parser.add_argument("--backend", choices=("onnx", "torch", "tensorrt"), help="runtime (what the model runs with)")
    parser.add_argument("--device", help="cpu, cuda, ... (a GPU if there is one)")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="precision, with --backend torch")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--compile", action="store_true", help="torch.compile: faster on a GPU, after a minute")
    parser.add_argument("--readout", help="how dense features are read out of a CLIP or TIPS tower: naclip, maskclip, ... (the card's)")
    parser.add_argument("--proxy", metavar="TIMM", help="network that gives the attention, with --readout proxyclip")
    parser.add_argument("--weights", action="append", metavar="FILE", help="your own .safetensors; may repeat; 'random' to measure speed")
    parser.add_argument("--revision", help="branch, tag or commit in the hub")
    parser.add_argument("--cache-dir", metavar="DIR", help="where downloads are kept (HF_HOME)")
    parser.add_argument("--local-files-only", action="store_true", help="use only what was downloaded before")


def word_options(parser: argparse.ArgumentParser) -> None:
    """Declare images, labels and templates."""
    parser.add_argument("words", nargs="*", metavar="IMAGE... LABEL...", help="files or URLs, then words; 'grass; lawn' gives synonyms")
    what = "read the labels from a file: .txt, one a line, synonyms after ';'; .yaml or .json; or a list by name: cityscapes, ..."
    parser.add_argument("--labels", "--vocabulary", type=Path, metavar="FILE", help=what)
    parser.add_argument("--templates", action="append", metavar="SET", help="a template set, or a sentence with {}; may repeat")


def model_loader(options: argparse.Namespace) -> Callable[..., Segmenter]:
    """Return what loads the model that is asked for, given `threads`."""
    from ovseg.segmenter import load

    return functools.partial(
        load,
        options.model,
        backend=options.backend,
        device=options.device,
        dtype=options.dtype,
        compile=options.compile,
        readout=options.readout,
        proxy=options.proxy,
        weights=options.weights[0] if options.weights is not None and len(options.weights) == 1 else options.weights,
        revision=options.revision,
        cache_dir=options.cache_dir,
        local_files_only=options.local_files_only,
    )


def load_model(options: argparse.Namespace) -> Segmenter:
    """Load the model that is asked for."""
    return model_loader(options)(threads=options.threads)


def split_words(options: argparse.Namespace) -> tuple[list[str], Any]:
    """Part the positional arguments into images and labels: images come first, and exist."""
    words: list[str] = options.words
    count = 0
    while count < len(words) and is_image(words[count]):
        count += 1
    images, labels = words[:count], words[count:]
    if not words:
        raise InvalidArgumentError("No image was given. For example: ovseg segment beach.jpg sky grass sand")
    strays = [label for label in labels if Path(label).suffix.lower() in IMAGE_SUFFIXES] if images else words[:1]
    for word in strays:
        if os.path.isdir(word):
            raise InvalidImageError(f"{word!r} is a folder. Name the images in it: {os.path.join(word, '*.jpg')}")
        if is_image(word):
            raise InvalidArgumentError(f"{word!r} is an image and stands after the label {labels[0]!r}. Images come first, then labels.")
        raise InvalidImageError(f"No such file: {word!r}. Images come first, then labels.")
    return images, read_labels(options, labels)


def read_labels(options: argparse.Namespace, words: Sequence[str]) -> Any:
    """Take the labels from the command line or a file."""
    if options.labels is not None:
        if words:
            raise InvalidArgumentError(f"Labels come from {options.labels} and from the command line ({words[0]!r}). Give one.")
        return _named(options.labels)
    if not words:
        raise InvalidLabelsError("No labels were given. Name what to look for: ovseg segment beach.jpg sky grass sand")
    return split_synonyms(words)


def _named(labels: Path) -> Any:
    """Return the class list of that name, if there is no such file."""
    from ovseg.class_lists import CLASS_LISTS
    from ovseg.vocabulary import Vocabulary

    return Vocabulary.named(str(labels)) if str(labels) in CLASS_LISTS and not labels.exists() else labels


def is_image(word: str) -> bool:
    """Tell an image from a label. A folder is none: folders are often named like what their images show."""
    from ovseg.fetch import is_url

    return is_url(word) or (os.path.lexists(word) and not os.path.isdir(word))


def split_synonyms(words: Sequence[str]) -> list[str | tuple[str, ...]]:
    """Part "grass; lawn" into synonyms."""
    return [tuple(part.strip() for part in word.split(";") if part.strip()) if ";" in word else word for word in words]


def parse_size(text: str) -> int | str:
    """Read the value of --size."""
    if text == "native":
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of pixels nor 'native'") from None
