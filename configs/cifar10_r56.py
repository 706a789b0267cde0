"""ResNet-56 on CIFAR-10: 6.97 % test error (table 6). Not run for want of computing time.

  python -m resnet_jax.main --config=configs/cifar10_r56.py
"""

from configs import cifar10


def get_config():
    config = cifar10.get_config()
    config.model.depth = 56
    return config
