"""A cascade of boxes, masks and classes on ResNet-20 finds handwritten digits in made-up scenes.

  python -m resnet_jax.main --config=configs/scenes_digits.py
  python -m resnet_jax.main --config=configs/scenes_cascade_r20.py \
      --config.init.checkpoint=runs/scenes_digits

The network that won COCO's segmentation of 2015, in miniature: the class of a digit is read from
the features under its mask, twice. The scenes and the classifier are those of
configs/scenes_mask_r20.py; masks are coarser, 8 x 8 cells. With --config.model.detector.cascade=0,
masks and classes do not depend on each other.
"""

from configs import scenes_r20


def get_config():
    config = scenes_r20.get_config()
    detector = config.model.detector
    detector.masks = True
    detector.mask_features = 128
    detector.mask_rounding = False
    detector.cascade = 5
    return config
