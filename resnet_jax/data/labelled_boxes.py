"""Images with a class each, and boxes of the objects of that class: data for localization."""

from collections.abc import Sequence

import numpy as np

from resnet_jax.data import boxes as boxes_lib
from resnet_jax.data.boxes import Boxes, Objects
from resnet_jax.data.types import Tree


class LabelledBoxes(Boxes):
    """One split, of images that have at least one box; see `Boxes`.

    Attributes:
      labels: int32 [N], the class of each image and of all of its boxes.
    """

    def __init__(self, files: Sequence[str], names: Sequence[str], sizes: np.ndarray,
                 labels: np.ndarray, counts: np.ndarray, boxes: np.ndarray,
                 class_names: Sequence[str], *, listed_in: str, bad_boxes: str):
        """Checks the boxes, and leaves out images without any.

        Args:
          files: the paths of the images.
          names: of the files, for the fingerprint, wherever they lie.
          sizes: int [N, 2], height and width of the images.
          labels: int [N].
          counts: int [N], the number of boxes of each image.
          boxes: float [M, 4], xyxy in continuous pixels, those of the first image first.
          class_names: in the order of the labels.
          listed_in: what names the images, for error messages.
          bad_boxes: see `boxes.check_boxes`.

        Raises:
          UserError: a box leaves its image or has no area, an image is missing, or there is none.
        """
        of_image = np.repeat(np.arange(len(files)), counts)
        starts = np.cumsum(counts) - counts

        def describe(i: int) -> str:
            image = of_image[i]
            corners = ', '.join(f'{x:g}' for x in boxes[i])
            return f'box {i - starts[image] + 1} of {names[image]} ({corners})'

        checked = boxes_lib.check_boxes(
            np.asarray(boxes, np.float64).reshape(-1, 4), np.asarray(sizes)[of_image], describe,
            bad_boxes)
        counts = np.bincount(of_image[checked.keep], minlength=len(files))
        kept = np.flatnonzero(counts)
        boxes = checked.boxes[checked.keep]
        self.labels = np.asarray(labels, np.int32)[kept]
        super().__init__(
            [files[i] for i in kept], [names[i] for i in kept], np.arange(len(kept)),
            np.asarray(sizes)[kept],
            Objects(counts[kept], boxes, np.repeat(self.labels, counts[kept]),
                    np.zeros(len(boxes), bool), np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)),
            class_names, listed_in=listed_in, checked=checked)

    def target(self, index: int) -> Tree:
        """'label' int32 and 'boxes' float32 [n, 4] of an image, without reading it."""
        return {'label': self.labels[index], 'boxes': super().target(index)['boxes']}


def example_target() -> Tree:
    """The target of an image with one box."""
    return {'label': np.int32(0), 'boxes': np.zeros((1, 4), np.float32)}
