"""The filters of the first convolution.

A. Krizhevsky et al., "ImageNet Classification with Deep CNNs", 2012, figure 3; M. Zeiler and
R. Fergus, "Visualizing and Understanding Convolutional Networks", 2014.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.seeing import pictures
from experiments.seeing.section import Picture, Section
from resnet_jax.tasks.classification.classifier import Classifier

WEAK = 0.1  # of the strongest filter's norm
ALIKE = 0.9  # cosine, of either sign
COLUMNS = 8


def first_layer(variables: Mapping[str, Any]) -> np.ndarray:
    """The filters of the first convolution of any family: float32 [features, k, k, channels]."""
    parameters = variables['params']
    conv = parameters['stem']['conv'] if 'stem' in parameters else parameters['stage1_conv1']
    return np.moveaxis(np.asarray(conv['kernel'], np.float32), -1, 0)


def as_images(filters: np.ndarray) -> np.ndarray:
    """Filters as colours, each over its own largest weight; a weight of zero is mid-grey.

    Args:
      filters: float [features, k, k, channels], of 1 or 3 channels.

    Returns:
      uint8 [features, k, k, 3].
    """
    peak = np.abs(filters).max((1, 2, 3), keepdims=True)
    return pictures.to_rgb(0.5 + 0.5 * filters / np.where(peak == 0, 1, peak))


def statistics(filters: np.ndarray) -> dict[str, float]:
    """Numbers that say what the filters are like.

    Args:
      filters: float [features, k, k, channels].

    Returns:
      'weak': filters with a norm below a tenth of the largest. 'mean_share': of the median filter,
      the share of the squared norm that lies in its mean over the k x k positions; 0 sees only
      differences, 1 only averages. 'alike': pairs with a cosine above 0.9 in magnitude.
    """
    flat = filters.reshape(len(filters), -1)
    norms = np.linalg.norm(flat, axis=1)
    positions = filters.shape[1] * filters.shape[2]
    of_mean = positions * np.square(filters.mean((1, 2))).sum(-1)
    present = norms > 0
    unit = flat[present] / norms[present, None]
    cosines = np.abs(unit @ unit.T)[np.triu_indices(len(unit), 1)]
    return {
        'weak': int((norms < WEAK * norms.max()).sum()),
        'mean_share': float(np.median(of_mean[present] / norms[present] ** 2)),
        'alike': int((cosines > ALIKE).sum()),
    }


def section(network: Classifier) -> Section:
    """The filters of a trained network as one picture, in the order of their channels."""
    filters = first_layer(network.variables)
    numbers = statistics(filters)
    count, k, _, channels = filters.shape
    colours = 'grey levels' if channels == 1 else 'colours'
    caption = (
        f'The {count} filters of the first convolution, {k} x {k} pixels of {channels} '
        f'channel{"s" * (channels > 1)} each, in {colours}: mid-grey is a weight of zero, and each '
        f'filter is scaled by its own largest weight. In the median filter, '
        f'{100 * numbers["mean_share"]:.0f} % of the squared norm lies in the mean over the '
        f'positions (0 %: it sees differences only, such as edges; 100 %: averages only). '
        f'{numbers["weak"]} have a norm below a tenth of the largest one\'s, and '
        f'{numbers["alike"]} of the {count * (count - 1) // 2} pairs are alike or opposite '
        f'(cosine above {ALIKE} in magnitude).')
    tiles = pictures.enlarged(as_images(filters), 32)
    return Section(
        title='First-layer filters', caption=caption,
        reference='A. Krizhevsky et al., ImageNet Classification with Deep CNNs, 2012; M. Zeiler '
                  'and R. Fergus, Visualizing and Understanding Convolutional Networks, 2014',
        pictures={'first_layer_filters': Picture(
            pictures.mosaic(tiles, min(COLUMNS, count)),
            alt=f'{count} small squares of {k} x {k} pixels, one for each filter.')},
        numbers={f'filters_{name}': value for name, value in numbers.items()})
