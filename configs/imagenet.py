"""ImageNet as in section 3.4: batch 256, BN over 32 images, plateau schedule, 600,000 steps.

  python -m resnet_jax.main --config=configs/imagenet.py \
      --config.model.depth=101

ResNet-50 by default. Prepare the data once with
`tfds build imagenet2012 --file_format=array_record`, or read an image folder or shards with
--config.data.source=folder or shards and --config.data.path=DIR. Reproduces tables 2, 3 and 4; each
imagenet_r*.py is one of their rows. Not run for want of computing time.

For ResNet-50, 2,048 images per step fit on 16 TPU v5e chips, with 4,531 of 16,384 MiB per chip and
2 all-reduces, according to

  python -m resnet_jax.compile --config=configs/imagenet.py --topology=v5e:4x4 \
      --config.batch_size=2048 --config.model.dtype=bfloat16
"""

from resnet_jax import config as config_lib


def get_config():
    config = config_lib.default()
    config.num_steps = 600_000
    config.batch_size = 256

    config.model.family = 'imagenet'
    config.model.depth = 50
    config.model.num_classes = 1000
    config.model.virtual_batch_size = 32

    config.data.source = 'tfds'
    config.data.tfds_name = 'imagenet2012'
    config.data.image_size = 224
    config.data.eval_resize = 256
    config.data.train_crop = 'scale_jitter'
    config.data.flip = True
    config.data.color_noise = 0.1
    config.data.normalization = 'per_pixel_mean'

    config.schedule.name = 'plateau'
    config.schedule.plateau_window = 5_000  # about one epoch
    config.schedule.plateau_patience = 5

    config.eval.every_steps = 10_000
    config.eval.batch_size = 256
    config.eval.recalibrate_batches = 1_000  # as in the authors' released models
    return config
