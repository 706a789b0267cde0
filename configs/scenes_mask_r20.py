"""Mask R-CNN on ResNet-20 finds handwritten digits in made-up scenes, and their shapes.

  python -m resnet_jax.main --config=configs/scenes_digits.py
  python -m resnet_jax.main --config=configs/scenes_mask_r20.py \
      --config.init.checkpoint=runs/scenes_digits

configs/scenes_r20.py with a mask branch, on the same scenes and from the same classifier. A mask
has 8 x 8 cells over its box.
"""

from configs import scenes_r20


def get_config():
    config = scenes_r20.get_config()
    config.model.detector.masks = True
    config.model.detector.mask_features = 128
    return config
