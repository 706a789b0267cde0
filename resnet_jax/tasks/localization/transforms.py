"""What a localizer is given: cropped images, with boxes and the place of the whole image."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from resnet_jax.data import Batch, Item, Normalization
from resnet_jax.data import transforms as transforms_lib
from resnet_jax.data.augment import augmentation
from resnet_jax.data.types import Example
from resnet_jax.errors import UserError
from resnet_jax.regions import boxes as boxes_lib

LEAST_VISIBLE = 0.25  # share of a box's area that a crop must show for the box to be trained


class WithBoxes(NamedTuple):
    """A transform of classification, whose target gets boxes.

    Attributes:
      transform: (item, ...) -> example; moves 'boxes' and 'points' of the target with the pixels.
      max_objects: places for boxes.
    """

    transform: Callable[..., Example]
    max_objects: int

    def __call__(self, item: Item, *rng: np.random.Generator) -> Example:
        """Transforms an image and its boxes.

        Returns:
          'image' uint8 [H, W, C], 'label' int32, 'boxes' float32 [G, 4] in pixels of the result,
          not clipped to it, 'present' bool [G], False where there is no box, and 'points' float32
          [2, 2], two opposite corners of the whole image.

        Raises:
          UserError: the source has no boxes, or no classes.
        """
        if not {'label', 'boxes'} <= set(item.target):
            raise UserError(f'{item.name} has no class or no boxes, which task=localization needs: '
                            'choose another data.source, such as box_table or imagenet_boxes.')
        given = np.asarray(item.target['boxes'], np.float32)[:self.max_objects]
        boxes = np.zeros((self.max_objects, 4), np.float32)
        boxes[:len(given)] = given
        height, width = transforms_lib.image_shape(item)
        target = {'label': item.target['label'], 'boxes': boxes,
                  'points': np.array([[0, 0], [width, height]], np.float32)}
        return self.transform(item._replace(target=target), *rng) | {
            'present': np.arange(self.max_objects) < len(given)}


def frames_of(points: jax.Array) -> jax.Array:
    """Boxes float32 [N, 4] around two opposite corners float32 [N, 2, 2]."""
    return jnp.concatenate([points.min(1), points.max(1)], -1)


class Augment(NamedTuple):
    """What is done on the device: augmentation as of a classifier, and the boxes that are seen.

    Attributes:
      augment: see `resnet_jax.data.augment.Augmentation`.
    """

    augment: Callable[..., Batch]

    def __call__(self, examples: Batch, key: jax.Array | None,
                 normalization: Normalization) -> Batch:
        """Normalises images; in training, augments them and cuts boxes off at their edges.

        A box of which less than a quarter is seen is not trained. In an evaluation, boxes stay as
        they are: overlaps do not depend on the crop.

        Args:
          examples, key, normalization: see `Augmentation`.

        Returns:
          The batch; instead of 'points' it has 'frames' float32 [N, 4], where the whole image lies,
          and in training 'draws' uint32 [N, 2], the data of a random key for each image.
        """
        batch = dict(self.augment(examples, key, normalization))
        batch['frames'] = frames_of(batch.pop('points'))
        if key is None:
            return batch
        count, height, width = batch['image'].shape[:3]
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, 2**32 - 3),
                                                       jnp.arange(count))
        seen = boxes_lib.clip(batch['boxes'], jnp.tile(jnp.array([[height, width]]), (count, 1)))
        visible = boxes_lib.area(seen) >= LEAST_VISIBLE * boxes_lib.area(batch['boxes'])
        return batch | {'boxes': seen, 'present': batch['present'] & visible,
                        'draws': jax.random.key_data(keys)}


def transforms(config: ConfigDict) -> dict[str, Any]:
    """See `Task.transforms`."""
    most = config.data.max_objects
    # mypy does not see that named tuples can be called.
    return {'train_transform': WithBoxes(
                transforms_lib.train_transform(config), most),  # type: ignore[arg-type]
            'eval_transform': WithBoxes(
                transforms_lib.eval_transform(config), most),  # type: ignore[arg-type]
            'augment': Augment(augmentation(config))}  # type: ignore[arg-type]
