"""Plain networks (no shortcuts) on CIFAR-10 (figure 6, left). Not run for want of computing time.

  python -m resnet_jax.main --config=configs/cifar10_plain.py --workdir=runs/cifar10_plain56 \
      --config.model.depth=56

Training and test error increase with depth; for plain-110 the paper reports more than 60 %.
"""

from configs import cifar10


def get_config():
    config = cifar10.get_config()
    config.model.plain = True
    return config
