"""Python interface to a trained network of any task: its outputs and its feature maps."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, overload

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from resnet_jax import models
from resnet_jax.data import Normalization
from resnet_jax.data.normalization import normalize
from resnet_jax.data.sizes import eval_size
from resnet_jax.models.backbone import average
from resnet_jax.tasks.task import get

BATCH_SIZE = 64  # images that a device computes at once
POOL = 'pool'  # the last feature map, averaged over all positions


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A trained network; each task has a subclass that says what the outputs mean.

    Images are uint8, or float in units of the full range (0 to 1): [N, H, W, C], or [H, W, C] for
    one. They are normalised as in training. H and W may be any that the network accepts; the
    features are averaged over all positions.

    Attributes:
      config: what the network was trained or converted with; see `resnet_jax.config`.
      variables: {'params': …, 'batch_stats': …}, float32.
      normalization: 'mean' and 'std' of the input, float32, in units of the full range.
    """

    config: ConfigDict
    variables: Mapping[str, Any]
    normalization: Normalization

    def __repr__(self) -> str:
        """One line, without the weights."""
        height, width = eval_size(self.config.data)
        size = sum(leaf.size for leaf in jax.tree.leaves(self.variables['params']))
        return (f'{type(self).__name__}({models.title(self.config.model)}, '
                f'{self.config.model.num_classes} classes, {size:,} parameters, '
                f'input {height} x {width} x {self.config.data.channels})')

    @functools.cached_property
    def model(self) -> Any:
        """The Flax module; see `Task.create_model`."""
        return get(self.config.task).create_model(self.config)

    @property
    def stages(self) -> tuple[str, ...]:
        """The names of the stages, for `features`."""
        return (*self.model.stages, POOL)

    def outputs(self, images: Any) -> Any:
        """Computes the outputs of the Flax module: a tree of [N, …], or without N for one image."""
        return self.apply(self._outputs, images)

    @overload
    def features(self, images: Any, stage: None = None) -> dict[str, np.ndarray]: ...

    @overload
    def features(self, images: Any, stage: str | int) -> np.ndarray: ...

    def features(self, images: Any,
                 stage: str | int | None = None) -> np.ndarray | dict[str, np.ndarray]:
        """Computes the feature maps after all stages, in one pass, or after one of them.

        Args:
          images: see the class.
          stage: 'stem', 'stage1' or 1, 'stage2' or 2, …: the feature maps; 'pool': the input of
            the last layer, averaged over all positions; VGG also has 'dense'. See `stages`. None:
            all of them.

        Returns:
          [N, H', W', channels] in the network's dtype; for 'pool' [N, channels], float32. Without
          N for one image. For all stages a dict of these, by their names, in the order of `stages`.

        Raises:
          ValueError: the network has no such stage.
        """
        if stage is None:
            maps = self.apply(functools.partial(self._features, stage=None), images)
            return {name: maps[name] for name in self.stages}  # jit has sorted them by name
        name = stage if isinstance(stage, str) else f'stage{stage}'
        if name not in self.stages:
            raise ValueError(f'stage must be one of {", ".join(self.stages)}, or the number of a '
                             f'stage; got {stage!r}.')
        return self.apply(functools.partial(self._features, stage=name), images)

    def apply(self, function: Callable, images: Any) -> Any:
        """Calls a compiled function on batches of one size, a power of two.

        There are then few sizes to compile for.

        Args:
          function: ((variables, normalization), images [n, H, W, C]) -> tree of [n, …], compiled.
          images: see the class.

        Returns:
          A tree of NumPy arrays [N, …], or without N for one image.

        Raises:
          ValueError: the images have another shape or type.
        """
        images = np.asarray(images)
        channels = self.config.data.channels
        if images.ndim not in (3, 4) or images.shape[-1] != channels or not images.size:
            raise ValueError(f'images must be [N, height, width, {channels}] or [height, width, '
                             f'{channels}], got {list(images.shape)}.')
        if images.dtype != np.uint8 and images.dtype.kind != 'f':
            raise ValueError(f'images must be uint8, or float from 0 to 1, got {images.dtype}.')
        if images.ndim == 3:
            return jax.tree.map(lambda x: x[0], self.apply(function, images[None]))
        size, outputs = min(BATCH_SIZE, 1 << (len(images) - 1).bit_length()), []
        for start in range(0, len(images), size):
            batch = images[start:start + size]
            padded = np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), 0)])
            outputs.append(jax.device_get(function(self._on_device, padded)))
        return jax.tree.map(lambda *parts: np.concatenate(parts)[:len(images)], *outputs)

    @functools.cached_property
    def _on_device(self) -> tuple[Any, Any]:
        return jax.device_put((dict(self.variables), dict(self.normalization)))

    @functools.cached_property
    def _outputs(self):
        return jax.jit(functools.partial(outputs, self.model))

    @functools.cached_property
    def _features(self):
        return jax.jit(functools.partial(_features_of, self.model), static_argnames='stage')


def outputs(model: nn.Module, weights: tuple[Any, Any], images: jax.Array) -> Any:
    """Computes the outputs of a network for images that are not normalised yet. Pure.

    Args:
      model: the network.
      weights: (variables, normalisation).
      images: uint8, or float in units of the full range, [N, H, W, C].

    Returns:
      For a classifier, the class scores before the softmax, float32 [N, classes].
    """
    variables, normalization = weights
    return model.apply(variables, normalized(images, normalization), train=False)


def normalized(images: jax.Array, normalization: Normalization) -> jax.Array:
    """Normalises images as `outputs` takes them: float32 [N, H, W, C]."""
    mean, std = normalization['mean'], normalization['std']
    if mean.ndim == 3 and mean.shape[:2] != images.shape[1:3]:
        # A mean image fits one size only; images of another get its mean colour.
        mean = mean.mean((0, 1))
    if images.dtype == jnp.uint8:
        return normalize(images, {'mean': mean, 'std': std})
    return (images.astype(jnp.float32) - mean) / std


def _features_of(model: nn.Module, weights: tuple[Any, Any], images: jax.Array, *,
                 stage: str | None) -> Any:
    variables, normalization = weights
    upto = model.stages[-1] if stage in (POOL, None) else stage
    maps: Any = model.apply(variables, normalized(images, normalization), train=False, upto=upto,
                            method='features')
    if stage is None:
        return {**maps, POOL: average(maps[upto])}
    return average(maps[upto]) if stage == POOL else maps[stage]
