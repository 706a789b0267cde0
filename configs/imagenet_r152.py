"""ResNet-152 on ImageNet: 21.43 / 5.71 % top-1 / top-5 error, 10-crop (table 3).

Not run for want of computing time.

  python -m resnet_jax.main --config=configs/imagenet_r152.py

The authors' released model has 23.0 / 6.7 % with a single crop.

4,096 images per step fit on 256 TPU v5e chips, with 2,028 of 16,384 MiB per chip and 4 all-reduces.
With 16 images per chip, batch statistics over 16 images need no communication:

  python -m resnet_jax.compile --config=configs/imagenet_r152.py --topology=v5e:16x16 \
      --config.batch_size=4096 --config.model.virtual_batch_size=16 --config.model.dtype=bfloat16
"""

from configs import imagenet


def get_config():
    config = imagenet.get_config()
    config.model.depth = 152
    return config
