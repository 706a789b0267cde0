"""ResNet-152 on ImageNet: 21.43 / 5.71 % top-1 / top-5 error by 10-crop testing (table 3). Not run.

  python -m resnet_jax.main --config=configs/imagenet_r152.py --workdir=runs/imagenet_r152

The authors' release has 23.0 / 6.7 % by one crop.
"""

from configs import imagenet


def get_config():
    config = imagenet.get_config()
    config.model.depth = 152
    return config
