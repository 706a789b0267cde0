"""VGG-16 with batch normalisation on ImageNet, the paper's point of comparison (table 3).

Not run for want of computing time.

  python -m resnet_jax.main --config=configs/imagenet_vgg16.py

The paper reports 28.07 / 9.33 % top-1 / top-5 error with 10-crop testing for VGG-16 trained without
batch normalisation. For VGG-19, pass --config.model.depth=19.

256 images per step fit on 8 TPU v5e chips, with 6,482 of 16,384 MiB per chip and 3 all-reduces,
according to

  python -m resnet_jax.compile --config=configs/imagenet_vgg16.py --topology=v5e:2x4
"""

from configs import imagenet


def get_config():
    config = imagenet.get_config()
    config.model.family = 'vgg'
    config.model.depth = 16
    config.optimizer.weight_decay = 5e-4  # section 3.1 of the VGG paper
    config.schedule.learning_rate = 0.01
    return config
