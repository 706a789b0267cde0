"""Integrated gradients: contributions of the pixels that add up to the score.

M. Sundararajan, A. Taly and Q. Yan, "Axiomatic Attribution for Deep Networks", 2017.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.seeing import deletion, pictures
from experiments.seeing.activations import looped, on_device
from experiments.seeing.section import Picture, Section
from resnet_jax.tasks.classification.classifier import Classifier
from resnet_jax.tasks.network import outputs

POINTS = 16  # Gauss-Legendre nodes of a piece of the path
PIECES = (4, 16, 64, 256)  # tried one after the other, until the attributions are complete
TOLERANCE = 0.015  # of the completeness, relative
GROUP = 8  # images that are computed at once
SHOWN = 10
IMAGES = 32  # over which the curves and the completeness are measured
TOLD = 0.02  # gap
STRONGEST = 99  # percentile of the contributions of an image that has the strongest colour


class Attributions(NamedTuple):
    """Integrated gradients.

    Attributes:
      values: of every pixel and channel, float32 [N, H, W, C], in units of the score.
      difference: the score of the image less that of the baseline, float32 [N].
      gap: |sum of the values - difference| / |difference|, float32 [N]; 0 is complete.
      points: gradients that the integral took, int [N].
    """

    values: np.ndarray
    difference: np.ndarray
    gap: np.ndarray
    points: np.ndarray


@dataclasses.dataclass(frozen=True)
class ClassScore:
    """The score of a class before the softmax, in float32: rounding of many gradients adds up.

    Attributes:
      model: a network with a head.
    """

    model: nn.Module

    def __call__(self, weights: tuple[Any, Any], classes: jax.Array, images: jax.Array):
        """((variables, normalisation), int [N], float32 [N, H, W, C]) -> float32 [N]."""
        scores = outputs(self.model.clone(dtype=jnp.float32), weights, images)
        return jnp.take_along_axis(scores, classes[:, None], 1)[:, 0]


def integrated_gradients(score: Callable[[Any, jax.Array, jax.Array], jax.Array], weights: Any,
                         targets: np.ndarray, images: np.ndarray, baseline: float = 0.0,
                         tolerance: float = TOLERANCE, most: int | None = None) -> Attributions:
    """Attributes a score to the pixels: equation 1.

    The integral along the straight path from the baseline is taken by Gauss-Legendre quadrature in
    pieces. The gradient of a ReLU network jumps on the way, so the pieces of an image are made
    smaller until its attributions are complete (proposition 1) within the tolerance, or there are
    256 pieces of 16 points; see `POINTS` and `PIECES`.

    Args:
      score: (weights, targets, float32 images) -> float32 [N], each from its own image alone;
        hashable, such as `ClassScore` or a function of a module.
      weights: of the score, a tree of arrays: here (variables, normalisation).
      targets: of each image what is scored: here the class, int [N].
      images: uint8, or float in units of the full range, [N, H, W, C].
      baseline: the grey level that stands for no evidence, from 0 to 1; black by default.
      tolerance: the gap that is asked for.
      most: gradients per image, at most; the first 64 are always taken.
    """
    if images.dtype == np.uint8:
        images = images.astype(np.float32) / 255
    values = np.zeros(images.shape, np.float32)
    difference, gap = np.zeros(len(images), np.float32), np.full(len(images), np.inf, np.float32)
    points = np.zeros(len(images), int)
    for pieces in PIECES:
        if most is not None and pieces > PIECES[0] and pieces * POINTS > most:
            break
        left = np.flatnonzero(gap > tolerance)
        for start in range(0, len(left), GROUP):
            rows = left[start:start + GROUP]
            padded = np.resize(rows, GROUP)  # every group has one shape, and there is one program
            found, change = _integrate(score, weights, targets[padded], images[padded],
                                       jnp.float32(baseline), jnp.int32(pieces))
            values[rows], difference[rows] = found[:len(rows)], change[:len(rows)]
            points[rows] = pieces * POINTS
        sums = values.sum((1, 2, 3), dtype=np.float64)
        gap = (np.abs(sums - difference) / np.abs(difference)).astype(np.float32)
    return Attributions(values, difference, gap, points)


@functools.partial(jax.jit, static_argnames='score')
def _integrate(score, weights, targets, images, baseline, pieces):
    """Attributions and differences of the scores: float32 [N, H, W, C] and [N]."""
    nodes, shares = np.polynomial.legendre.leggauss(POINTS)
    nodes, shares = (jnp.asarray(x, jnp.float32) for x in ((nodes + 1) / 2, shares / 2))
    start = jnp.full(images.shape, baseline)
    way = images - start
    gradient = jax.grad(lambda images: score(weights, targets, images).sum())

    def add(i, total):
        position = (i // POINTS + nodes[i % POINTS]) / pieces
        return total + shares[i % POINTS] / pieces * gradient(start + position * way)

    mean = jax.lax.fori_loop(0, pieces * POINTS, add, jnp.zeros_like(way))
    difference = score(weights, targets, images) - score(weights, targets, start)
    return way * mean, difference


def section(network: Classifier, images: np.ndarray, labels: np.ndarray,
            most: int | None = None) -> Section:
    """Attributions for the predicted classes of some images, and what the pixels are worth.

    Args:
      network: a trained network.
      images, labels: of the test split, uint8 [N, H, W, C] and int [N].
      most: gradients per image, at most; see `integrated_gradients`.
    """
    shown = pictures.one_of_each(labels, SHOWN)
    chosen = np.concatenate([shown, np.setdiff1d(np.arange(len(images)), shown)])[:IMAGES]
    images, labels = images[chosen], labels[chosen]
    predicted = network.predict(images).argmax(1)
    found = integrated_gradients(
        ClassScore(looped(network.model)), on_device(network), predicted, images, most=most)
    maps = found.values.sum(-1)
    curves = deletion.compare(network, images, predicted, {'integrated gradients': maps})
    within = int((found.gap <= TOLD).sum())
    against = -np.minimum(maps, 0).sum((1, 2)) / np.abs(maps).sum((1, 2))
    cells = pictures.summed(maps[:len(shown)])
    photos = pictures.enlarged(pictures.to_rgb(images[:len(shown)]))
    colours = pictures.enlarged(pictures.signed(cells, STRONGEST))
    tiles = [photos, pictures.scaled(colours, *photos.shape[1:3])]
    at = deletion.SHARES.index(deletion.TOLD)
    caption = (
        f'Red pixels raised the score of the predicted class, compared with a black image, and '
        f'blue ones lowered it; each picture has a scale of its own. In {within} of '
        f'{len(images)} images the contributions add up to the difference of the scores within '
        f'2 %; the median gap is {100 * np.median(found.gap):.2f} % and the largest '
        f'{100 * found.gap.max():.2f} %, with {np.median(found.points):.0f} gradients for the '
        f'median image. In the median image {100 * np.median(against):.0f} % of the contributions, '
        f'by magnitude, count against the class.\n\n{deletion.told(curves)}')
    return Section(
        title='What every pixel contributes: integrated gradients', caption=caption,
        reference='M. Sundararajan et al., Axiomatic Attribution for Deep Networks, 2017; '
                  'deletion: V. Petsiuk et al., RISE, 2018',
        charts={'attribution_deletion': deletion.chart(curves)},
        descriptions={'attribution_deletion': 'Mean probability of the predicted class against the '
                                              f'share of pixels removed. '
                                              f'{deletion.told(curves)}'},
        pictures={'attributions': Picture(
            pictures.mosaic(np.concatenate(tiles), len(shown)),
            alt=f'{len(shown)} test images in the upper row; under each, its pixels coloured red '
                'where they raise the score and blue where they lower it.',
            caption=pictures.predictions(network.classes, predicted[:len(shown)],
                                         labels[:len(shown)]))},
        numbers={'attribution_gap_median': float(np.median(found.gap)),
                 'attribution_gap_largest': float(found.gap.max()),
                 'attribution_within_2_percent': within / len(images),
                 'attribution_against': float(np.median(against)),
                 'attribution_probability_without_fifth':
                     float(curves['integrated gradients'][at])},
        tables={'attribution_deletion': deletion.table(curves)})
