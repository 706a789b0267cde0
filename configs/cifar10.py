"""CIFAR-10 as in section 4.2: batch 128 on two GPUs, 64,000 steps, option A. ResNet-20 by default.

  python -m resnet_jax.main --config=configs/cifar10.py \
      --config.model.depth=56

Works for any depth 6n + 2. Prepare the data once with
`tfds build cifar10 --file_format=array_record`, or read an image folder with
--config.data.source=folder --config.data.path=DIR. The paper chose its recipe on 5,000 held-out
images: --config.data.holdout=5000 --config.data.eval_split=holdout. Reproduces table 6 and
figure 6; each cifar10_r*.py is one row of the table. Not run for want of computing time.
"""

from resnet_jax import config as config_lib


def get_config():
    config = config_lib.default()
    config.num_steps = 64_000
    config.batch_size = 128

    config.model.family = 'cifar'
    config.model.depth = 20
    config.model.width = 16
    config.model.shortcut = 'A'
    config.model.num_classes = 10
    config.model.virtual_batch_size = 64

    config.data.source = 'tfds'
    config.data.tfds_name = 'cifar10'
    config.data.image_size = 32
    config.data.crop_padding = 4
    config.data.flip = True
    config.data.normalization = 'per_pixel_mean'

    config.schedule.boundaries = (32_000, 48_000)

    config.eval.every_steps = 2_000
    config.eval.batch_size = 512
    config.checkpoint.every_steps = 2_000
    return config
