"""Networks of any depth 6n + 2 on scikit-learn's digits, all with the same recipe.

  python -m resnet_jax.main --config=configs/digits.py --workdir=runs/digits56 \
      --config.model.depth=56

Like configs/digits_r20.py, but evaluates and logs more often, for learning curves;
experiments/degradation.py compares depths with it.
"""

from configs import digits_r20


def get_config():
    config = digits_r20.get_config()
    config.eval.every_steps = 50
    config.log.every_steps = 25
    return config
