"""A small image folder with a table of boxes, and the smallest localizer for it."""

import numpy as np
from PIL import Image

from configs import tiny_loc

COLOURS = ((230, 40, 40), (40, 230, 40), (40, 40, 230), (220, 220, 40), (200, 40, 200),
           (40, 210, 210))


def write(root, per_class=4, side=32):
    """Six classes of coloured boxes on noise; returns the folder."""
    rng, rows = np.random.default_rng(7), ['file\txmin\tymin\txmax\tymax']
    for split in ('train', 'val'):
        for label, colour in enumerate(COLOURS):
            folder = root / split / f'class{label}'
            folder.mkdir(parents=True)
            for i in range(per_class):
                image = rng.integers(90, 160, (side, side, 3), np.uint8)
                width, height = rng.integers(side // 3, side - 6, 2)
                x, y = rng.integers(0, side - width), rng.integers(0, side - height)
                image[y:y + height, x:x + width] = colour
                Image.fromarray(image).save(folder / f'{i}.png')
                rows.append(f'{split}/class{label}/{i}.png\t{x}\t{y}\t{x + width - 1}\t'
                            f'{y + height - 1}')
    (root / 'boxes.tsv').write_text('\n'.join(rows) + '\n')
    return root


def config(path, **fields):
    """ResNet-8 of 8 filters, on one device."""
    config = tiny_loc.get_config()
    config.init.update(checkpoint='', new_head=True)
    config.model.update(family='cifar', depth=8, width=8, shortcut='A', virtual_batch_size=8,
                        num_classes=6)
    config.model.localizer.update(anchor_sizes=(10, 20), anchor_ratios=(0.7, 1.4))
    config.data.update(path=str(path), image_size=32, max_objects=2, train_crop='pad',
                       crop_padding=2)
    config.update(batch_size=8, num_steps=4)
    config.mesh.data = 1
    config.schedule.update(name='constant', warmup='none', learning_rate=0.01)
    config.eval.update(batch_size=8, every_steps=None)
    config.log.every_steps = 2
    config.compilation_cache = ''
    config.update_from_flattened_dict(fields)
    return config
