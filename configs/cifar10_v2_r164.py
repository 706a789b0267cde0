"""ResNet-164 with pre-activation on CIFAR-10: 5.46 % test error ("Identity Mappings", table 3).

  python -m resnet_jax.main --config=configs/cifar10_v2_r164.py

It has bottlenecks. --config.model.family=cifar is its counterpart without pre-activation (5.93 %).
Not run for want of computing time.
"""

from configs import cifar10_v2_r110


def get_config():
    config = cifar10_v2_r110.get_config()
    config.model.depth = 164
    config.model.bottleneck = True
    config.model.shortcut = 'B'
    return config
