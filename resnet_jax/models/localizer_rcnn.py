"""An R-CNN on the proposals of a localizer: the second step of localization (appendix C).

The proposal network of the first step, which is not trained any more, proposes boxes for a class.
Each is cut out of the image, warped to a square and given to a residual network of its own, with
two fully connected siblings in place of the head: for each class a binary logistic score, "is this
an object of the class", and a correction of the box.

The parts of the proposal network keep their names. The second network is 'rcnn', with the names of
a classifier below, and its siblings are 'region'.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from resnet_jax.models import localizer
from resnet_jax.models.backbone import average
from resnet_jax.models.errors import ConfigError
from resnet_jax.models.localizer import Localizer
from resnet_jax.models.rcnn import per_image
from resnet_jax.models.registry import family_of
from resnet_jax.models.resnet import ResNetBackbone, fields_of
from resnet_jax.regions import boxes as boxes_lib
from resnet_jax.regions.roi_align import roi_align

HEADS = (*localizer.HEADS, 'rcnn', 'region')
PROPOSER = '^(?!rcnn/|region/)'  # the paths of the parameters of the proposal network
WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # of the corrections, as in Fast R-CNN; see `boxes.encode`


class LocalizerRCNN(Localizer, kw_only=True):
    """A localizer whose proposals are judged by a second network; see the module.

    Of the settings, `proposals` is how many boxes of a class are judged, `crop_size` the side in
    pixels to which they are warped, and `reduction` how many times smaller than the input the image
    is that the proposal network sees. So crops can have more detail than proposals need.
    """

    def setup(self) -> None:
        super().setup()
        self.rcnn = ResNetBackbone(**fields_of(self, ResNetBackbone))
        self.region = RegionSiblings(self.num_classes, self.settings.per_class)

    def last_map(self, images: jax.Array, *, train: bool) -> jax.Array:
        """The last feature map of the proposal network, of reduced images.

        Raises:
          ConfigError: they are smaller than a position of the feature map.
        """
        small = reduced(images, self.settings.reduction)
        if min(small.shape[1:3]) < self.stride:
            raise ConfigError(
                f'model.localizer.reduction={self.settings.reduction} leaves images of '
                f'{small.shape[1]} x {small.shape[2]} pixels to the proposal network, which needs '
                f'{self.stride}; set a larger data.image_size, or a smaller reduction.')
        return super().last_map(small, train=train)

    def anchors(self, features: jax.Array) -> jax.Array:
        """See `Localizer.anchors`; in pixels of the input, before it is reduced."""
        return super().anchors(features) * self.settings.reduction

    def propose(self, features: jax.Array, classes: jax.Array, frames: jax.Array) -> jax.Array:
        """The boxes with the highest scores for each class, the best first.

        None is suppressed, since the paper mentions no suppression here.

        Args:
          features, classes, frames: see `Localizer.locate`.

        Returns:
          float32 [N, T, P, 4]; P is `settings.proposals`, or the number of anchors if that is less.
        """
        scores, deltas = self.localizer(features, classes)
        number = min(self.settings.proposals, scores.shape[-1])
        index = per_image(self, lambda scores: jax.lax.top_k(scores, number)[1])(scores)
        return self.corrected(features, deltas, index, frames)

    def judge(self, crops: jax.Array, classes: jax.Array, *,
              train: bool) -> tuple[jax.Array, jax.Array]:
        """The outputs of the second network for a class of each crop.

        Args:
          crops: float [M, S, S, C], see `warp`.
          classes: int32 [M].
          train: see `Backbone.features`.

        Returns:
          Scores before the sigmoid, float32 [M], and deltas, float32 [M, 4]: see `boxes.encode`,
          with WEIGHTS.
        """
        chosen = jax.nn.one_hot(classes, self.num_classes)
        scores, deltas = self.region(self.describe(crops, train=train))
        return (scores * chosen).sum(1), (deltas * chosen[..., None]).sum(1)

    def __call__(  # type: ignore[override]  # a classifier has scores alone
            self, images: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        """The outputs for all classes, and those of the second network for the whole images.

        Args:
          images, train: see `Localizer`.

        Returns:
          Dict of the outputs of `Localizer`, 'region_scores' float32 [N, classes] and
          'region_deltas' float32 [N, classes, 4].
        """
        height, width = images.shape[1:3]
        whole = jnp.tile(jnp.float32([0, 0, width, height]), (len(images), 1, 1))
        crops = warp(images, whole, self.settings.crop_size)[:, 0]
        scores, deltas = self.region(self.describe(crops, train=train))
        return {**super().__call__(images, train=train), 'region_scores': scores,
                'region_deltas': deltas}

    def describe(self, crops: jax.Array, *, train: bool) -> jax.Array:
        """What the siblings see of crops [M, S, S, C]: float32 [M, channels]."""
        return average(self.rcnn.features(crops, train=train)[self.rcnn.stages[-1]])


class RegionSiblings(nn.Module):
    """The two layers that score a region for every class, and correct its box.

    Attributes:
      num_classes: K.
      per_class: whether each class has a correction of its own.
    """

    num_classes: int
    per_class: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """float32 [M, channels] -> scores before the sigmoid [M, K], deltas [M, K, 4]."""
        scores = nn.Dense(self.num_classes, kernel_init=nn.initializers.normal(0.01),
                          name='score')(x)
        deltas = nn.Dense(4 * (self.num_classes if self.per_class else 1),
                          kernel_init=nn.initializers.normal(0.001), name='delta')(x)
        return scores, jnp.broadcast_to(deltas.reshape(len(x), -1, 4), (*scores.shape, 4))


def warp(images: jax.Array, boxes: jax.Array, size: int) -> jax.Array:
    """Cuts boxes out of images and scales them to squares, whatever their shape.

    Each pixel is the mean of 2 x 2 bilinear samples. Outside of the image they are 0, the mean
    colour of normalised images. No gradient passes.

    Args:
      images: float [N, H, W, C].
      boxes: float32 [N, R, 4], in pixels.
      size: S, in pixels.

    Returns:
      [N, R, S, S, C], as images.
    """
    images, boxes = jax.lax.stop_gradient((images, boxes))
    return roi_align(images, boxes, bins=size, scale=1, points=2)


def reduced(images: jax.Array, times: int) -> jax.Array:
    """The mean over squares of some pixels: [N, H, W, C] -> [N, H // times, W // times, C].

    The pixels that are left over at the right and at the bottom are dropped.
    """
    if times == 1:
        return images
    N, H, W, C = images.shape
    H, W = H // times, W // times
    return images[:, :H * times, :W * times].reshape(N, H, times, W, times, C).mean((2, 4))


def decode(deltas: jax.Array, boxes: jax.Array) -> jax.Array:
    """Corrects regions [..., 4] by the deltas of `LocalizerRCNN.judge`, [..., 4]."""
    return boxes_lib.decode(deltas, boxes, WEIGHTS)


def encode(boxes: jax.Array, regions: jax.Array) -> jax.Array:
    """The deltas that correct regions [..., 4] to boxes [..., 4]."""
    return boxes_lib.encode(boxes, regions, WEIGHTS)


def started(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The weights that a localizer gives: its backbone is also the start of the second network.

    Args:
      variables: 'params' and 'batch_stats' of a localizer, or of a network with both steps, which
        stays as it is.
    """
    if 'rcnn' in variables['params']:
        return dict(variables)
    return {name: {**parts, 'rcnn': {part: tree for part, tree in parts.items()
                                     if part not in localizer.HEADS}}
            for name, parts in variables.items()}


def create(config: ConfigDict) -> LocalizerRCNN:
    """The network of `config.model`, whose field `localizer` has the settings of both steps.

    Raises:
      ConfigError: see `localizer.create`; or the crops are too small for the family.
    """
    network = localizer.of_kind(LocalizerRCNN, config)
    size, least = network.settings.crop_size, family_of(config.model).least_size
    if size < least:
        raise ConfigError(f'model.localizer.crop_size must be at least {least} pixels for '
                          f'model.family={config.model.family}, got {size}.')
    return network
