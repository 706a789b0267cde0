"""ResNet-34 on ImageNet: 24.52 / 7.46 % top-1 / top-5 error, 10-crop (table 3, B).

Not run for want of computing time.

  python -m resnet_jax.main --config=configs/imagenet_r34.py

256 images per step fit on 8 TPU v5e chips, with 1,948 of 16,384 MiB per chip and 1 all-reduce,
according to

  python -m resnet_jax.compile --config=configs/imagenet_r34.py --topology=v5e:2x4
"""

from configs import imagenet


def get_config():
    config = imagenet.get_config()
    config.model.depth = 34
    return config
