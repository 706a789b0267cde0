"""ResNet-50 with pre-activation on ImageNet (K. He et al., "Identity Mappings", 2016).

Not run for want of computing time.

  python -m resnet_jax.main --config=configs/imagenet_v2_r50.py

This paper's recipe; depths 101 and 152 work as well. The network is timm's resnetv2_50.
"""

from configs import imagenet


def get_config():
    config = imagenet.get_config()
    config.model.family = 'imagenet_v2'
    config.model.depth = 50
    config.model.stride_in = 'v1.5'
    return config
