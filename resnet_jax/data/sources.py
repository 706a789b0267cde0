"""Where images come from: random access to the raw items of one split, behind one interface."""

from typing import NamedTuple, Protocol

import numpy as np


class Item(NamedTuple):
    """One raw item of a source."""

    image: np.ndarray | bytes  # uint8 [H, W, C], or the bytes of an encoded image file
    label: int
    name: str  # what an error message calls it: a file, or a split and an index


class Source(Protocol):
    """One split of a dataset. Items are numbered from 0 and never change."""

    num_classes: int

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Item: ...


class ArraySource:
    """Images of one size in memory.

    Attributes:
      images: uint8 [N, H, W, C].
      labels: int32 [N].
      num_classes: labels are in [0, num_classes).
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, num_classes: int, name: str):
        self.images, self.labels = images, labels.astype(np.int32)
        self.num_classes = num_classes
        self._name = name

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Item:
        return Item(self.images[index], int(self.labels[index]), f'{self._name}/{index}')


DIGITS_SEED = 1512_03385  # of the one permutation that separates training from test images
DIGITS_TEST = 297


def digits(split: str) -> ArraySource:
    """scikit-learn's 1797 handwritten digits, uint8 [N, 8, 8, 1], 10 classes.

    A fixed permutation puts the last 297 images in the split 'test' and the first 1500 in 'train'.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = np.random.Generator(np.random.PCG64(DIGITS_SEED)).permutation(len(bunch.target))
    chosen = order[-DIGITS_TEST:] if split == 'test' else order[:-DIGITS_TEST]
    # Pixels are counts from 0 to 16.
    images = np.round(bunch.images[chosen, :, :, None] * (255 / 16)).astype(np.uint8)
    return ArraySource(images, bunch.target[chosen], 10, f'digits/{split}')


SYNTHETIC_IMAGES = {'train': 1024, 'test': 250}


def synthetic(split: str, image_size: int, num_classes: int) -> ArraySource:
    """Made-up images for tests and benchmarks, uint8 [N, image_size, image_size, 3].

    Every class is a fixed smooth pattern; an image is its class's pattern under noise. A network
    can therefore learn it, and a test can see that it does.
    """
    n = SYNTHETIC_IMAGES[split]
    rng = np.random.Generator(np.random.PCG64([n, image_size, num_classes]))
    patterns = np.random.Generator(np.random.PCG64(num_classes)).uniform(
        64, 192, (num_classes, 4, 4, 3))
    rows = np.arange(image_size) * 4 // image_size
    labels = rng.integers(num_classes, size=n)
    images = np.empty((n, image_size, image_size, 3), np.uint8)
    for i, label in enumerate(labels):
        noise = rng.normal(0, 40, images.shape[1:])
        images[i] = np.clip(patterns[label][rows][:, rows] + noise, 0, 255)
    return ArraySource(images, labels, num_classes, f'synthetic/{split}')
