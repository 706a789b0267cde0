"""The tiny network, trained to tell how bright a digit is."""

from tests import tiny


def get_config():
    config = tiny.config()
    config.task = 'tests.tasks.brightness'
    config.data.source = 'tests.tasks.lamps'
    config.model.num_classes = 1
    config.model.width = 4
    config.batch_size = 32
    config.num_steps = 150
    config.log.every_steps = 50
    config.eval.every_steps = 50
    config.schedule.name = 'cosine'
    config.checkpoint.every_steps = None
    config.checkpoint.keep_last = 1
    return config
