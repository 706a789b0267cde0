"""The smallest network with both steps of localization, for the coloured boxes of `few_boxes`."""

from configs import tiny_loc_rcnn
from tests.tasks.localization import few_boxes


def config(path, **fields):
    """Two networks of ResNet-8 with 8 filters, on one device."""
    config = few_boxes.config(path)
    given = tiny_loc_rcnn.get_config()
    config.task, config.init.new_head = given.task, given.init.new_head
    config.model.localizer.update(proposals=6, crop_size=16)
    config.update_from_flattened_dict(fields)
    return config


def get_config():
    """The same for commands, which pass `data.path` and `init.checkpoint`."""
    return config('')
