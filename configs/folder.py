"""Trains ResNet-18 on your own images, from random weights.

  python -m resnet_jax.main --config=configs/folder.py \\
      --config.data.path=DIR

DIR contains train/CLASS/IMAGE and val/CLASS/IMAGE (JPEG, PNG or WebP). Without val, a fifth of the
training images is held out; CLASS/IMAGE alone works as well. The classes are counted. The size of
the crops, the batches, the number of steps and the learning rate are chosen from the images and the
machine, and printed before training; any of them can be set instead, for example with
--config.data.image_size=64 or --config.num_epochs=30. If you have few images, start from trained
weights with configs/finetune.py. Not run for want of computing time.
"""

from resnet_jax import config as config_lib


def get_config():
    config = config_lib.default()
    config.num_epochs = 100

    config.model.family = 'imagenet'
    config.model.depth = 18
    config.model.virtual_batch_size = 32

    config.data.source = 'folder'
    config.data.eval_split = 'auto'
    config.data.eval_crop_share = 0.875
    config.data.train_crop = 'random_resized'
    config.data.flip = True

    config.schedule.name = 'cosine'
    config.schedule.learning_rate = None
    config.schedule.warmup = 'linear'
    config.schedule.warmup_steps = None

    config.log.every_steps = 20
    return config
