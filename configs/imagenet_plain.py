"""Plain networks on ImageNet: 27.94 % top-1 error with 18 layers, 28.54 % with 34 (table 2).

Not run for want of computing time.

  python -m resnet_jax.main --config=configs/imagenet_plain.py --workdir=runs/imagenet_plain34 \
      --config.model.depth=34

The deeper network has the higher error, in training as well (figure 4, left).

256 images per step fit on 8 TPU v5e chips, with 1,240 of 16,384 MiB per chip and 1 all-reduce,
according to

  python -m resnet_jax.compile --config=configs/imagenet_plain.py --topology=v5e:2x4
"""

from configs import imagenet


def get_config():
    config = imagenet.get_config()
    config.model.depth = 18
    config.model.plain = True
    return config
