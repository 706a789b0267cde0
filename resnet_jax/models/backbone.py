"""Backbones, which compute named feature maps, and classifiers, which add a head."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from resnet_jax.models.conv import he_normal


class Backbone(nn.Module, kw_only=True):
    """The part of a network that turns images into feature maps.

    A subclass names its `stages`, and makes in `setup` a submodule of each name, called with
    `(x, train=…)`; or it overrides `run`. A single stage can thus be applied to anything of the
    right number of channels, such as regions of the feature maps before it:

      maps = backbone.features(images, train=False, upto='stage3')
      backbone.run('stage4', regions, train=False)

    Attributes:
      width: filters of the first stage.
      virtual_batch_size, bn_momentum, bn_epsilon, bn_unbiased_variance: see `BatchNorm`.
      dtype: of the computation; parameters and statistics are float32.
      remat: what the gradient keeps; see `resnet_jax.models.remat`.
      bn_frozen: normalise by the running statistics in training too, and keep them.
      num_devices: number of devices that a batch is sharded over; see `conv2d`.
      mesh: these devices, with an axis 'data' for the batch; None: a single one.
    """

    width: int = 64
    virtual_batch_size: int | None = None
    bn_momentum: float = 0.9
    bn_epsilon: float = 1e-5
    bn_unbiased_variance: bool = True
    dtype: Any = jnp.float32
    remat: str = 'none'
    bn_frozen: bool = False
    num_devices: int = 1
    mesh: Mesh | None = None

    @property
    def stages(self) -> tuple[str, ...]:
        """The names of the feature maps, in the order in which an image passes them."""
        raise NotImplementedError

    def norm_fields(self) -> dict[str, Any]:
        """The fields of `BatchNorm` that are determined by those of the network."""
        return dict(virtual_batch_size=self.virtual_batch_size, momentum=self.bn_momentum,
                    epsilon=self.bn_epsilon, unbiased_variance=self.bn_unbiased_variance,
                    dtype=self.dtype, frozen=self.bn_frozen)

    def run(self, stage: str, x: jax.Array, *, train: bool) -> jax.Array:
        """The output of one stage for an input float [N, H, W, C]."""
        return getattr(self, stage)(x, train=train)

    def features(self, images: jax.Array, *, train: bool,
                 upto: str | None = None) -> dict[str, Any]:
        """Computes the feature maps of images.

        Args:
          images: float [N, H, W, C], normalised.
          train: normalise by batch statistics, and update the collection 'batch_stats'.
          upto: the last stage that is computed; None: all are.

        Returns:
          [N, h, w, channels] in `dtype` by the names of the stages, in the order of `stages`
          (which jit sorts by name).

        Raises:
          ValueError: there is no stage `upto`.
        """
        if upto not in (None, *self.stages):
            raise ValueError(f'upto must be one of {", ".join(self.stages)}, got {upto!r}.')
        x, maps = images.astype(self.dtype), {}
        for stage in self.stages:
            maps[stage] = x = self.run(stage, x, train=train)
            if stage == upto:
                break
        return maps

    def __call__(self, images: jax.Array, *, train: bool) -> Any:
        """The outputs of the network: of a backbone alone, its `features`."""
        return self.features(images, train=train)


class WithHead(Backbone, kw_only=True):
    """A backbone with a head: a dense layer on the last feature map, averaged over all positions.

    To be inherited from in front of a backbone: `class ResNet(WithHead, ResNetBackbone)`. The
    parameters have the same paths in the backbone alone, and those of the head begin with 'head'.

    Attributes:
      num_classes: outputs.
    """

    num_classes: int = 1000

    def setup(self) -> None:
        super().setup()
        self.head = nn.Dense(self.num_classes, kernel_init=he_normal)

    def classify(self, x: jax.Array) -> jax.Array:
        """Class scores float32 [N, num_classes] of the last stage's output [N, h, w, channels]."""
        return self.head(average(x))

    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Computes class scores, before the softmax.

        Args:
          images, train: see `features`.

        Returns:
          float32 [N, num_classes].
        """
        return self.classify(self.features(images, train=train)[self.stages[-1]])


def average(x: jax.Array) -> jax.Array:
    """The mean of feature maps [N, h, w, channels] over all positions: float32 [N, channels]."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32)).mean((1, 2))
