"""The smallest run that is still a real one."""

from ml_collections import ConfigDict

from configs import digits_r20


def config() -> ConfigDict:
    """ResNet-8 of 8 filters on digits, on one device; takes a second or two to compile."""
    config = digits_r20.get_config()
    config.model.depth = 8
    config.model.width = 8
    config.batch_size = 64
    config.model.virtual_batch_size = 8
    config.num_steps = 20
    config.mesh.data = 1
    config.schedule.name = 'constant'
    config.schedule.warmup = 'none'
    config.schedule.learning_rate = 0.05
    config.eval.every_steps = 10
    config.checkpoint.every_steps = 5
    config.log.every_steps = 5
    config.compilation_cache = ''
    return config
