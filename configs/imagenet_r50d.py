"""ResNet-50-D on ImageNet (T. He et al., "Bag of Tricks", 2019), with this paper's recipe.

Not run for want of computing time.

  python -m resnet_jax.main --config=configs/imagenet_r50d.py

Its stem is three 3x3 convolutions, and shortcuts average 2x2 pixels instead of skipping three of
four: timm's resnet50d.
"""

from configs import imagenet


def get_config():
    config = imagenet.get_config()
    config.model.depth = 50
    config.model.deep_stem = True
    config.model.shortcut = 'D'
    config.model.stride_in = 'v1.5'
    return config
