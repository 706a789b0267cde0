"""ResNet-18 on ImageNet. Not run.

  python -m resnet_jax.main --config=configs/imagenet_r18.py --workdir=runs/imagenet_r18

The paper reports it with option A, --config.model.shortcut=A: 27.88 % top-1 error by 10-crop
testing (table 2).
"""

from configs import imagenet


def get_config():
    config = imagenet.get_config()
    config.model.depth = 18
    return config
