"""Trains ResNet-18 on your own images, from random weights.

  python -m resnet_jax.main --config=configs/folder.py \\
      --config.data.path=DIR

DIR contains train/CLASS/IMAGE and val/CLASS/IMAGE (JPEG, PNG or WebP); the number of classes is
inferred. Without a folder val, hold out some training images, for example with
--config.data.eval_split=holdout --config.data.holdout=500. Crops have 224 x 224 pixels; for small
images, a smaller size trains faster: --config.data.image_size=64 --config.data.eval_resize=72.
If you have few images, start from trained weights with configs/finetune.py. Not run.
"""

from resnet_jax import config as config_lib


def get_config():
    config = config_lib.default()
    config.num_steps = 10_000
    config.batch_size = 64

    config.model.family = 'imagenet'
    config.model.depth = 18
    config.model.virtual_batch_size = 32

    config.data.source = 'folder'
    config.data.image_size = 224
    config.data.eval_resize = 256
    config.data.train_crop = 'random_resized'
    config.data.flip = True

    config.schedule.name = 'cosine'
    config.schedule.learning_rate = 0.05
    config.schedule.warmup = 'linear'
    config.schedule.warmup_steps = 500

    config.eval.every_steps = 500
    config.eval.batch_size = 64
    config.checkpoint.every_steps = 500
    return config
