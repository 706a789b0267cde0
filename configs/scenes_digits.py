"""ResNet-20 on the digits of the made-up scenes: the start of configs/scenes_r20.py.

  python -m resnet_jax.main --config=configs/scenes_digits.py

The paper's detectors start from a classifier that was trained on ImageNet. Here a classifier learns
to tell apart handwritten digits on textured backgrounds, as they appear in the scenes in which the
detector is to find them. Nothing is downloaded.
"""

from resnet_jax import config as config_lib


def get_config():
    config = config_lib.default()
    config.num_steps = 320
    config.batch_size = 64

    config.model.family = 'cifar'
    config.model.depth = 20
    config.model.width = 16
    config.model.shortcut = 'A'
    config.model.num_classes = 10

    config.data.source = 'scene_digits'
    config.data.image_size = 24
    config.data.channels = 1

    config.schedule.name = 'cosine'
    config.schedule.learning_rate = 0.1
    config.schedule.warmup = 'linear'
    config.schedule.warmup_steps = 50

    config.eval.batch_size = 256
    config.log.every_steps = 80
    return config
