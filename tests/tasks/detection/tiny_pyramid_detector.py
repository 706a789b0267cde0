"""The smallest detector with masks on a feature pyramid; as a config file, for commands."""

from tests.tasks.detection import tiny_mask_detector


def get_config():
    config = tiny_mask_detector.get_config()
    config.model.detector.update(
        kind='fpn', anchor_sizes=(6, 10, 16, 24), neck_features=8, box_features=16, roi_size=4)
    return config
