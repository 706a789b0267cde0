"""Errors of localization, as sums over images."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.regions import boxes as boxes_lib

Array = jax.Array | np.ndarray

LEAST_IOU = 0.5  # of ILSVRC: a box is right if its IoU with any box of the class is larger
TOP_K = 5  # classes that an answer may name
PERCENT = ('localization_error', 'top5_localization_error', 'mean_iou', 'top1_error', 'top5_error')
SHOWN = {'localization_error': 'localization error', 'top5_localization_error': 'top-5',
         'top5_error': 'top-5 class error'}


def best_iou(boxes: jax.Array, truth: jax.Array, present: jax.Array) -> jax.Array:
    """The largest IoU of each box with any box of the image.

    Args:
      boxes: float32 [N, T, 4].
      truth: float32 [N, G, 4].
      present: bool [N, G]; False for padding.

    Returns:
      float32 [N, T].
    """
    overlap = boxes_lib.iou(boxes, truth)
    return jnp.where(present[:, None], overlap, 0).max(-1)


def sums(label: Array, classes: Array, own_iou: Array, mask: Array) -> dict[str, Any]:
    """The sums over the images of a batch, from which `report` takes averages.

    An answer names five classes with a box each; it is right if one of them is the true class, with
    a box that is right (Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge",
    2015, section 4.2).

    Args:
      label: int32 [N], the true classes.
      classes: int32 [N, 5], the predicted ones, the most probable first.
      own_iou: float32 [N], the IoU of the box of the true class.
      mask: float32 [N]; 0 for images that pad a batch.

    Returns:
      float32 []: errors and 'mean_iou', in units of 1, and 'count'.
    """
    wrong = ~(own_iou > LEAST_IOU)  # also where it is not a number
    named = (classes == label[:, None]).any(1)
    values = {'localization_error': wrong, 'top5_localization_error': wrong | ~named,
              'mean_iou': own_iou, 'top1_error': classes[:, 0] != label, 'top5_error': ~named,
              'count': jnp.ones_like(mask)}
    return {name: (value * mask).sum() for name, value in values.items()}


def report(values: Mapping[str, float]) -> dict[str, float]:
    """Averages of `sums` on the host: in percent, and the number of images."""
    count = float(values['count'])
    return {**{name: 100 * float(values[name]) / count for name in PERCENT}, 'count': round(count)}


def line(values: Mapping[str, float]) -> str:
    """Formats values, as in 'localization error 24.10 %  top-5 31.20 %  …'."""
    if 'loss' in values:
        return f'loss {values["loss"]:.4f}'
    return '  '.join(f'{text} {values[name]:.2f} %' for name, text in SHOWN.items())
