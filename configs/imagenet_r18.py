"""ResNet-18 on ImageNet. Not run for want of computing time.

  python -m resnet_jax.main --config=configs/imagenet_r18.py

The paper reports 27.88 % top-1 error with 10-crop testing for option A (table 2):
--config.model.shortcut=A.

256 images per step fit on 8 TPU v5e chips, with 1,459 of 16,384 MiB per chip and 1 all-reduce,
according to

  python -m resnet_jax.compile --config=configs/imagenet_r18.py --topology=v5e:2x4
"""

from configs import imagenet


def get_config():
    config = imagenet.get_config()
    config.model.depth = 18
    return config
