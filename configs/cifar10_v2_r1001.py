"""ResNet-1001 with pre-activation on CIFAR-10: 4.92 % test error ("Identity Mappings", table 3).

  python -m resnet_jax.main --config=configs/cifar10_v2_r1001.py

Blocks run in a loop, since straight-line code of 333 blocks takes too long to compile, and are
computed again for the backward pass. Not run for want of computing time.
"""

from configs import cifar10_v2_r164


def get_config():
    config = cifar10_v2_r164.get_config()
    config.model.depth = 1001
    config.model.unroll = False
    config.model.remat = 'block'
    return config
