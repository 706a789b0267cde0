"""ResNet-110 with stochastic depth on CIFAR-10: 5.25 % test error, without it 6.41 %.

Not run for want of computing time.

  python -m resnet_jax.main --config=configs/cifar10_r110_stochastic.py

G. Huang et al., "Deep Networks with Stochastic Depth", 2016, section 4 and table 1: 500 epochs of
45,000 images; the last block survives with probability 0.5. What is different here: a block is left
out image by image instead of for the whole batch.
"""

from configs import cifar10

EPOCH = 45_000 / 128  # steps


def get_config():
    config = cifar10.get_config()
    config.num_steps = round(500 * EPOCH)
    config.model.depth = 110
    config.model.stochastic_depth = 0.5

    config.data.holdout = 5_000
    config.data.normalization = 'per_channel'

    config.optimizer.nesterov = True
    config.optimizer.momentum_form = 'pytorch'

    config.schedule.boundaries = (round(250 * EPOCH), round(375 * EPOCH))
    return config
