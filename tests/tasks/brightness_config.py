"""The tiny network, trained to tell how bright a digit is."""

from tests import tiny


def get_config():
    config = tiny.config()
    config.task = 'tests.tasks.brightness'
    config.data.source = 'tests.tasks.lamps'
    config.model.num_classes = 1
    config.num_steps = 60
    config.log.every_steps = 10
    config.eval.every_steps = 10
    config.checkpoint.keep_last = 1
    return config
