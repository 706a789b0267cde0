"""An architecture of somebody else's in one file: SE-ResNet for CIFAR (J. Hu et al., 2018).

`config.model.family` names it by its module. The second half is what `convert` and `export` need.
"""

import flax.linen as nn

from resnet_jax import models
from resnet_jax.models.backbone import average
from resnet_jax.models.blocks import STACKED, BasicBlock
from resnet_jax.models.resnet import ResNet
from resnet_jax.weights import foreign

NAME = 'tests.models.se_resnet'


class SEBlock(BasicBlock):
    """Two 3x3 convolutions, whose channels are then scaled by what the whole image shows."""

    @nn.compact
    def __call__(self, x, *, train: bool):
        y = self.conv(self.features, 3, self.stride, name='conv1')(x)
        y = nn.relu(self.norm(name='norm1')(y, train=train))
        y = self.conv(self.features, 3, name='conv2')(y)
        y = self.norm(name='norm2', scale_init=self.last_scale_init)(y, train=train)
        gate = nn.relu(nn.Dense(self.features // 2, name='squeeze')(average(y)))
        gate = nn.sigmoid(nn.Dense(self.features, name='excite')(gate))[:, None, None]
        shortcut = self.shortcut(features=self.features, stride=self.stride, name='shortcut')
        return self.last_relu(shortcut(x, train=train) + y * gate.astype(y.dtype))


models.register(NAME, models.Family(
    create=lambda config: ResNet(
        SEBlock, 3 * ((config['depth'] - 2) // 6,), stem_kind='cifar', shortcut='A',
        unroll=config['unroll'], **models.common_fields(config)),
    title=lambda config: f'SE-ResNet-{config["depth"]}', least_size=4))


def _fields(tensors, original):
    blocks = sum(name.endswith('squeeze.weight') for name in tensors)
    classes, _ = tensors['head.weight'].shape
    return {'family': NAME, 'depth': 2 * blocks + 2, 'num_classes': classes,
            'width': len(tensors['stem.conv.weight'])}


def _tensors_of(module, blocks, config):
    if STACKED not in module:
        return ('.'.join(module).replace('block1', '0'),)
    return tuple('.'.join(module).replace(STACKED, str(i + 1)) for i in range(blocks))


foreign.register(NAME, foreign.Foreign(
    naming=lambda names: ((lambda name: name), 'SE-ResNet') if (
        'stage1.0.squeeze.weight' in names) else None,
    recognises=lambda tensors: 'stage1.0.squeeze.weight' in tensors, fields=_fields,
    tensors_of=_tensors_of, image_size=(32, None), timm='', first=('stem.conv.weight',),
    convention=False))
