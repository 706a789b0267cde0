"""The network of se_resnet.py on digits."""

from tests import tiny
from tests.models import se_resnet


def get_config():
    config = tiny.config()
    config.model.family = se_resnet.NAME
    config.model.depth = 20
    config.model.width = 4
    config.model.unroll = False
    return config
