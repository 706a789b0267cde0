"""Lays pictures side by side in one file, such as those that `predict --draw` writes.

  python -m experiments.gallery --output=nuclei.jpg --columns=3 pictures/*.png

All pictures get the same width and keep their shapes; those of a row are cut off at the bottom to
the lowest of them.
"""

import io
import pathlib
from collections.abc import Sequence

from absl import flags
from PIL import Image, UnidentifiedImageError

from experiments import pictures
from resnet_jax import cli
from resnet_jax.errors import UserError

OUTPUT = cli.flag(flags.DEFINE_string, 'output', None, 'Picture to write, .jpg or .png.')
COLUMNS = cli.flag(flags.DEFINE_integer, 'columns', 3, 'Pictures in a row.', lower_bound=1)
WIDTH = cli.flag(flags.DEFINE_integer, 'width', 320, 'Pixels of each picture.', lower_bound=1)

FORMATS = {'.jpg': 'JPEG', '.png': 'PNG'}
GAP = 6  # pixels between pictures
QUALITY = 88  # of JPEG


def main(arguments: Sequence[str]) -> None:
    path, files = pictures.output(OUTPUT.value, FORMATS), arguments[1:]
    if not files:
        raise UserError('no pictures; name their files behind the flags.')
    write(path, [opened(file) for file in files])


def write(path: pathlib.Path, images: Sequence[Image.Image]) -> None:
    """Writes pictures as one, in the rows and of the width that the flags say."""
    from resnet_jax.output import say
    from resnet_jax.weights import write_bytes_whole

    picture = tiled(images, COLUMNS.value, WIDTH.value)
    content = io.BytesIO()
    picture.save(content, FORMATS[path.suffix], quality=QUALITY)
    write_bytes_whole(path, content.getvalue())
    say(f'{path}: {len(images)} pictures, {picture.width} x {picture.height} pixels')


def opened(file: str) -> Image.Image:
    """A picture in colours.

    Raises:
      UserError: it cannot be read.
    """
    try:
        return Image.open(file).convert('RGB')
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f'{file} cannot be read: {error}') from error


def tiled(pictures: Sequence[Image.Image], columns: int, width: int) -> Image.Image:
    """One picture of rows of pictures, with white gaps; see the module."""
    scaled = [picture.resize((width, max(1, round(picture.height * width / picture.width))),
                             Image.Resampling.LANCZOS) for picture in pictures]
    rows = [scaled[i:i + columns] for i in range(0, len(scaled), columns)]
    heights = [min(picture.height for picture in row) for row in rows]
    columns = len(rows[0])
    result = Image.new('RGB', (columns * (width + GAP) - GAP, sum(heights) + GAP * (len(rows) - 1)),
                       'white')
    top = 0
    for row, height in zip(rows, heights, strict=True):
        for i, picture in enumerate(row):
            result.paste(picture.crop((0, 0, width, height)), (i * (width + GAP), top))
        top += height + GAP
    return result


if __name__ == '__main__':
    cli.run(main, needs=['--output=FILE.jpg'], takes_files=True)
