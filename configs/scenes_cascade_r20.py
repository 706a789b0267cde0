"""The cascade of 2015 finds digits in made-up scenes: their boxes, their shapes, their classes.

  python -m resnet_jax.main --config=configs/scenes_digits.py
  python -m resnet_jax.main --config=configs/scenes_cascade_r20.py \
      --config.init.checkpoint=runs/scenes_digits

configs/scenes_mask_r20.py with a cascade of five stages (Dai, He and Sun, 2015), on the same scenes
and from the same classifier. With --config.model.detector.cascade=3 each region is classified once.
"""

from configs import scenes_mask_r20


def get_config():
    config = scenes_mask_r20.get_config()
    config.model.detector.cascade = 5
    return config
