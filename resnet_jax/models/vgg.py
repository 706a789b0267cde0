"""VGG-16 and VGG-19, which the paper compares with (table 1 and section 3.3)."""

import functools
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from resnet_jax.models.backbone import Backbone, WithHead
from resnet_jax.models.conv import Conv, he_normal
from resnet_jax.models.errors import ConfigError
from resnet_jax.models.norm import BatchNorm
from resnet_jax.models.pool import max_pool
from resnet_jax.models.registry import Family, common_fields, register
from resnet_jax.models.remat import remat

# K. Simonyan and A. Zisserman, "Very Deep Convolutional Networks", 2015, table 1, columns D and E.
STAGE_SIZES = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
WINDOW = 7  # height and width that the first dense layer sees: 224 / 2**5
MIN_IMAGE_SIZE = WINDOW * 2 ** 5
DENSE = 'dense'  # the stage of the first two dense layers


class VGGBackbone(Backbone):
    """Stacks of 3x3 convolutions, each closed by max-pooling, and two dense layers.

    The stages are 'stage1', …, 'stage5', each behind its max-pooling, and 'dense'. Larger images
    than 224 are handled fully convolutionally, as in section 3.2 of the VGG paper: the dense layers
    slide over the feature map and their scores are averaged.

    Attributes:
      stage_sizes: convolutions in each of the five stages. The number of filters doubles from one
        stage to the next, up to eight times `width`; the dense layers have 64 times as many.
      batch_norm: normalise after every convolution, which then has no bias.
      dropout_rate: after the dense layers; needs the random stream 'dropout'.
      remat: see `Backbone`; a block is the convolutions of a stage and its pooling.
    """

    stage_sizes: tuple[int, ...]
    batch_norm: bool = False
    dropout_rate: float = 0.5

    @property
    def stages(self) -> tuple[str, ...]:
        return (*(f'stage{i + 1}' for i in range(len(self.stage_sizes))), DENSE)

    def setup(self) -> None:
        for i, num_convs in enumerate(self.stage_sizes):
            for j in range(num_convs):
                setattr(self, f'stage{i + 1}_conv{j + 1}', Conv(
                    self.width * min(2**i, 8), 3, use_bias=not self.batch_norm, dtype=self.dtype,
                    num_devices=self.num_devices))
                if self.batch_norm:
                    setattr(self, f'stage{i + 1}_norm{j + 1}', BatchNorm(**self.norm_fields()))
        self.dense1 = nn.Conv(self.width * 64, (WINDOW, WINDOW), padding='VALID', dtype=self.dtype,
                              kernel_init=he_normal)
        self.dense2 = nn.Dense(self.width * 64, dtype=self.dtype, kernel_init=he_normal)
        self.dropout = nn.Dropout(self.dropout_rate)

    def features(self, images: jax.Array, *, train: bool,
                 upto: str | None = None) -> dict[str, Any]:
        """See `Backbone.features`.

        Raises:
          ConfigError: the images are smaller than 224 pixels, which the dense layers need.
        """
        if upto in (None, DENSE) and min(images.shape[1:3]) < MIN_IMAGE_SIZE:
            raise ConfigError(f'VGG needs images of at least {MIN_IMAGE_SIZE} pixels, got '
                              f'{images.shape[1]} x {images.shape[2]}: set data.image_size.')
        return super().features(images, train=train, upto=upto)

    def run(self, stage: str, x: jax.Array, *, train: bool) -> jax.Array:
        """Float [N, h, w, C] -> [N, h // 2, w // 2, …]; 'dense': [N, h - 6, w - 6, …]."""
        if stage == DENSE:
            return self._dense(x, train)
        convolve = functools.partial(VGGBackbone._convolve, stage=stage, train=train)
        return remat(convolve, self.remat)(self, x)

    def _convolve(self, x, *, stage: str, train: bool):
        for j in range(self.stage_sizes[self.stages.index(stage)]):
            x = getattr(self, f'{stage}_conv{j + 1}')(x)
            if self.batch_norm:
                x = getattr(self, f'{stage}_norm{j + 1}')(x, train=train)
            x = nn.relu(x)
        return max_pool(x, 2, 2)

    def _dense(self, x, train: bool):
        for layer in (self.dense1, self.dense2):
            x = self.dropout(nn.relu(layer(x)), deterministic=not train)
        return x


class VGG(WithHead, VGGBackbone):
    """VGG as a classifier: see `VGGBackbone` and `WithHead` for the fields.

    `VGG((2, 2, 3, 3, 3))` is VGG-16. The scores are linear in the output of the dense layers, so
    averaging either over the positions gives the same.
    """


def _create(config: Mapping[str, Any]) -> VGG:
    if config['depth'] not in STAGE_SIZES:
        raise ConfigError(
            f'model.depth must be 16 or 19 for the vgg family, got {config["depth"]}.')
    return VGG(STAGE_SIZES[config['depth']], batch_norm=config['batch_norm'],
               dropout_rate=config['dropout_rate'], **common_fields(config))


def _named(name: str) -> VGG | None:
    """The network of a name such as 'vgg16' or 'vgg16_bn', if there is one."""
    match = re.fullmatch(r'vgg(\d+)(_bn)?', name)
    if match is None or int(match[1]) not in STAGE_SIZES:
        return None
    return VGG(STAGE_SIZES[int(match[1])], batch_norm=bool(match[2]))


register('vgg', Family(
    create=_create, named=_named, least_size=MIN_IMAGE_SIZE,
    architecture=('width', 'batch_norm', 'bn_epsilon'),
    names=tuple(f'vgg{depth}{end}' for end in ('', '_bn') for depth in STAGE_SIZES),
    title=lambda config: f'VGG-{config["depth"]}',
    traits=lambda config: (f'batch normalisation {"on" if config["batch_norm"] else "off"}',),
    normalises=lambda config: config['batch_norm']))
