"""ResNet-20 on scikit-learn's bundled handwritten digits: a first run for any machine.

  python -m resnet_jax.main --config=configs/digits_r20.py

The network and recipe of section 4.2, scaled down to 1500 training images of 8x8 pixels. This is
not one of the paper's experiments; it checks in under a minute on two CPU cores that everything
works.
"""

from resnet_jax import config as config_lib


def get_config():
    config = config_lib.default()
    config.num_steps = 450
    config.batch_size = 128

    config.model.family = 'cifar'
    config.model.depth = 20
    config.model.width = 16
    config.model.shortcut = 'A'
    config.model.num_classes = 10
    config.model.virtual_batch_size = 64

    config.data.source = 'digits'
    config.data.image_size = 8
    config.data.channels = 1
    config.data.crop_padding = 1

    config.schedule.name = 'cosine'
    config.schedule.learning_rate = 0.05  # 56 layers diverge with 0.1
    config.schedule.warmup = 'linear'
    config.schedule.warmup_steps = 100

    config.eval.every_steps = 150
    config.eval.batch_size = 304  # 297 test images, rounded up to a multiple of 16 devices
    config.checkpoint.every_steps = 150
    config.log.every_steps = 50
    return config
