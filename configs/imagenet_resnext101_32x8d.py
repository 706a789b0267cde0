"""ResNeXt-101 32x8d on ImageNet, with this paper's recipe. Not run for want of computing time.

  python -m resnet_jax.main --config=configs/imagenet_resnext101_32x8d.py

--config.model.groups=64 makes it ResNeXt-101 64x4d. With ResNeXt's own recipe, the latter reaches
20.4 % top-1 error with a single crop (github.com/facebookresearch/ResNeXt).
"""

from configs import imagenet_resnext50_32x4d


def get_config():
    config = imagenet_resnext50_32x4d.get_config()
    config.model.depth = 101
    config.model.bottleneck_width = 256  # 32 groups of 8
    return config
