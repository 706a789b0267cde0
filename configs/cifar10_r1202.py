"""ResNet-1202 on CIFAR-10: 7.93 % test error, training error below 0.1 % (table 6).

Not run for want of computing time.

  python -m resnet_jax.main --config=configs/cifar10_r1202.py

Trained like ResNet-110. The blocks run in a loop, so it compiles about as fast as a shallow
network.
"""

from configs import cifar10_r110


def get_config():
    config = cifar10_r110.get_config()
    config.model.depth = 1202
    config.model.unroll = False
    return config
