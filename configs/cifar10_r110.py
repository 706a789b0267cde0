"""ResNet-110 on CIFAR-10: 6.43 % test error, 6.61 +- 0.16 over five runs (table 6).

Not run for want of computing time.

  python -m resnet_jax.main --config=configs/cifar10_r110.py

Warms up at a learning rate of 0.01 until the training error is below 80 % (section 4.2).
"""

from configs import cifar10


def get_config():
    config = cifar10.get_config()
    config.model.depth = 110
    config.schedule.warmup = 'error'
    return config
