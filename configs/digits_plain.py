"""Plain-20 on scikit-learn's digits: configs/digits_r20.py without shortcuts.

  python -m resnet_jax.main --config=configs/digits_plain.py
"""

from configs import digits_r20


def get_config():
    config = digits_r20.get_config()
    config.model.plain = True
    return config
