"""A family of somebody else's, which `config.model.family` names by its module."""

import flax.linen as nn

from resnet_jax import models
from resnet_jax.models.backbone import Backbone, WithHead
from resnet_jax.models.conv import Conv


class ToyBackbone(Backbone):
    """One convolution of stride 4."""

    stages = ('grid',)

    def setup(self):
        self.conv = Conv(self.width, 3, 4, use_bias=True)

    def run(self, stage, x, *, train):
        return nn.relu(self.conv(x))


class Toy(WithHead, ToyBackbone):
    pass


models.register(__name__, models.Family(
    create=lambda config: Toy(**models.common_fields(config)),
    title=lambda config: f'Toy-{config["depth"]}', normalises=lambda config: False,
    named=lambda name: Toy() if name == 'toy' else None, names=('toy',)))
