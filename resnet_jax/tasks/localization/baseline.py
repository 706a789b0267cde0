"""What localization must beat: a box in the centre, of the mean size of its class."""

from collections.abc import Sequence

import numpy as np

from resnet_jax.data import Source, num_classes


def mean_sizes(train: Source) -> np.ndarray | None:
    """The mean width and height of the boxes of each class, as shares of their images.

    Args:
      train: all training images, a `labelled_boxes.LabelledBoxes`.

    Returns:
      float64 [classes, 2]; None for another kind of source.
    """
    objects, sizes = (getattr(train, name, None) for name in ('objects', 'sizes'))
    if objects is None:
        return None
    images = np.repeat(np.asarray(sizes)[:, ::-1], objects.counts, 0)
    shares = (objects.boxes[:, 2:] - objects.boxes[:, :2]) / images
    counts = np.bincount(objects.classes, minlength=num_classes(train))
    return np.stack([np.bincount(objects.classes, side, len(counts)) for side in shares.T],
                    1) / np.maximum(counts, 1)[:, None]


def centred(size: np.ndarray, image: Sequence[int]) -> np.ndarray:
    """A box in the centre of an image, float64 [4], xyxy in pixels.

    Args:
      size: float [2], width and height as shares of the image.
      image: (height, width) in pixels.
    """
    centre = np.array(image[::-1]) / 2
    return np.concatenate([centre * (1 - size), centre * (1 + size)])


def best_overlap(box: np.ndarray, truth: np.ndarray) -> float:
    """The largest IoU of a box, float [4], with any of some boxes, float [G, 4]."""
    low, high = np.maximum(box[:2], truth[:, :2]), np.minimum(box[2:], truth[:, 2:])
    inter = np.maximum(high - low, 0).prod(1)
    union = (box[2:] - box[:2]).prod() + (truth[:, 2:] - truth[:, :2]).prod(1) - inter
    return float((inter / union).max())
