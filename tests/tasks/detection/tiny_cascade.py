"""The smallest cascade of five stages; as a config file, for commands."""

from tests.tasks.detection import tiny_mask_detector


def get_config():
    config = tiny_mask_detector.get_config()
    config.model.detector.cascade = 5
    return config
