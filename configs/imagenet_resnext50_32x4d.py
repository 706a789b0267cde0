"""ResNeXt-50 32x4d on ImageNet (S. Xie et al., 2017) with this paper's recipe.

Not run for want of computing time.

  python -m resnet_jax.main --config=configs/imagenet_resnext50_32x4d.py

ResNeXt's own recipe reaches 22.2 % top-1 error with a single crop (its table 3): 90 epochs of batch
256, a learning rate of 0.1 that is divided by 10 every 30 epochs, and random resized crops.
"""

from configs import imagenet


def get_config():
    config = imagenet.get_config()
    config.model.depth = 50
    config.model.groups = 32
    config.model.bottleneck_width = 128  # 32 groups of 4
    config.model.stride_in = 'v1.5'
    return config
