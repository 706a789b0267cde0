"""Per-class region proposal networks for localization (appendix C).

A classifier with two more siblings on its last feature map. For each class there is a binary
logistic score of every anchor, "does the anchor contain an object of this class", and a correction
of its box. Parameters have the same paths as in the classifier, so the weights of any classifier
can start a localizer. The layers are 1x1 convolutions whose kernels are chosen by class: training
needs those of the true class alone, which is a thousandth of the work on ImageNet.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from resnet_jax.models.errors import ConfigError
from resnet_jax.models.resnet import ResNet, fields_of, trunk_of
from resnet_jax.regions import anchors as anchors_lib
from resnet_jax.regions import boxes as boxes_lib

HEADS = ('head', 'localizer')  # the parts that depend on the classes


@dataclasses.dataclass(frozen=True)
class Settings:
    """`config.model.localizer`; lengths are in pixels of the network's input.

    Attributes:
      anchor_sizes, anchor_ratios: see `resnet_jax.regions.anchors.base_anchors`.
      per_class: whether each class has its own correction of boxes, as in the paper; otherwise all
        classes share one.
      anchors_per_image: anchors of each image that are trained.
      proposals, crop_size, reduction: of the R-CNN; see `resnet_jax.models.localizer_rcnn`.
    """

    anchor_sizes: tuple[float, ...] = (56, 112, 224)
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    per_class: bool = True
    anchors_per_image: int = 8
    proposals: int = 200
    crop_size: int = 224
    reduction: int = 1


class Found(NamedTuple):
    """The best box of some classes in each image.

    Attributes:
      boxes: float32 [N, T, 4], in pixels of the input.
      scores: float32 [N, T], before the sigmoid.
    """

    boxes: jax.Array
    scores: jax.Array


class Localizer(ResNet, kw_only=True):
    """A residual network with class scores, and boxes for every class; see the module.

    Attributes:
      settings: see `Settings`.
    """

    settings: Settings = Settings()

    @property
    def stride(self) -> int:
        """Pixels of the input between positions of the last feature map."""
        return (1 if self.stem_kind == 'cifar' else 4) * 2 ** (len(self.stage_sizes) - 1)

    def setup(self) -> None:
        super().setup()
        anchors = len(self.settings.anchor_sizes) * len(self.settings.anchor_ratios)
        self.localizer = Siblings(self.num_classes, anchors, self.settings.per_class)

    def last_map(self, images: jax.Array, *, train: bool) -> jax.Array:
        """The last feature map [N, h, w, channels] of images float [N, H, W, C], normalised."""
        return self.features(images, train=train)[self.stages[-1]]

    def anchors(self, features: jax.Array) -> jax.Array:
        """All anchors of a feature map, float32 [h * w * A, 4], in pixels of the input.

        They are centred in the middle of the pixels that a position stands for, so that they cover
        an image and its mirror image alike.
        """
        s = self.settings
        base = anchors_lib.base_anchors(s.anchor_sizes, s.anchor_ratios) + self.stride / 2
        height, width = features.shape[1:3]
        return anchors_lib.grid(base, height, width, self.stride)

    def locate(self, features: jax.Array, classes: jax.Array | None, frames: jax.Array) -> Found:
        """The best box of each class: that of the anchor with the highest score, corrected.

        Args:
          features: the last feature map.
          classes: int32 [N, T], or None for all classes.
          frames: float32 [N, 4]: where the image lies on the input; boxes are clipped to it.
        """
        scores, deltas = self.localizer(features, classes)
        best = jnp.argmax(scores, -1)[..., None]
        boxes = self.corrected(features, deltas, best, frames)[:, :, 0]
        return Found(boxes, jnp.max(scores, -1))

    def corrected(self, features: jax.Array, deltas: jax.Array, index: jax.Array,
                  frames: jax.Array) -> jax.Array:
        """The corrected boxes of some anchors, clipped to the images.

        Args:
          features: the last feature map.
          deltas: float32 [N, T, A, 4], see `Siblings`.
          index: int32 [N, T, P], of anchors.
          frames: see `locate`.

        Returns:
          float32 [N, T, P, 4], in pixels of the input.
        """
        deltas = jnp.take_along_axis(deltas, index[..., None], 2)
        return within(boxes_lib.decode(deltas, self.anchors(features)[index]), frames)

    def __call__(  # type: ignore[override]  # a classifier has scores alone
            self, images: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        """The outputs for all classes; see `WithHead` and `Siblings`.

        Args:
          images, train: see `Backbone.features`.

        Returns:
          Dict of 'classes' float32 [N, classes], before the softmax, 'scores' and 'deltas'.
        """
        features = self.last_map(images, train=train)
        scores, deltas = self.localizer(features, None)
        return {'classes': self.classify(features), 'scores': scores, 'deltas': deltas}


def within(boxes: jax.Array, frames: jax.Array) -> jax.Array:
    """Clips boxes float32 [N, ..., 4] to a box for each image, float32 [N, 4]."""
    frames = frames.reshape(len(frames), *(1,) * (boxes.ndim - 2), 4)
    return jnp.clip(boxes, jnp.tile(frames[..., :2], 2), jnp.tile(frames[..., 2:], 2))


class Siblings(nn.Module):
    """The two layers that score every anchor for a class, and correct its box.

    Attributes:
      num_classes: K.
      num_anchors: A, at each position.
      per_class: see `Settings`.
    """

    num_classes: int
    num_anchors: int
    per_class: bool

    @nn.compact
    def __call__(self, x: jax.Array, classes: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Applies the layers of some classes.

        Args:
          x: [N, h, w, channels].
          classes: int32 [N, T]; None: all K of them.

        Returns:
          scores: float32 [N, T, h * w * A], before the sigmoid.
          deltas: float32 [N, T, h * w * A, 4], see `boxes.decode`.
        """
        scores = ClassLayer(self.num_classes, self.num_anchors, name='score')(x, classes)
        shape = (*scores.shape[:2], -1)
        if self.per_class:
            deltas = ClassLayer(self.num_classes, 4 * self.num_anchors, name='delta')(x, classes)
        else:
            deltas = ClassLayer(1, 4 * self.num_anchors, name='delta')(x, None)
            deltas = jnp.broadcast_to(deltas, (*scores.shape[:4], deltas.shape[-1]))
        return scores.reshape(shape), deltas.reshape(*shape, 4)


class ClassLayer(nn.Module):
    """A 1x1 convolution for each class.

    Attributes:
      num_classes: K.
      features: outputs F for a class.
    """

    num_classes: int
    features: int

    @nn.compact
    def __call__(self, x: jax.Array, classes: jax.Array | None) -> jax.Array:
        """[N, h, w, channels], int32 [N, T] or None for all -> float32 [N, T, h, w, F]."""
        channels = x.shape[-1]
        kernel = self.param('kernel', nn.initializers.normal(0.01),
                            (self.num_classes, channels, self.features))
        bias = self.param('bias', nn.initializers.zeros, (self.num_classes, self.features))
        if classes is None:
            y = jnp.einsum('nhwc,kcf->nkhwf', x, kernel.astype(x.dtype))
            shift = bias[None]
        else:
            # A product with one-hot rows, as the gradient of a gather would be a scatter.
            chosen = jax.nn.one_hot(classes, self.num_classes, dtype=kernel.dtype)
            exact = jax.lax.Precision.HIGHEST
            kernel = jnp.einsum('ntk,kcf->ntcf', chosen, kernel, precision=exact)
            shift = jnp.einsum('ntk,kf->ntf', chosen, bias, precision=exact)
            y = jnp.einsum('nhwc,ntcf->nthwf', x, kernel.astype(x.dtype))
        y = y.astype(jnp.promote_types(y.dtype, jnp.float32))
        return y + shift[:, :, None, None]


def create(config: ConfigDict) -> Localizer:
    """The localizer of `config.model`, whose field `localizer` has the settings.

    Raises:
      ConfigError: a field is out of its range, or the family has no residual stages.
    """
    return of_kind(Localizer, config)


Kind = TypeVar('Kind', bound=Localizer)


def of_kind(kind: type[Kind], config: ConfigDict) -> Kind:
    """A network of `Localizer` or of a subclass; see `create`."""
    network = trunk_of(config.model, 'a localizer')
    return kind(**fields_of(network, ResNet), settings=_settings(config.model.localizer))


def _settings(section: Mapping[str, Any]) -> Settings:
    for name in ('anchor_sizes', 'anchor_ratios'):
        value = section[name]
        if not value or not all(isinstance(x, (int, float)) and x > 0 for x in value):
            raise ConfigError(f'model.localizer.{name} must be positive numbers, such as (32, 64), '
                              f'got {value!r}.')
    fields = {field.name: section[field.name] for field in dataclasses.fields(Settings)}
    return Settings(**fields | {name: tuple(fields[name])
                                for name in ('anchor_sizes', 'anchor_ratios')})
