"""ResNet-18 on ImageNet: 27.88 % top-1 error by 10-crop testing with option A (table 2). Not run.

  python -m resnet_jax.main --config=configs/imagenet_r18.py --workdir=runs/imagenet_r18
"""

from configs import imagenet


def get_config():
    config = imagenet.get_config()
    config.model.depth = 18
    return config
