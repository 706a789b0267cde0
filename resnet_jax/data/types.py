"""What passes through the data pipelines: items, sources, batches.

A tree is a dict of arrays and numbers, or of such dicts. In classification, the target of an image
is `{'label': int32}`; another task has what it needs, such as `boxes` and `classes`.
"""

from collections.abc import Generator, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

Tree = Mapping[str, Any]
Example = dict[str, Any]  # a tree: 'image' uint8 [H, W, C], and the target
Batch = dict[str, Any]  # a tree of jax.Array, each [N, …]
Normalization = Mapping[str, jax.Array | np.ndarray]  # 'mean' and 'std'


class Item(NamedTuple):
    """One raw item of a source.

    The arrays of a target may differ in shape from item to item, such as the boxes of an image's
    objects; a transform then makes them alike.
    """

    image: np.ndarray | bytes  # uint8 [H, W, C], or the bytes of an encoded image file
    target: Tree
    name: str  # what an error message calls it: a file, or a split and an index


def as_arrays(target: Tree) -> dict[str, Any]:
    """The target with numbers as int32, float32 or bool; arrays keep their dtype."""
    dtypes = {bool: np.bool_, int: np.int32, float: np.float32}
    return {name: as_arrays(value) if isinstance(value, dict)
            else np.asarray(value, dtypes.get(type(value)))
            for name, value in target.items()}


def check_names(target: Tree) -> None:
    """Raises ValueError where a part of a target is called as what a pipeline adds to it."""
    for name in ('mask', 'seed'):
        if name in target:
            raise ValueError(f'a target must not have a part called {name!r}: this name is '
                             'reserved.')


class Source(Protocol):
    """One split of a dataset. Items are numbered from 0 and never change. It can be pickled.

    A source of classes also has `num_classes`, labels being in [0, num_classes), and `class_names`
    in label order where they are known. A source whose fingerprint does not tell every change has a
    `cache_key` that does.

    Attributes:
      fingerprint: the same string for the same images in the same order, wherever they lie.
    """

    fingerprint: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Item: ...


def num_classes(source: Source) -> int:
    """The number of classes of a source; 0 if it has none."""
    return getattr(source, 'num_classes', 0)


class Pipeline(Protocol):
    """Batches of one split: the inputs sent to the devices, and the batch made from them there.

    Attributes:
      source: where the images come from; its `fingerprint` shows whether they changed.
      num_images: images in the split.
      num_batches: batches of an evaluation, which hold every image once.
      image_shape: (H, W, C) of a batch's images; of the first shape, if there are several.
      batch_size: N, over all processes.
      input_shapes: shapes, dtypes and shardings of an item of `inputs`, of the first shape; in
        training, 'seed' is among them, the run's as uint32 [].
      shares_inputs: whether all batches are made from the same inputs.
      skipped: unreadable images that this process has left out so far: once where they are decoded
        in advance, otherwise each time they were met.
    """

    source: Source
    num_images: int
    num_batches: int
    image_shape: tuple[int, int, int]
    batch_size: int
    input_shapes: Any
    shares_inputs: bool
    skipped: int

    def inputs(self, start_step: int) -> Generator[Any, None, None]:
        """What the device needs for the batches of start_step, start_step + 1, …

        Endless in training; `num_batches` or endless in evaluation. Items are trees of arrays that
        already lie on the mesh. All have one shape, unless images are put on several canvases.
        """
        ...

    def total_skipped(self) -> int:
        """`skipped` of all processes; to be called by all of them."""
        ...

    def batch(self, inputs: Any, step: jax.Array, normalization: Normalization) -> Batch:
        """The batch of a step. Pure, and called inside jit.

        Returns:
          'image' float32 [N, H, W, C], normalised; the targets, [N, …]; 'mask' float32 [N], which
          is 0 for images that pad the last batch of an evaluation.
        """
        ...
