"""Finds image files, decodes them ahead of the devices, and has them predicted in batches."""

import io
import itertools
import pathlib
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from resnet_jax.data import Item
from resnet_jax.data.decode import decode, image_format
from resnet_jax.data.folder import EXTENSIONS, OTHER_EXTENSIONS, hidden, left_out
from resnet_jax.errors import UserError
from resnet_jax.tasks.task import Answer, Predictor
from resnet_jax.weights import write_bytes_whole

BATCH_SIZE = 16  # images that are computed, and printed, at once
STDIN = '-'
File = tuple[str, bytes | None]  # its name, and its bytes where they came on standard input


def find_files(arguments: Sequence[str]) -> tuple[list[File], list[Exception], list[str]]:
    """Finds the files that the arguments name, in order.

    Folders stand for the images in them and in their folders, by name, except hidden ones; '-' for
    standard input, which is an image or a list of files, one per line.

    Returns:
      The files; what is wrong with the other arguments; and a warning for each folder in which
      images of other formats were left out.
    """
    files: list[File] = []
    failures: list[Exception] = []
    warnings: list[str] = []
    for argument in arguments:
        path = pathlib.Path(argument)
        if argument == STDIN:
            content = sys.stdin.buffer.read()
            try:
                image_format(content)
                files.append(('standard input', content))
            except ValueError:
                names = content.decode(errors='surrogateescape').splitlines()
                files += [(name, None) for name in names if name]
        elif path.is_dir():
            inside = sorted(
                child for child in path.rglob('*')
                if child.suffix.lower() in EXTENSIONS + OTHER_EXTENSIONS
                and not any(map(hidden, child.relative_to(path).parts)) and child.is_file())
            found = [child for child in inside if child.suffix.lower() in EXTENSIONS]
            files += [(str(child), None) for child in found]
            if sentence := left_out(argument, map(str, inside)):
                warnings.append(sentence)
            if not found:
                failures.append(UserError(f'{argument} contains no JPEG, PNG or WebP images.'))
        else:
            files.append((argument, None))
    return files, failures, warnings


def predictions(predictor: Predictor,
                files: Sequence[File]) -> Iterator[tuple[File, Answer | Exception]]:
    """Yields (file, the prediction or the problem with the file), in order.

    The next images are decoded while these are computed. All batches of one shape have one size,
    so that one program serves them.
    """
    size = min(BATCH_SIZE, 1 << (len(files) - 1).bit_length())
    with ThreadPoolExecutor() as pool:
        def start(position):
            return [pool.submit(_load, file, predictor) for file in files[position:position + size]]

        loading = start(0)
        for position in range(0, len(files), size):
            loaded = [future.result() for future in loading]
            loading = start(position + size)
            answers = _answers(predictor, loaded, size)
            for row, file in enumerate(files[position:position + size]):
                yield file, answers[row]


def _answers(predictor: Predictor, loaded: Sequence[Any],
             size: int) -> dict[int, Answer | Exception]:
    """What is predicted of each image, by its place; errors stay as they are."""
    answers: dict[int, Answer | Exception] = {
        row: image for row, image in enumerate(loaded) if isinstance(image, Exception)}
    shapes = {row: str(jax.tree.map(np.shape, image)) for row, image in enumerate(loaded)
              if row not in answers}
    for shape in sorted(set(shapes.values())):
        rows = [row for row in shapes if shapes[row] == shape]
        images = [loaded[row] for row in rows]
        batch = jax.tree.map(lambda *leaves: np.stack(leaves),
                             *images, *images[-1:] * (size - len(images)))
        answers |= dict(zip(rows, predictor.answer(batch), strict=False))
    return answers


def picture_folder(predictor: Predictor, folder: str | None) -> pathlib.Path | None:
    """Creates the folder for pictures, if one is asked for.

    Raises:
      UserError: these predictions cannot be drawn, or there can be no such folder.
    """
    if folder is None:
        return None
    if predictor.draw is None:
        raise UserError('--draw is for detectors and localizers: the answers of this network '
                        'cannot be drawn.')
    path = pathlib.Path(folder).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'--draw: cannot create the folder {folder}: '
                        f'{error.strerror}.') from error
    return path


def write_picture(predictor: Predictor, file: File, answer: Answer, folder: pathlib.Path,
                  ) -> pathlib.Path:
    """Draws an answer into its image, and writes the picture as PNG; returns its path.

    A picture that is there already is not overwritten: the new one gets a number.

    Args:
      predictor: with `draw`.
      file: one of `find_files`.
      answer: its prediction.
      folder: where to write.

    Raises:
      UserError: the picture cannot be written.
    """
    item = _item(file)
    assert predictor.draw is not None and isinstance(item.image, bytes)
    picture = predictor.draw(decode(item.image, item.name), answer)
    stem = pathlib.Path(file[0]).stem if file[1] is None else 'stdin'
    content = io.BytesIO()
    picture.save(content, 'PNG')
    names = itertools.chain([f'{stem}.png'], (f'{stem}_{n}.png' for n in itertools.count(2)))
    path = next(path for name in names if not (path := folder / name).exists())
    write_bytes_whole(path, content.getvalue())
    return path


def _item(file: File) -> Item:
    name, content = file
    return Item(pathlib.Path(name).read_bytes() if content is None else content, {}, name)


def _load(file: File, predictor: Predictor) -> Any:
    """The image as the network is given it, or the error that says what is wrong."""
    name = file[0]
    try:
        return predictor.load(_item(file))
    except OSError as error:
        return UserError(f'{name} cannot be read: {error.strerror}.')
    except UserError as error:
        return error
