"""Losses for training with little supervision: what seeds say, what pixels that look alike say, and what tags say.

    pointwise   `partial_cross_entropy` at the seeds; `entropy` of every pixel
    pairwise    `pairwise` over the neighbours of a grid; `dense_crf` over all pairs; `graph_smoothness` over nearest neighbours
    high-order  `kernel_kmeans` and `normalized_cut`: each label a cluster; `tag_loss` and `box_loss`: some pixels, nobody says which

Maps are (B, K, H, W). `partial_cross_entropy` takes logits, all others take probabilities, softmax over K.
"""

from __future__ import annotations

from ovseg.learn.losses.affinity import (
    Affinity,
    ExactAffinity,
    FeatureAffinity,
    LatticeAffinity,
    image_affinities,
    place_and_colour,
    quadratic_form,
    random_features,
)
from ovseg.learn.losses.clustering import kernel_kmeans, normalized_cut
from ovseg.learn.losses.dense import dense_crf
from ovseg.learn.losses.graph import graph_smoothness, nearest_neighbours
from ovseg.learn.losses.instances import POOLINGS, UNKNOWN, box_loss, pooled_logs, tag_loss
from ovseg.learn.losses.pairwise import NEIGHBOURHOODS, RELAXATIONS, contrast_weights, pairwise
from ovseg.learn.losses.pointwise import IGNORE, entropy, partial_cross_entropy

__all__ = [
    "IGNORE", "NEIGHBOURHOODS", "POOLINGS", "RELAXATIONS", "UNKNOWN", "Affinity", "ExactAffinity", "FeatureAffinity", "LatticeAffinity",
    "box_loss", "contrast_weights", "dense_crf", "entropy", "graph_smoothness", "image_affinities", "kernel_kmeans", "nearest_neighbours",
    "normalized_cut", "pairwise", "partial_cross_entropy", "place_and_colour", "pooled_logs", "quadratic_form", "random_features",
    "tag_loss",
]  # fmt: skip
