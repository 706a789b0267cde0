"""The plain twin of configs/digits_r20.py: the same stack without shortcuts.

  python -m resnet_jax.main --config=configs/digits_plain.py
"""

from configs import digits_r20


def get_config():
    config = digits_r20.get_config()
    config.model.plain = True
    return config
