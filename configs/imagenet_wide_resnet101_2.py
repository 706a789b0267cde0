"""Wide ResNet-101-2 on ImageNet, with this paper's recipe. Not run for want of computing time.

  python -m resnet_jax.main --config=configs/imagenet_wide_resnet101_2.py
"""

from configs import imagenet_wide_resnet50_2


def get_config():
    config = imagenet_wide_resnet50_2.get_config()
    config.model.depth = 101
    return config
