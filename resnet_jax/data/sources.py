"""Sources in memory, parts of sources, and fingerprints."""

import hashlib
from collections.abc import Sequence

import jax
import numpy as np

from resnet_jax.data.order import image_index
from resnet_jax.data.types import Item, Source, Tree
from resnet_jax.errors import UserError


class ArraySource:
    """Images of one size in memory, with targets of one shape.

    Attributes:
      images: uint8 [N, H, W, C].
      targets: tree of [N, …].
      num_classes: labels are in [0, num_classes); None without classes.
      skipped: unreadable images that were left out.
      class_names: of the labels, in order, where they are known.
    """

    def __init__(self, images: np.ndarray, targets: Tree, name: str, *,
                 num_classes: int | None = None, class_names: Sequence[str] = (),
                 fingerprint: str = '', cache_key: str = '', skipped: int = 0):
        """Keeps the arrays as they are.

        Args:
          images, targets, num_classes, class_names, skipped: see the attributes.
          name: what an error message calls the split.
          fingerprint: see `Source`; '': of the images and the targets.
          cache_key: see `cache_key`.
        """
        self.images, self.targets = images, targets
        self.num_classes, self.class_names = num_classes, class_names
        self.fingerprint = fingerprint or digest(
            name, images.shape, images, *(part for path, leaf in jax.tree.leaves_with_path(targets)
                                          for part in (str(path), leaf.dtype.str, leaf)))
        self.cache_key = cache_key
        self.skipped = skipped
        self._name = name

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Item:
        return Item(self.images[index], jax.tree.map(lambda leaf: leaf[index], self.targets),
                    f'{self._name}/{index}')

    @property
    def sizes(self) -> np.ndarray:
        """Height and width of each image, int [N, 2]."""
        return np.broadcast_to(self.images.shape[1:3], (len(self), 2))

    @property
    def labels(self) -> np.ndarray:
        """The label of each image, int32 [N]; only if the targets have a label."""
        return self.targets['label']


def labelled(images: np.ndarray, labels: np.ndarray, num_classes: int, name: str,
             **options) -> ArraySource:
    """Images in memory with a class each, the target {'label': int32}.

    Args:
      images: uint8 [N, H, W, C].
      labels: integers [N], in [0, num_classes).
      num_classes, name, **options: see `ArraySource`.
    """
    labels = labels.astype(np.int32)
    # As it was before targets had names, so that old runs find their data unchanged.
    options.setdefault('fingerprint', digest(name, images.shape, images, labels))
    return ArraySource(images, {'label': labels}, name, num_classes=num_classes, **options)


class Subset:
    """Some of the items of a source, in an order of their own."""

    def __init__(self, source: Source, indices: np.ndarray):
        self.num_classes = getattr(source, 'num_classes', None)
        self.class_names = getattr(source, 'class_names', ())
        self.fingerprint = digest(source.fingerprint, indices)
        self.cache_key = digest(cache_key(source), indices)
        self._source, self._indices = source, indices
        for name in ('most_objects', 'category_ids'):
            if hasattr(source, name):
                setattr(self, name, getattr(source, name))
        if hasattr(source, 'sizes'):
            self.sizes = source.sizes[indices]

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


def share_to_hold_out(num_images: int) -> int:
    """How many training images are held out by default: a fifth, at most 5,000."""
    return max(1, min(num_images // 5, 5_000))


def hold_out(source: Source, num_images: int, held_out: bool) -> Source:
    """The training images without the held-out ones, or these (section 4.2: 45k and 5k).

    The choice depends on the number of images alone, never on the run's seed.

    Raises:
      UserError: there are not more images than are to be held out.
    """
    if num_images == 0:
        return source
    if not 0 < num_images < len(source):
        raise UserError(f'data.holdout must be from 0 to {len(source) - 1}, because the training '
                        f'split has {len(source)} images; got {num_images}.')
    order = image_index(np.arange(len(source), dtype=np.uint32), len(source), HOLDOUT_SEED)
    chosen = np.sort(order[-num_images:] if held_out else order[:-num_images])
    if type(source) is ArraySource:  # a subclass has more than these arrays
        return ArraySource(
            source.images[chosen], jax.tree.map(lambda leaf: leaf[chosen], source.targets),
            'training images', num_classes=source.num_classes, class_names=source.class_names,
            fingerprint=digest(source.fingerprint, chosen))
    return Subset(source, chosen)


def digest(*parts) -> str:
    """32 hexadecimal digits that depend on every part: strings, numbers and arrays."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        state.update(np.ascontiguousarray(part) if isinstance(part, np.ndarray)
                     else f'{part!r}\n'.encode())
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
