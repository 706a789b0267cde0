"""The smallest detector with a mask branch; as a config file, for commands."""

from tests.tasks.detection import tiny_detector


def get_config():
    config = tiny_detector.get_config()
    config.model.detector.masks = True
    config.model.detector.mask_features = 8
    return config
