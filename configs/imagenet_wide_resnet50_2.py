"""Wide ResNet-50-2 on ImageNet (S. Zagoruyko and N. Komodakis, 2016), this paper's recipe.

Not run for want of computing time.

  python -m resnet_jax.main --config=configs/imagenet_wide_resnet50_2.py

The first two convolutions of each bottleneck are twice as wide. The authors report 21.9 % top-1
error with a single crop (their table 8).
"""

from configs import imagenet


def get_config():
    config = imagenet.get_config()
    config.model.depth = 50
    config.model.bottleneck_width = 128
    config.model.stride_in = 'v1.5'
    return config
