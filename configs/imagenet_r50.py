"""ResNet-50 on ImageNet: 22.85 / 6.71 % top-1 / top-5 error, 10-crop (table 3).

Not run for want of computing time.

  python -m resnet_jax.main --config=configs/imagenet_r50.py

The authors' released model has 24.7 / 7.8 % with a single crop.

2,048 images per step fit on 16 TPU v5e chips, with 4,531 of 16,384 MiB per chip and 2 all-reduces,
according to

  python -m resnet_jax.compile --config=configs/imagenet_r50.py --topology=v5e:4x4 \
      --config.batch_size=2048 --config.model.dtype=bfloat16
"""

from configs import imagenet


def get_config():
    config = imagenet.get_config()
    config.model.depth = 50
    return config
