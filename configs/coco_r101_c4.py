"""x"""

from configs import coco_r50_c4


def get_config():
    config = coco_r50_c4.get_config()
    config.num_steps = 270_000
    config.model.depth = 101
    config.schedule.boundaries = (210_000, 250_000)
    return config
