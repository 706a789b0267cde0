"""What is in an image, and what a detector found in it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from resnet_jax.data.masks import RLE


class Objects(NamedTuple):
    """The ground truth of one image with n objects.

    Attributes:
      boxes: float32 [n, 4], (x1, y1, x2, y2) in continuous pixels of the image: the first pixel
        spans 0 to 1. VOC's (xmin, ymin, xmax, ymax) is (xmin - 1, ymin - 1, xmax, ymax) here.
      classes: int32 [n], from 0; there is no class for the background.
      ignore: bool [n], crowds in COCO and difficult objects in VOC: neither right nor wrong.
      areas: float32 [n], square pixels, by which COCO calls objects small, medium or large.
      masks: n of the image; None where they are not known.
    """

    boxes: np.ndarray
    classes: np.ndarray
    ignore: np.ndarray
    areas: np.ndarray
    masks: Sequence[RLE] | None = None


class Found(NamedTuple):
    """The m detections of one image, highest score first.

    Attributes:
      boxes: float32 [m, 4], as in `Objects`.
      classes: int32 [m], as in `Objects`.
      scores: float32 [m].
      masks: m of the image; None without a mask branch.
    """

    boxes: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    masks: Sequence[RLE] | None = None
