"""scikit-learn's handwritten digits, which are installed with it."""

import importlib.util
import pathlib

import numpy as np
from ml_collections import ConfigDict

from resnet_jax.data.sources import ArraySource, labelled

SEED = 1512_03385  # of the one permutation that separates training from test images
TEST_IMAGES = 297


def create(config: ConfigDict, split: str) -> ArraySource:
    """Opens a split; see `resnet_jax.data.registry`. No field of the config is used."""
    del config
    return digits(split)


def digits(split: str) -> ArraySource:
    """scikit-learn's 1797 handwritten digits, uint8 [N, 8, 8, 1], 10 classes.

    A fixed permutation puts the last 297 images in the split 'test' and the first 1500 in 'train'.
    """
    # Importing scikit-learn is slow; reading its table directly is not.
    folder = importlib.util.find_spec('sklearn').submodule_search_locations[0]
    table = np.loadtxt(pathlib.Path(folder, 'datasets', 'data', 'digits.csv.gz'), delimiter=',')
    pixels, labels = table[:, :-1].reshape(-1, 8, 8, 1), table[:, -1].astype(np.int32)
    order = np.random.Generator(np.random.PCG64(SEED)).permutation(len(labels))
    chosen = order[-TEST_IMAGES:] if split == 'test' else order[:-TEST_IMAGES]
    # Pixels are counts from 0 to 16.
    images = np.round(pixels[chosen] * (255 / 16)).astype(np.uint8)
    return labelled(images, labels[chosen], 10, f'digits/{split}')
