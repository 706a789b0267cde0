"""Checks for the packages that the experiments need in addition to those for training."""

from importlib.util import find_spec

from resnet_jax.errors import UserError

CHARTS = ('altair', 'vl_convert')
INSTALL = "pip install -r requirements.txt -r experiments/requirements.txt -e '.[experiments]'"
DISTRIBUTIONS = {'umap': 'umap-learn', 'vl_convert': 'vl-convert-python'}


def check(*modules: str) -> None:
    """Looks for packages before time is spent on what could not be drawn afterwards.

    Args:
      modules: as they are imported.

    Raises:
      UserError: some of them are not installed; the sentence has the command that installs all.
    """
    missing = [DISTRIBUTIONS.get(name, name) for name in modules if find_spec(name) is None]
    if missing:
        raise UserError(f'this command needs {" and ".join(missing)}; install what all experiments '
                        f'need with: {INSTALL}')
