"""The interface of data sources: random access to the raw items of one split."""

import hashlib
import importlib.util
import pathlib
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from resnet_jax.data.order import image_index
from resnet_jax.errors import UserError


class Item(NamedTuple):
    """One raw item of a source."""

    image: np.ndarray | bytes  # uint8 [H, W, C], or the bytes of an encoded image file
    label: int
    name: str  # what an error message calls it: a file, or a split and an index


class Source(Protocol):
    """One split of a dataset. Items are numbered from 0 and never change. It can be pickled.

    Attributes:
      num_classes: labels are in [0, num_classes).
      fingerprint: the same string for the same images in the same order, wherever they lie.
    """

    num_classes: int
    fingerprint: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Item: ...


class ArraySource:
    """Images of one size in memory.

    Attributes:
      images: uint8 [N, H, W, C].
      labels: int32 [N].
      num_classes: labels are in [0, num_classes).
      skipped: unreadable images that were left out.
      class_names: of the labels, in order, where they are known.
    """

    class_names: Sequence[str] = ()

    def __init__(self, images: np.ndarray, labels: np.ndarray, num_classes: int, name: str,
                 fingerprint: str = '', cache_key: str = '', skipped: int = 0):
        self.images, self.labels = images, labels.astype(np.int32)
        self.num_classes = num_classes
        self.fingerprint = fingerprint or digest(
            name, images.shape, np.ascontiguousarray(images), self.labels)
        self.cache_key = cache_key
        self.skipped = skipped
        self._name = name

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Item:
        return Item(self.images[index], int(self.labels[index]), f'{self._name}/{index}')


class Subset:
    """Some of the items of a source, in an order of their own."""

    def __init__(self, source: Source, indices: np.ndarray):
        self.num_classes = source.num_classes
        self.fingerprint = digest(source.fingerprint, indices)
        self.cache_key = digest(cache_key(source), indices)
        self.class_names = getattr(source, 'class_names', ())
        self._source, self._indices = source, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Item:
        return self._source[int(self._indices[index])]


def cache_key(source: Source) -> str:
    """What is derived from the images is kept under this key; '': it is not worth keeping.

    It changes with the images even where the fingerprint cannot tell, as by a folder's file times.
    """
    return getattr(source, 'cache_key', source.fingerprint)


HOLDOUT_SEED = 1512_03385  # of the one permutation whose end is held out


def hold_out(source: Source, num_images: int, held_out: bool) -> Source:
    """The training images without the held-out ones, or these (section 4.2: 45k and 5k).

    The choice depends on the number of images alone, never on the run's seed.

    Raises:
      UserError: there are not more images than are to be held out.
    """
    if num_images == 0:
        return source
    if not 0 < num_images < len(source):
        raise UserError(f'data.holdout must be from 0 to {len(source) - 1}, the training split '
                        f'having {len(source)} images; got {num_images}.')
    order = image_index(np.arange(len(source), dtype=np.uint32), len(source), HOLDOUT_SEED)
    chosen = np.sort(order[-num_images:] if held_out else order[:-num_images])
    if isinstance(source, ArraySource):
        return ArraySource(source.images[chosen], source.labels[chosen], source.num_classes,
                           'training images', digest(source.fingerprint, chosen))
    return Subset(source, chosen)


def digest(*parts) -> str:
    """32 hexadecimal digits that depend on every part: strings, numbers and contiguous arrays."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        state.update(part if isinstance(part, np.ndarray) else f'{part!r}\n'.encode())
    return state.hexdigest()


def check_unchanged(then: str, source: Source, name: str) -> None:
    """Compares a source with the fingerprint that was stored beside a checkpoint.

    Args:
      then: the source's fingerprint when the checkpoint was written.
      source: what is there now.
      name: what the sentence calls it, for example 'the training data'.

    Raises:
      UserError: they differ.
    """
    if then != source.fingerprint:
        raise UserError(
            f'{name} changed since the checkpoint was written (fingerprint {then[:8]} then, '
            f'{source.fingerprint[:8]} now, {len(source)} images): bring back the data that the '
            'run started with, or start a new run in another --workdir.')


DIGITS_SEED = 1512_03385  # of the one permutation that separates training from test images
DIGITS_TEST = 297


def digits(split: str) -> ArraySource:
    """scikit-learn's 1797 handwritten digits, uint8 [N, 8, 8, 1], 10 classes.

    A fixed permutation puts the last 297 images in the split 'test' and the first 1500 in 'train'.
    """
    # Importing scikit-learn is slow; reading its table directly is not.
    folder = importlib.util.find_spec('sklearn').submodule_search_locations[0]
    table = np.loadtxt(pathlib.Path(folder, 'datasets', 'data', 'digits.csv.gz'), delimiter=',')
    pixels, labels = table[:, :-1].reshape(-1, 8, 8, 1), table[:, -1].astype(np.int32)
    order = np.random.Generator(np.random.PCG64(DIGITS_SEED)).permutation(len(labels))
    chosen = order[-DIGITS_TEST:] if split == 'test' else order[:-DIGITS_TEST]
    # Pixels are counts from 0 to 16.
    images = np.round(pixels[chosen] * (255 / 16)).astype(np.uint8)
    return ArraySource(images, labels[chosen], 10, f'digits/{split}')


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
