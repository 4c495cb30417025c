"""Train the image tower of `mini`: `python -m ovseg.learn.mini --data DIR --teachers DIR --out DIR`.

The text tower stays frozen. Each image brings what is known about it (masks, clicks, teachers' opinions, a title) and each opinion
is a softmax over *words*: names of its classes, one synonym picked at random, against names of other things. Data sets with
different labels share a batch. The state is saved every few minutes; the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ovseg.learn import concepts
from ovseg.learn.clicks import UNLABELLED
from ovseg.learn.mini_data import LABEL_STRIDE, Crop, Item, Layer, Sources, crop_item, masks, read_sources
from ovseg.learn.minilm import sentence_encoder
from ovseg.learn.pseudo_labels import Teachers
from ovseg.learn.teachers import CLASSIFIER, TeacherNetwork
from ovseg.models.mini import OUTPUT_STRIDE, InvertedResidual, MiniNetwork

LOGIT_SCALE = 20.0
"""Cosines are multiplied by this in every softmax of the training."""

# (images of the batch, smallest and largest scale) of each source
BATCH = {"camvid": (3, 0.7, 2.0), "photos": (3, 0.75, 1.8), "clothing": (1, 0.75, 1.6), "objects": (1, 1.0, 2.2)}
AERIAL_EVERY = 4
"""Every this many batches an aerial tile takes the place of the image of a single object."""
NEGATIVES = 24
"""Words of other things added to each softmax."""
MAX_NAME_NOISE = 0.7
"""Largest length of the random vector added to a text embedding of length 1."""
READOUT_GAIN = 5.0
"""Length of the vectors that the read-out sums: it was learned from a million images and must not drown in the pyramid."""
BACKBONE_RATE = 0.03
"""Learning rate of the backbone, as a part of that of the new layers."""
MEAN_KEPT, WEIGHTS_KEPT = 0.98, 0.997
"""What a step keeps of the running mean of the features, and of the averaged weights."""
ALIGN = 1.0
"""Weight of 1 - cosine between a pixel and its word."""
TOO_CLOSE = 0.45
"""Words with a larger cosine to a word of the image are no negatives: they may be right."""


class Words:
    """Text embeddings of all the words of the training, computed once.

    Args:
        encode: Maps texts to (N, D) float32, L2-normalised.
    """

    def __init__(self, encode: Callable[[Sequence[str]], NDArray[np.float32]]) -> None:
        self._encode = encode
        self._known: dict[str, Tensor] = {}

    def add(self, texts: Sequence[str]) -> None:
        """Encode the texts that are new."""
        new = [t for t in dict.fromkeys(texts) if t not in self._known]
        for start in range(0, len(new), 256):
            part = new[start : start + 256]
            vectors = torch.from_numpy(self._encode(part))
            self._known.update(zip(part, vectors, strict=True))

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return (N, D) float32."""
        self.add(texts)
        return torch.stack([self._known[t] for t in texts])


def load_classifier(network: MiniNetwork, teachers: Path) -> None:
    """Start the backbone and the read-out from the ImageNet network."""
    teacher = TeacherNetwork(teachers, CLASSIFIER)
    sources = [layer for layer in teacher.layers if layer["op"] in ("conv", "depthwise_conv")]
    targets: list[torch.nn.Conv2d] = [network.stem]
    for block in network.stages.modules():
        if isinstance(block, InvertedResidual):
            targets += [conv for conv in (block.expand, block.depthwise, block.project) if conv is not None]
    targets += [network.head, network.classifier]
    for layer, conv in zip(sources, targets, strict=True):
        weight = getattr(teacher, layer["weight"].replace(".", "_"))
        bias = getattr(teacher, layer["bias"].replace(".", "_"))
        if conv is network.classifier:  # class 0 is "background"
            weight, bias = weight[1:], bias[1:]
        if layer["op"] == "depthwise_conv":
            weight = weight.reshape(conv.weight.shape)
        conv.weight.data.copy_(weight)
        conv.bias.data.copy_(bias)  # type: ignore[union-attr]


@torch.no_grad()
def initialise(network: MiniNetwork, class_text: Tensor, pixels: Tensor) -> None:
    """Set the new layers so that the first answer is the plain read-out and every feature has unit scale.

    Args:
        network: Its backbone is loaded already.
        class_text: (1000, D) text embeddings of the class names.
        pixels: (B, 3, H, W) images by which the scale of features is measured.
    """
    network.class_text.weight.copy_(READOUT_GAIN * class_text.T[:, :, None, None])
    for conv in (network.coarse_text, network.fine_text, network.gate):
        conv.weight.zero_()
        conv.bias.zero_()  # type: ignore[union-attr]
    x = F.relu6(network.stem(pixels))
    laterals = {1: [network.lateral4], 2: [network.lateral8], 4: [network.lateral16], 6: [network.lateral32, network.context]}
    for i, stage in enumerate(network.stages):
        x = stage(x)
        for conv in laterals.get(i, []):
            torch.nn.init.kaiming_normal_(conv.weight, nonlinearity="linear")
            conv.bias.zero_()  # type: ignore[union-attr]
            conv.weight.div_(conv(x).std() + 1e-6)
    for name, module in network.named_modules():
        if name.startswith("refine") and isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.groups == 1:
                module.weight.mul_(0.3)
            module.bias.zero_()  # type: ignore[union-attr]


class Losses:
    """The losses of a batch; holds the words and their geometry."""

    def __init__(self, words: Words, pool: Sequence[str], class_names: Tensor, titles: Sequence[str], rng: random.Random):
        self.words, self.rng = words, rng
        self.pool = tuple(pool)
        self.pool_text = words(self.pool)
        self.class_names = class_names
        self.titles = tuple(dict.fromkeys(titles))

    def _prompt(self, word: str) -> str:
        return self.rng.choice(concepts.PROMPTS).format(word) if self.rng.random() < 0.2 else word

    def _text(self, names: Sequence[str]) -> Tensor:
        # A name nobody listed lies somewhere near a listed one: move each a random way, some as far as a loose synonym, and along
        # directions in which words do differ.
        text = self.words([self._prompt(name) for name in names])
        mix = torch.randn(len(names), len(self.pool)) / math.sqrt(len(self.pool))
        away = F.normalize(mix @ (self.pool_text - self.pool_text.mean(0)), dim=1)
        return F.normalize(text + away * (torch.rand(len(names), 1) * MAX_NAME_NOISE), dim=1)

    def _negatives(self, names: Sequence[str]) -> list[str]:
        close = (self.pool_text @ self.words(names).T).amax(1) > TOO_CLOSE
        parts = {part for name in names for part in concepts.PARTS.get(name, ())}
        free = [w for w, bad in zip(self.pool, close.tolist(), strict=True) if not bad and w not in parts]
        return self.rng.sample(free, min(NEGATIVES, len(free)))

    def layer(
        self, features: Tensor, norm: Tensor, mean: Tensor, labels: Tensor, layer: Layer, item_names: Sequence[str]
    ) -> Tensor | None:
        """Partial cross-entropy of one opinion: softmax over its words and negatives, at the pixels it speaks of.

        `features` are (h, w, D) before normalisation, `norm` their (h, w) lengths, `mean` the (D,) mean of the normalised ones;
        dividing and shifting the few logits is cheaper than doing so to the features.
        """
        known = labels != UNLABELLED
        if not known.any():
            return None
        if layer.closed:
            kept = list(range(len(layer.names)))
        else:
            kept = np.unique(labels[known].numpy()).tolist()
        remap = torch.full((256,), -1)
        remap[kept] = torch.arange(len(kept))
        names = [self.rng.choice(layer.names[i]) for i in kept]
        # a name may not stand twice in one softmax: pick the first name of the class then
        names = [n if names.count(n) == 1 else layer.names[i][0] for n, i in zip(names, kept, strict=True)]
        text = self._text([*names, *self._negatives([*names, *item_names])])
        cosines = (features @ text.T.to(features.dtype)).float() / norm[..., None] - text @ mean
        logits = cosines.permute(2, 0, 1)[None] * LOGIT_SCALE
        logits = F.interpolate(logits, scale_factor=OUTPUT_STRIDE / LABEL_STRIDE, mode="bilinear", align_corners=False)[0]
        target = remap[labels[known]]
        chosen = logits.flatten(1).T[known.flatten()]
        loss = F.cross_entropy(chosen, target, reduction="none")
        # The softmax leaves free what lies across all its words; names it never saw reach there, so pull towards the word itself.
        loss = loss + ALIGN * (1 - chosen.gather(1, target[:, None])[:, 0] / LOGIT_SCALE)
        if layer.balance is not None:
            weight = torch.from_numpy(layer.balance)[labels[known]]
            return layer.weight * (loss * weight).sum() / weight.sum()
        if not layer.closed:  # every word of the image counts the same, however few its pixels
            weight = 1 / torch.bincount(target, minlength=len(kept)).float().sqrt()[target]
            return layer.weight * (loss * weight).sum() / weight.sum()
        return layer.weight * loss.mean()

    def title(self, cells: Tensor, title: Sequence[str]) -> Tensor:
        """Multiple-instance loss: some of the (D, n, n) cells must answer to the title rather than to other titles."""
        name = self.rng.choice(title)
        near = self.words(self.titles) @ self.words(title).T
        others = [t for t, s in zip(self.titles, near.amax(1).tolist(), strict=True) if s < 0.6]
        text = self._text([name, *self.rng.sample(others, min(60, len(others)))])
        logits = text @ cells.flatten(1) * LOGIT_SCALE  # (K, N)
        sharp = 0.5
        pooled = (torch.logsumexp(logits * sharp, 1) - math.log(logits.shape[1])) / sharp
        return F.cross_entropy(pooled[None], torch.zeros(1, dtype=torch.long))

    def readout(self, cells: Tensor, classes: Tensor, probs: Tensor) -> Tensor:
        """Cross-entropy to the classifier teacher over the 1,000 class names, at the (D, n, n) cells of stride 16."""
        sure = ((probs[0] - 0.2).clamp(min=0) / 0.8).flatten()
        chosen = sure > 0
        if not chosen.any():
            return cells.sum() * 0
        logp = (cells.flatten(1)[:, chosen].T @ self.class_names.T * LOGIT_SCALE).log_softmax(1)
        p = probs.flatten(1)[:, chosen].T
        loss = -(p * logp.gather(1, classes.flatten(1)[:, chosen].T)).sum(1)
        return (loss * sure[chosen]).sum() / (sure.sum() + 4)

    def anchor(self, logits: Tensor, classes: Tensor, probs: Tensor) -> Tensor:
        """Keep the classifier: cross-entropy of its own logits to the teacher, at stride 32."""
        logp = logits.log_softmax(0)  # (1000, m, m)
        p = probs[:, ::2, ::2]
        near = logp.gather(0, classes[:, ::2, ::2])
        return -(p * near).sum(0).mean()


def batch_items(sources: Sources, step: int, rng: random.Random) -> list[tuple[Item, tuple[float, float]]]:
    """Draw the images of a batch with their scales."""
    chosen = []
    for name, (count, low, high) in BATCH.items():
        pool = getattr(sources, name)
        for item in rng.sample(pool, count):
            if name == "objects" and step % AERIAL_EVERY == 0:
                item, low, high = rng.choice(sources.aerial), 0.7, 1.6
            chosen.append((item, (low, high)))
    return chosen


def _features(network: MiniNetwork, pixels: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features: Tensor = network(pixels.contiguous(memory_format=torch.channels_last))
    return features


@torch.no_grad()
def evaluate(network: MiniNetwork, words: Words, sources: Sources, val: list[Item], every: int = 3) -> dict[str, float]:
    """Score on held-out images: CamVid val, its renamed classes, and the words of clicked regions."""
    network.eval()
    scores = {}
    confusion = {"camvid": np.zeros((11, 11)), "renamed": np.zeros((11, 11))}
    text = {"camvid": words([n[0] for n in concepts.CAMVID]), "renamed": words(concepts.RENAMED_CAMVID)}
    for item in val[::every]:
        x = torch.from_numpy(item.image.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        features = _features(network, F.interpolate(x, (352, 480), mode="bilinear", antialias=True))
        expected = item.layers[0].labels
        for key, embeddings in text.items():
            logits = torch.einsum("bdhw,kd->bkhw", features, embeddings)
            predicted = F.interpolate(logits, expected.shape, mode="bilinear")[0].argmax(0).numpy()
            judged = expected != UNLABELLED
            confusion[key] += np.bincount(expected[judged] * 11 + predicted[judged], minlength=121).reshape(11, 11)
    for key, matrix in confusion.items():
        iou = np.diag(matrix) / np.maximum(matrix.sum(0) + matrix.sum(1) - np.diag(matrix), 1)
        scores[key] = float(iou.mean() * 100)
        if key == "camvid":
            scores.update({f"iou {n[0]}": float(v * 100) for n, v in zip(concepts.CAMVID, iou, strict=True)})

    names = sorted({names[0] for item in sources.held_out for layer in item.layers for names in layer.names})
    everything = words(names)
    counts = {"object": [0, 0, 0], "stuff": [0, 0, 0]}
    sky = [0, 0]
    sky_words = words(["sky", "tree", "grass", "building", "person", "water", "mountain", "road", "car", "wall", "snow", "sea"])
    for item in sources.held_out:
        height, width = item.image.shape[:2]
        scale = 384 / min(height, width)
        size = [round(s * scale / 32) * 32 for s in (height, width)]
        x = torch.from_numpy(item.image.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        features = _features(network, F.interpolate(x, size, mode="bilinear", antialias=True))
        for layer in item.layers:
            labels = torch.from_numpy(layer.labels)[None, None].float()
            labels = F.interpolate(labels, features.shape[-2:], mode="nearest")[0, 0].long()
            answer = torch.einsum("dhw,kd->khw", features[0], sky_words).argmax(0) == 0
            known = labels != UNLABELLED
            truth = torch.zeros_like(known)
            for i, options in enumerate(layer.names):
                mask = labels == i
                if options[0] == "sky":
                    truth |= mask
                elif options[0] == "background":  # a plain backdrop has no right answer among these words
                    known &= ~mask
                if not mask.any() or options[0] == "background":
                    continue
                kind = "object" if len(options) > 1 and options[-1] == item.title[0] else "stuff"
                order = (everything @ features[0, :, mask].mean(1)).argsort(descending=True)
                rank = [names[j] for j in order[:5].tolist()]
                counts[kind][0] += options[0] == rank[0]
                counts[kind][1] += options[0] in rank
                counts[kind][2] += 1
            sky[0] += int((answer & truth).sum())
            sky[1] += int(((answer | truth) & known).sum())
    for kind, (first, five, total) in counts.items():
        scores[f"{kind} top1"], scores[f"{kind} top5"] = 100 * first / total, 100 * five / total
    scores["sky"] = 100 * sky[0] / max(sky[1], 1)
    network.train()
    return scores


def train(
    data: Path, teachers: Path, out: Path, steps: int, size: int, seed: int, rate: float, threads: int, final: bool
) -> None:
    """Train for `steps` batches, from the checkpoint in `out` if there is one.

    With `final`, the images of CamVid val are trained on too, and their scores in the log mean nothing any more.
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    words = Words(sentence_encoder())
    sources = read_sources(data, Teachers(teachers, out / "targets").labels)
    val = masks(data / "camvid/val", concepts.CAMVID)
    if final:
        sources.camvid.extend(val)

    names, everyday = [], []
    for path in sorted((data / "imagenet_sample").glob("*.jpg")):
        index = int(path.stem[:4])
        names.append(concepts.imagenet_name(index, path.stem[5:]))
        everyday.append(concepts.imagenet_everyday(index) or names[-1])
    class_names = F.normalize(words(names) + words(everyday), dim=1)
    fixed = [n for table in (concepts.CAMVID, concepts.CITYSCAPES, concepts.VOC, concepts.AERIAL) for n in (e[0] for e in table)]
    pool = sorted({*sources.words, *everyday, *fixed} - {"background"})
    titles = [*names, *everyday, *(t for item in sources.objects for t in item.title)]
    words.add(pool)

    network = MiniNetwork()
    load_classifier(network, teachers)
    start = torch.stack([crop_item(item, size, random.Random(seed), (0.8, 1.2)).pixels for item in sources.photos[:8]])
    initialise(network, class_names, start)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    for module in (network.stem, network.stages[0], network.stages[1]):  # edges and textures stay: a third of the time saved
        module.requires_grad_(False)
    start_parts = (network.stages, network.head, network.classifier, network.class_text)
    backbone = [p for part in start_parts for p in part.parameters() if p.requires_grad]
    known_parameters = {id(p) for p in backbone}
    new = [p for p in network.parameters() if p.requires_grad and id(p) not in known_parameters]
    optimizer = torch.optim.AdamW(
        [{"params": new, "lr": rate, "factor": 1.0}, {"params": backbone, "lr": rate, "factor": BACKBONE_RATE}], weight_decay=1e-3
    )
    average = {k: v.detach().clone() for k, v in network.state_dict().items()}
    first = 0
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location=device)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        average, first = state["average"], state["step"]
        for group, factor in zip(optimizer.param_groups, (1.0, BACKBONE_RATE), strict=True):
            group["factor"] = factor

    log = (out / "log.jsonl").open("a")
    bar = tqdm(range(first, steps), initial=first, total=steps, unit="batch", mininterval=10)
    running: dict[str, float] = {}
    began = time.monotonic()
    for step in bar:
        rng = random.Random(seed * 1_000_003 + step)  # a step is the same whether or not the run was interrupted
        torch.manual_seed(seed * 1_000_003 + step)
        losses = Losses(words, pool, class_names, titles, rng)
        decay = 0.5 * (1 + math.cos(math.pi * step / steps)) * 0.98 + 0.02
        for group in optimizer.param_groups:
            group["lr"] = rate * group["factor"] * decay * min(1.0, (step + 1) / 150)
        crops: list[Crop] = [crop_item(item, size, rng, scales) for item, scales in batch_items(sources, step, rng)]
        pixels = torch.stack([crop.pixels for crop in crops]).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            features, classes = network.forward_features(pixels.to(device))
        pooled = F.normalize(F.avg_pool2d(features, 16 // OUTPUT_STRIDE).float(), dim=1)
        with torch.no_grad():
            network.mean.lerp_(pooled.mean((0, 2, 3))[:, None, None], 1 - min(MEAN_KEPT, (step + 1) / (step + 5)))
        mean = network.mean.flatten().clone().cpu()
        cells = (pooled - network.mean).cpu().unbind()
        features = features.permute(0, 2, 3, 1).cpu()
        norms = torch.linalg.vector_norm(features, dim=-1, dtype=torch.float32).unbind()
        maps, logits = features.unbind(), classes.float().cpu().unbind()
        parts: dict[str, list[Tensor]] = {"label": [], "title": [], "readout": [], "anchor": []}
        for i, crop in enumerate(crops):
            known = [n[0] for _, layer in crop.layers for n in layer.names if len(layer.names) < 25] + list(crop.title)
            for labels, layer in crop.layers:
                loss = losses.layer(maps[i], norms[i], mean, labels, layer, known)
                if loss is not None:
                    parts["label"].append(loss)
            if crop.title:
                parts["title"].append(0.15 * losses.title(cells[i], crop.title))
            if crop.classes is not None and crop.probs is not None:
                parts["readout"].append(0.5 * losses.readout(cells[i], crop.classes, crop.probs))
                parts["anchor"].append(2.0 * losses.anchor(logits[i], crop.classes, crop.probs))
        total = sum((torch.stack(p).sum() for p in parts.values() if p), torch.zeros(())) / len(crops)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(total)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        keep = min(WEIGHTS_KEPT, (step + 1) / (step + 20))
        with torch.no_grad():
            for key, value in network.state_dict().items():
                average[key].lerp_(value, 1 - keep)
        for key, values in parts.items():
            if values:
                latest = float(torch.stack([v.detach() for v in values]).mean())
                running[key] = latest if key not in running else 0.98 * running[key] + 0.02 * latest
        bar.set_postfix({k: f"{v:.3f}" for k, v in running.items()}, refresh=False)
        if (step + 1) % 250 == 0 or step + 1 == steps:
            part = checkpoint.with_suffix(".part")
            torch.save(
                {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "average": average, "step": step + 1}, part
            )
            part.replace(checkpoint)
        if (step + 1) % 400 == 0 or step + 1 == steps:
            averaged = MiniNetwork().to(memory_format=torch.channels_last)
            averaged.load_state_dict(average)
            scores = evaluate(averaged, words, sources, val)
            row = {"step": step + 1, "seconds": round(time.monotonic() - began), **{k: round(v, 2) for k, v in scores.items()}}
            log.write(json.dumps({**row, **{k: round(v, 4) for k, v in running.items()}}) + "\n")
            log.flush()
    torch.save(average, out / "mini.pt")


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with camvid clothing aerial caltech101 imagenet_sample")
    parser.add_argument("--teachers", type=Path, required=True, help="folder with the teacher networks")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints, log and the trained network")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--size", type=int, default=320, help="side of the training crops [px]")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate of the new layers")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--final", action="store_true", help="train on CamVid val too")
    args = parser.parse_args()
    train(args.data, args.teachers, args.out, args.steps, args.size, args.seed, args.rate, args.threads, args.final)


if __name__ == "__main__":
    main()
