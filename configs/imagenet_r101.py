"""ResNet-101 on ImageNet: 21.75 / 6.05 % top-1 / top-5 error by 10-crop testing (table 3). Not run.

  python -m resnet_jax.main --config=configs/imagenet_r101.py --workdir=runs/imagenet_r101

The authors' release has 23.6 / 7.1 % by one crop.
"""

from configs import imagenet


def get_config():
    config = imagenet.get_config()
    config.model.depth = 101
    return config
