"""ResNet-101 on ImageNet: 21.75 / 6.05 % top-1 / top-5 error, 10-crop (table 3).

Not run for want of computing time.

  python -m resnet_jax.main --config=configs/imagenet_r101.py

The authors' released model has 23.6 / 7.1 % with a single crop.

256 images per step fit on 8 TPU v5e chips, with 4,496 of 16,384 MiB per chip and 3 all-reduces,
according to

  python -m resnet_jax.compile --config=configs/imagenet_r101.py --topology=v5e:2x4
"""

from configs import imagenet


def get_config():
    config = imagenet.get_config()
    config.model.depth = 101
    return config
