"""Networks of any depth 6n + 2 on scikit-learn's digits, by one recipe: for comparing depths.

  python -m resnet_jax.main --config=configs/digits.py --workdir=runs/digits56 \
      --config.model.depth=56

configs/digits_r20.py with a denser log for curves. experiments/degradation.py is where the depths
are compared.
"""

from configs import digits_r20


def get_config():
    config = digits_r20.get_config()
    config.eval.every_steps = 50
    config.log.every_steps = 25
    return config
