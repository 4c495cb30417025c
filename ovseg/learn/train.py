"""Train a model on a folder of images of which much, little or hardly anything is known: what `ovseg train` does.

Two phases, as in Tang et al., ECCV 2018: first the losses of what is known alone, then the regularisers too. Each phase is a training of
its own: the learning rate begins anew, or little would be left of it for the regularisers. The images of a batch go through the network
one after another, so they may differ in size. The state is saved every now and then; the same call goes on where it was stopped, and a step
does the same whether or not the run was interrupted.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ovseg.errors import DatasetError, InvalidArgumentError
from ovseg.learn.examples import Example
from ovseg.learn.objective import Objective, Seen, image_losses
from ovseg.learn.supervision import IGNORE, Supervision
from ovseg.learn.trainable import Trainable
from ovseg.output.files import write_atomically
from ovseg.output.folders import make_folder

CHECKPOINT = "checkpoint.pt"
LOG = "log.jsonl"
DTYPES = ("float32", "bfloat16")
RATES = {"head": 1e-3, "all": 1e-5}
"""Learning rates: new layers bear more than a whole network that knows something already."""
_WARM = 20  # steps over which the learning rate rises
_LAST = 0.02  # the learning rate at the end, as a part of that at the beginning
_CLIP = 5.0  # longest gradient
_KEPT = 0.95  # what a step keeps of the running means that are shown


@dataclass(frozen=True)
class Settings:
    """How to train.

    Attributes:
        objective: The losses.
        steps: Batches.
        warmup: Batches of the first phase; None for a third of `steps`, or for all of them where there are no regularisers.
        batch: Images of a batch.
        rate: Learning rate; None for that of the part in `RATES`. In each phase it falls along a half cosine.
        size: Short side of the images as the network sees them [px]; None for the model's own policy.
        seed: Of everything that is random.
        dtype: "float32", or "bfloat16" for mixed precision.
        save_every: Batches between two checkpoints.
    """

    objective: Objective = field(default_factory=Objective)
    steps: int = 600
    warmup: int | None = None
    batch: int = 4
    rate: float | None = None
    size: int | None = None
    seed: int = 0
    dtype: str = "float32"
    save_every: int = 50

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("steps", "batch", "save_every"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InvalidArgumentError(f"{name} must be a whole number of at least 1; got {value!r}.")
        if self.warmup is not None and not 0 <= self.warmup <= self.steps:
            raise InvalidArgumentError(f"warmup must be in [0, {self.steps}]; got {self.warmup!r}.")
        if self.rate is not None and not 0 < self.rate < 1:
            raise InvalidArgumentError(f"rate must be in (0, 1); got {self.rate!r}.")
        if self.dtype not in DTYPES:
            raise InvalidArgumentError(f"dtype must be one of {', '.join(DTYPES)}; got {self.dtype!r}.")

    @property
    def phase(self) -> int:
        """The first step of the second phase."""
        if self.warmup is not None:
            return self.warmup
        return round(self.steps / 3) if self.objective.regularised else self.steps


def train(
    model: Trainable,
    examples: Sequence[Example],
    out: Path,
    settings: Settings | None = None,
    *,
    cache: Path | None = None,
    until: int | None = None,
    progress: bool = True,
) -> dict[str, float]:
    """Train a model in place, from the checkpoint in `out` if there is one.

    Args:
        model: Its trained part changes.
        examples: The images and what is known of each.
        out: Folder for the checkpoint and the log; it is made.
        settings: How to train.
        cache: Folder that keeps what the frozen part computes, if the model has a head that takes it; None to compute it each time.
        until: Stop, with a checkpoint, before this step; None for the last one.
        progress: Whether to show a progress bar on stderr.

    Returns:
        Running means of the losses at the end.

    Raises:
        DatasetError: If there are no examples, or nothing is known of any.
        OutputError: If `out` cannot be made.
        InvalidArgumentError: If `out` holds a training with other settings.
    """
    from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]

    settings = settings or Settings()
    if not examples:
        raise DatasetError("There are no images to train on.")
    make_folder(out)
    words = model.words(examples[0].labels)
    start = model.copy_of_network() if settings.objective.weight("keep") > 0 else None
    parameters = list(model.trained().values())
    rate = settings.rate or RATES[model.part]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=1e-4)
    store = FeatureStore(model, settings.size, cache if model.cacheable else None)
    identity = _identity(model, examples, settings)
    first, means = _restored(out / CHECKPOINT, model, optimizer, identity)
    last = settings.steps if until is None else min(until, settings.steps)
    bar = tqdm(range(first, last), initial=first, total=last, unit="batch", mininterval=1, desc=out.name, disable=not progress)
    began = time.monotonic()
    learned = first > 0
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = rate * schedule(step, settings.phase, settings.steps)
        optimizer.zero_grad(set_to_none=True)
        sums: dict[str, float] = {}
        for example in _batch(examples, settings, step):
            found = _backward(model, store, example, words, start, settings, step)
            for name, value in found.items():
                sums[name] = sums.get(name, 0.0) + value / settings.batch
        if sums:
            learned = True
            torch.nn.utils.clip_grad_norm_(parameters, _CLIP)
            optimizer.step()
        for name, value in sums.items():
            means[name] = value if name not in means else _KEPT * means[name] + (1 - _KEPT) * value
        bar.set_postfix({name: f"{value:.3f}" for name, value in means.items()}, refresh=False)
        if (step + 1) % settings.save_every == 0 or step + 1 == last:
            _save(out / CHECKPOINT, model, optimizer, identity, step + 1, means)
            row = {"step": step + 1, "seconds": round(time.monotonic() - began, 1), **{k: round(v, 5) for k, v in means.items()}}
            with (out / LOG).open("a") as log:
                log.write(json.dumps(row) + "\n")
    if not learned:
        raise DatasetError("Nothing is known of any of the images: give labels/ or hints/, or a loss that needs none.")
    return means


def schedule(step: int, phase: int, steps: int) -> float:
    """Learning rate as a part of the largest: in each phase a short rise, then a half cosine.

    Args:
        step: Counted from 0.
        phase: The first step of the second phase.
        steps: Steps in all.
    """
    done, length = (step, phase) if step < phase else (step - phase, steps - phase)
    return min(1.0, (done + 1) / _WARM) * (_LAST + (1 - _LAST) * 0.5 * (1 + math.cos(math.pi * done / length)))


def _batch(examples: Sequence[Example], settings: Settings, step: int) -> Iterator[Example]:
    """Take the images of a step: all images come once before any comes again, in another order each time."""
    for place in range(step * settings.batch, (step + 1) * settings.batch):
        epoch, index = divmod(place, len(examples))
        order = list(range(len(examples)))
        random.Random(settings.seed * 1_000_003 + epoch).shuffle(order)
        yield examples[order[index]]


def _backward(
    model: Trainable,
    store: FeatureStore,
    example: Example,
    words: tuple[Tensor, Tensor],
    start: nn.Module | None,
    settings: Settings,
    step: int,
) -> dict[str, float]:
    """Add the gradients of one image; return its losses."""
    image, known = example.load()
    parts, size = store(example, image)
    seen = _seen(image, known, size, model.device)
    with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=settings.dtype == "bfloat16"):
        vectors = model.vectors(parts)
        before = None
        if start is not None:
            with torch.no_grad():
                before = model.normalised(model.vectors(parts, start))
    logits = model.logits(vectors, *words)
    features = model.normalised(vectors) if start is not None or settings.objective.weight("graph") > 0 else None
    seed = settings.seed * 1_000_003 + step
    found = image_losses(settings.objective, logits, features, seen, before, step >= settings.phase, seed)
    if not found:
        return {}
    total = torch.stack(list(found.values())).sum()
    (total / settings.batch).backward()  # type: ignore[no-untyped-call]
    return {name: float(value.detach()) for name, value in found.items()}


def _seen(image: NDArray[np.uint8], known: Supervision, size: tuple[int, int], device: torch.device) -> Seen:
    """Bring an image and what is known of it to the size that the network sees."""
    height, width = image.shape[:2]
    colours = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    colours = F.interpolate(colours, size, mode="bilinear", antialias=True, align_corners=False)
    labels = torch.from_numpy(shrunk_labels(known.labels, size)).long()[None]
    tags = None if known.tags is None else torch.from_numpy(known.tags).long()[None].to(device)
    boxes = None
    if known.boxes is not None and len(known.boxes):
        scale = np.array([size[0] / height, size[1] / width] * 2)
        corners = known.boxes[:, 1:] * scale
        low = np.minimum(np.floor(corners[:, :2]), np.array(size) - 1)
        high = np.maximum(np.minimum(np.ceil(corners[:, 2:]), size), low + 1)
        boxes = torch.from_numpy(np.concatenate([known.boxes[:, :1], low, high], 1).astype(np.int64)).to(device)
    return Seen(colours.to(device), labels.to(device), tags, boxes)


def shrunk_labels(labels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Bring a label map to another size: each new pixel takes the label at its centre, or else another known label that it covers.

    Thin strokes would be torn if only centres counted.

    Args:
        labels: (H, W) uint8, 255 where nothing is known.
        size: (height, width) of the result.

    Returns:
        (height, width) uint8.
    """
    height, width = labels.shape
    rows = np.minimum(((np.arange(size[0]) + 0.5) * height / size[0]).astype(np.intp), height - 1)
    columns = np.minimum(((np.arange(size[1]) + 0.5) * width / size[1]).astype(np.intp), width - 1)
    result: NDArray[np.uint8] = labels[rows[:, None], columns]
    lost = np.flatnonzero(labels.ravel() != IGNORE)
    y, x = np.divmod(lost, width)
    place = (y * size[0] // height) * size[1] + x * size[1] // width
    empty = result.ravel()[place] == IGNORE
    result.reshape(-1)[place[empty]] = labels.ravel()[lost[empty]]
    return result


class FeatureStore:
    """What the frozen part of a model says of images, kept on the disk in half precision.

    Args:
        model: The model.
        size: Short side of the images [px]; None for the model's own policy.
        folder: Where to keep it; None to keep nothing.
    """

    def __init__(self, model: Trainable, size: int | None, folder: Path | None) -> None:
        self._model, self._size = model, size
        self._folder = None if folder is None else folder / f"{_frozen_hash(model)}-{size}"
        if self._folder is not None:
            make_folder(self._folder)

    def __call__(self, example: Example, image: NDArray[np.uint8]) -> tuple[tuple[Tensor, ...], tuple[int, int]]:
        """Return what the head takes of an image, and the (height, width) that the network sees."""
        size = self._model.input_size(image.shape[:2], self._size)
        if self._folder is None:
            return self._model.frozen(self._model.pixel_values(image, size)), size
        name = hashlib.sha256(f"{example.image_path.resolve()} {image.shape}".encode()).hexdigest()[:24]
        file = self._folder / f"{name}.npz"
        if not file.exists():
            parts = self._model.frozen(self._model.pixel_values(image, size))
            with write_atomically(file) as stream:
                np.savez(stream, *(part.cpu().numpy().astype(np.float16) for part in parts))
        with np.load(file) as stored:
            return tuple(torch.from_numpy(stored[key].astype(np.float32)).to(self._model.device) for key in stored.files), size


def _frozen_hash(model: Trainable) -> str:
    """Name the frozen weights."""
    digest = hashlib.sha256()
    for name, value in model.network.named_parameters():
        if not value.requires_grad:
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _identity(model: Trainable, examples: Sequence[Example], settings: Settings) -> str:
    """Describe a training, so that a checkpoint goes on only with what it was begun with."""
    plain = replace(settings, save_every=1)
    images = hashlib.sha256("\n".join(f"{e.name} {e.kind} {e.seed} {e.share}" for e in examples).encode()).hexdigest()[:12]
    facts = {"model": model.card.name, "part": model.part, "frozen": _frozen_hash(model), "images": images}
    return json.dumps({**facts, **asdict(plain)}, sort_keys=True)


def branch(source: Path, target: Path, model: Trainable, examples: Sequence[Example], settings: Settings) -> None:
    """Let a training go on from the checkpoint of another, which differs in the losses of the second phase and has not begun it.

    Args:
        source: Folder of the other training.
        target: Folder of the new one; what it holds already stays.
        model: The model.
        examples: The images of the new training.
        settings: How the new training goes on.
    """
    if (target / CHECKPOINT).exists():
        return
    state = torch.load(source / CHECKPOINT, map_location=model.device, weights_only=True)
    if state["step"] > settings.phase:
        raise InvalidArgumentError(f"The training in {source} is at step {state['step']}, beyond the first phase ({settings.phase}).")
    make_folder(target)
    with write_atomically(target / CHECKPOINT) as file:
        torch.save({**state, "identity": _identity(model, examples, settings)}, file)


def _save(
    path: Path, model: Trainable, optimizer: torch.optim.Optimizer, identity: str, step: int, means: Mapping[str, float]
) -> None:
    state = {
        "identity": identity,
        "step": step,
        "means": dict(means),
        "trained": {name: value.detach() for name, value in model.trained().items()},
        "optimizer": optimizer.state_dict(),
    }
    with write_atomically(path) as file:
        torch.save(state, file)


def _restored(path: Path, model: Trainable, optimizer: torch.optim.Optimizer, identity: str) -> tuple[int, dict[str, float]]:
    """Go back to the last checkpoint; return the next step and the running means."""
    if not path.exists():
        return 0, {}
    state: dict[str, Any] = torch.load(path, map_location=model.device, weights_only=True)
    if state["identity"] != identity:
        raise InvalidArgumentError(
            f"{path.parent} holds a training with other settings. Name another folder, or remove it.\n  there: {state['identity']}\n"
            f"  here:  {identity}"
        )
    model.load_trained(state["trained"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"]), dict(state["means"])
