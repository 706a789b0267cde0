"""Selects the images on which a network is examined."""

from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from resnet_jax import data
from resnet_jax.data import sources
from resnet_jax.data.transforms import EvalTransform
from resnet_jax.errors import UserError
from resnet_jax.tasks.classification.classifier import Classifier

MOST_CLASSES = 10  # of which images are taken: more could not be told apart in a picture
SEED = 1512_03385  # of the order in which images are taken


class Images(NamedTuple):
    """Images of one split, as the network sees them.

    Attributes:
      pixels: uint8 [N, H, W, C].
      labels: int32 [N], the network's.
      classes: the names of the classes in label order, all of them.
    """

    pixels: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]


def choose(network: Classifier, config: ConfigDict, count: int, *, held_out: bool) -> Images:
    """Images of at most ten classes, the same for every network.

    Args:
      network: whose classes they are.
      config: its `data` says where they come from; see `evaluation.data_config`.
      count: most images to take, in a fixed random order.
      held_out: from the evaluation split, otherwise from the training split.

    Raises:
      UserError: the data is missing, or is not what the network knows.
    """
    if held_out:
        source = data.create_eval_source(config)
    else:
        source = sources.hold_out(
            data.create_source(config, 'train'), data.eval_split(config)[1], False)
    known = network.config.model.num_classes
    if source.num_classes != known:
        raise UserError(f'the network knows {known} classes and the data has '
                        f'{source.num_classes}: give the data that it was trained on.')
    # Spread over all classes, since neighbours in the list are often alike.
    chosen = set(np.unique(np.linspace(0, known - 1, MOST_CLASSES).round().astype(int)).tolist())
    fitted = config if config.data.image_size else network.config
    transform = EvalTransform(data.image_size(fitted.data), config.data.eval_resize)
    pixels, labels = [], []
    order = np.random.Generator(np.random.PCG64(SEED)).permutation(len(source))
    for index in order.tolist():
        if len(pixels) == count:
            break
        item = source[index]
        if (label := int(item.target['label'])) in chosen:
            pixels.append(transform.pixels(item))
            labels.append(label)
    if len(set(labels)) < 2:
        raise UserError('the images have fewer than two classes; at least two are needed.')
    names = getattr(source, 'class_names', ())
    # A network that came with names of its own knows better than the folders.
    named = network.classes != tuple(str(i) for i in range(known))
    return Images(np.stack(pixels), np.array(labels, np.int32),
                  tuple(names) if names and not named else network.classes)
