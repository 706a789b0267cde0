"""Maps between torchvision's parameter names and the variables of a network, both ways.

The blocks of a stage after the first, which are stacked in our variables, are separate tensors
there. What the tensors of each family are called is registered; see `resnet_jax.weights.foreign`.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax
import jax
import numpy as np

from resnet_jax import models
from resnet_jax.errors import UserError
from resnet_jax.weights import foreign

LISTED = 6  # names that an error spells out


class Leaf(NamedTuple):
    """One array of the tree, and the tensors that it is made of.

    Attributes:
      path: such as ('params', 'stage1', 'blocks', 'conv1', 'kernel').
      shape: of the array.
      tensors: torchvision's names: one, or one for each block of a stack.
      stacked: whether the first axis is that of blocks.
      flattened: whether torchvision flattens a feature map, channels first, in front of this layer.
      transposed: whether it is a transposed convolution, whose inputs come first there.
      pointwise: whether it is a dense layer here and a 1x1 convolution there.
      rolled: how many of the outputs, which are last here, come first there.
    """

    path: tuple[str, ...]
    shape: tuple[int, ...]
    tensors: tuple[str, ...]
    stacked: bool
    flattened: bool
    rolled: int
    transposed: bool
    pointwise: bool

    def torch_shape(self) -> tuple[int, ...]:
        """The shape of each of the tensors."""
        shape = self.shape[1:] if self.stacked else self.shape
        if self.path[-1] != 'kernel':
            return shape
        if self.transposed:
            return (*shape[2:], *shape[:2])
        if self.flattened:
            return (shape[3], shape[2] * shape[0] * shape[1])
        if len(shape) == 2:
            return (*shape[::-1], 1, 1) if self.pointwise else shape[::-1]
        return (shape[3], shape[2], shape[0], shape[1])

    def to_torch(self, array: np.ndarray) -> dict[str, np.ndarray]:
        """The array as tensors by name."""
        array = np.roll(array, self.rolled, -1) if self.rolled else array
        blocks = array if self.stacked else array[None]
        return {name: np.ascontiguousarray(self._block_to_torch(block))
                for name, block in zip(self.tensors, blocks, strict=True)}

    def from_torch(self, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
        """The tensors as one float32 array; their shapes must have been checked."""
        blocks = [self._block_from_torch(tensors[name]) for name in self.tensors]
        array = np.stack(blocks) if self.stacked else blocks[0]
        array = np.roll(array, -self.rolled, -1) if self.rolled else array
        return np.ascontiguousarray(array, np.float32)

    def _block_to_torch(self, block):
        if self.path[-1] != 'kernel':
            return block
        if block.ndim == 2:
            return block.T.reshape(self.torch_shape())
        if self.transposed:
            return block.transpose(2, 3, 0, 1)
        return block.transpose(3, 2, 0, 1).reshape(self.torch_shape())

    def _block_from_torch(self, tensor):
        if self.path[-1] != 'kernel':
            return tensor
        if self.pointwise:
            return tensor[..., 0, 0].T
        if tensor.ndim == 2 and not self.flattened:
            return tensor.T
        if self.transposed:
            return tensor.transpose(2, 3, 0, 1)
        height, width, inputs, outputs = self.shape[-4:]
        return tensor.reshape(outputs, inputs, height, width).transpose(2, 3, 1, 0)


def leaves(fields: Mapping[str, Any], channels: int,
           known: foreign.Foreign | None = None) -> list[Leaf]:
    """Every array of a network's variables, without making any.

    Args:
      fields: of `config.model`.
      channels: of the images.
      known: whose names the tensors have; None: `foreign.of(fields)`.

    Raises:
      models.ConfigError: a field is out of its range.
    """
    known = known or foreign.of(fields)
    size = models.family_of(fields).least_size
    shapes = _shapes(known.create(fields), (1, size, size, channels))
    return [_leaf(path, shape, fields, known) for path, shape in shapes]


@functools.lru_cache(maxsize=64)  # tracing takes most of a second, and a conversion asks often
def _shapes(model: flax.linen.Module, image: tuple[int, ...]
            ) -> list[tuple[tuple[str, ...], tuple[int, ...]]]:
    tree = jax.eval_shape(lambda image: model.init(jax.random.key(0), image, train=False),
                          jax.ShapeDtypeStruct(image, np.float32))
    return [(path, leaf.shape) for path, leaf in flax.traverse_util.flatten_dict(tree).items()]


def _leaf(path: tuple[str, ...], shape: tuple[int, ...], fields: Mapping[str, Any],
          known: foreign.Foreign) -> Leaf:
    _, *module, part = path
    stacked = models.STACKED in path
    tensors = known.tensors_of(tuple(module), shape[0] if stacked else 1, fields)
    return Leaf(path, shape, tuple(f'{name}.{foreign.PARTS[part]}' for name in tensors), stacked,
                module[-1] in known.flattened, known.rolled.get('/'.join(module), 0),
                module[-1] in known.transposed, module[-1] in known.pointwise)


def from_torch(tensors: Mapping[str, np.ndarray], fields: Mapping[str, Any], channels: int,
               original: Mapping[str, str] | None = None,
               known: foreign.Foreign | None = None) -> dict[str, Any]:
    """A network's variables from tensors under torchvision's names.

    Args:
      tensors: all of the network's, and no others.
      fields: of `config.model`.
      channels: of the images.
      original: the names that the tensors have in their file, for the message; None: the same.
      known: see `leaves`.

    Returns:
      {'params': …, 'batch_stats': …} of float32 numpy arrays.

    Raises:
      UserError: tensors are missing, too many or of another shape; the message lists them.
      models.ConfigError: a field is out of its range.
    """
    original = original or {}
    wanted = leaves(fields, channels, known)
    shapes = {name: leaf.torch_shape() for leaf in wanted for name in leaf.tensors}
    renamed = any(name != old for name, old in original.items())
    problems = {
        "missing (torchvision's names)" if renamed else 'missing': [
            name for name in shapes if name not in tensors],
        'unknown': [original.get(name, name) for name in tensors if name not in shapes],
        'of another shape': [
            f'{original.get(name, name)} ({_by(tensors[name].shape)} instead of {_by(shape)})'
            for name, shape in shapes.items()
            if name in tensors and tensors[name].shape != shape],
    }
    listed = [f'{len(names)} {kind}: {_list(names)}' for kind, names in problems.items() if names]
    if listed:
        raise UserError(f'the tensors do not fit {models.title(fields)}: {"; ".join(listed)}.')
    return flax.traverse_util.unflatten_dict(
        {leaf.path: leaf.from_torch(tensors) for leaf in wanted})


def to_torch(variables: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """A network's variables under torchvision's names; the inverse of `from_torch`."""
    flat, known = flax.traverse_util.flatten_dict(dict(variables)), foreign.of(fields)
    tensors = {}
    for path, array in flat.items():
        tensors |= _leaf(path, array.shape, fields, known).to_torch(np.asarray(array))
    return tensors | known.idle_biases(tensors)


def _list(names: list[str]) -> str:
    more = f', and {len(names) - LISTED} more' if len(names) > LISTED else ''
    return ', '.join(names[:LISTED]) + more


def _by(shape: tuple[int, ...]) -> str:
    return 'x'.join(map(str, shape)) or 'a number'
