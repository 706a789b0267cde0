"""ResNet-18 on ImageNet. Not run.

  python -m resnet_jax.main --config=configs/imagenet_r18.py

The paper reports it with option A, --config.model.shortcut=A: 27.88 % top-1 error by 10-crop
testing (table 2).

Its 256 images per step fit on 8 chips of TPU v5e: 1,459 of 16,384 MiB per chip and 1 all-reduce, by

  python -m resnet_jax.compile --config=configs/imagenet_r18.py --topology=v5e:2x4
"""

from configs import imagenet


def get_config():
    config = imagenet.get_config()
    config.model.depth = 18
    return config
