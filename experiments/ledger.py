"""The ledger of a sweep: a JSON Lines file with one row per run, written atomically."""

import importlib.metadata
import json
import pathlib
import platform
import statistics
import subprocess
from collections.abc import Iterable, Mapping
from typing import Any

import resnet_jax
from resnet_jax import storage
from resnet_jax.config import leaves
from resnet_jax.errors import UserError
from resnet_jax.output import write_whole
from resnet_jax.tasks import Headline, get
from resnet_jax.training.writers import read_rows

FINISHED, FAILED, STOPPED = 'finished', 'failed', 'stopped'
PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'numpy')

Row = dict[str, Any]


class Ledger:
    """The rows of a sweep by the name of their run.

    A row has
      run: name of the run's folder, beside the ledger.
      overrides: the swept fields and their values.
      status: 'finished', 'failed', or 'stopped' with its sweep by a signal.
      error: of a failed run, what it said last.
      steps: that are done.
      final_error, best_error: top-1 error of the last evaluation and the lowest of all, percent;
        of another task final_NAME and best_NAME, after the number that decides there, as in
        final_ap of a detector.
      final_train_loss, final_train_error: means since the last but one line of the run's log.
      images_per_second: median over the lines of the log.
      seconds: from the start to the end of its process, all starts together; None where the run
        was started by hand.
      machine, versions, commit: of the last start; None likewise.
      config: every field.
    """

    def __init__(self, path: storage.Path):
        """Reads the file, if it is there.

        Raises:
          UserError: the file is not a ledger.
        """
        self.path = path
        self.rows: dict[str, Row] = {}
        if path.exists():
            self.rows = {row['run']: row for row in read(path)}

    def put(self, row: Row) -> None:
        """Adds a row, or replaces that of the same run."""
        self.rows[row['run']] = row
        write_whole(self.path, ''.join(json.dumps(row) + '\n' for row in self.rows.values()))

    def seconds(self, run: str) -> float:
        """What earlier starts of a run took."""
        return self.rows.get(run, {}).get('seconds') or 0.0


def read(path: storage.Path) -> list[Row]:
    """The rows of a ledger.

    Args:
      path: of the file, or of its folder.

    Raises:
      UserError: it is missing, or is not a ledger.
    """
    path = path / 'ledger.jsonl' if path.is_dir() else path
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return [{**row, 'run': row['run'], 'config': row['config']} for row in rows]
    except OSError as error:
        raise UserError(f'there is no ledger {path}: {error.strerror}.') from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f'{path} is not a ledger of a sweep ({type(error).__name__}: {error}); '
                        'move it away, and finished runs will be entered again.') from error


def row(cell: Any, folder: storage.Path, **others: Any) -> Row:
    """Reads the results of a run from its folder.

    Args:
      cell: see `experiments.grid.Cell`.
      folder: its workdir.
      **others: values of further columns.
    """
    rows = read_rows(folder / 'metrics.jsonl')
    headline = get(cell.config.task).headline
    name = column(headline)
    found = [row[headline.tag] for row in rows if row.get(headline.tag) is not None]
    best = min if headline.lower_is_better else max
    log = [row for row in rows if 'train/loss' in row]

    def last(rows, tag):
        return rows[-1].get(tag) if rows else None

    return {
        'run': cell.name,
        'overrides': dict(cell.overrides),
        'status': FINISHED if is_finished(cell, folder) else FAILED,
        'error': None,
        'steps': max((row['step'] for row in rows), default=0),
        f'final_{name}': found[-1] if found else None,
        f'best_{name}': best(found, default=None),
        'final_train_loss': last(log, 'train/loss'),
        'final_train_error': last(log, 'train/top1_error'),
        'images_per_second': statistics.median(
            row['train/images_per_second'] for row in log) if log else None,
        'seconds': None, 'machine': None, 'versions': None, 'commit': None,
        **others,
        'config': leaves(cell.config),
    }


def column(headline: Headline) -> str:
    """The name behind 'final_' and 'best_': 'error' of classifiers, 'ap' of detectors."""
    return headline.tag.removeprefix('eval/').removeprefix('top1_')


def is_finished(cell: Any, folder: storage.Path) -> bool:
    """Whether all steps of a run are done, evaluated and saved."""
    from resnet_jax.weights.checkpoint import FOLDER, is_complete  # which imports Orbax

    steps, tag = cell.config.num_steps, get(cell.config.task).headline.tag
    return is_complete(folder / FOLDER / str(steps)) and any(
        row['step'] == steps and tag in row
        for row in read_rows(folder / 'metrics.jsonl'))


def versions() -> dict[str, str]:
    """Of Python and of the packages that a result depends on."""
    return {'python': platform.python_version(), 'resnet_jax': resnet_jax.__version__,
            **{name: importlib.metadata.version(name) for name in PACKAGES}}


def commit() -> str | None:
    """The commit of the code, '+' behind it where files were changed; None outside git."""
    def git(*arguments):
        return subprocess.run(['git', *arguments], cwd=pathlib.Path(__file__).parent, text=True,
                              capture_output=True, check=True).stdout.strip()

    try:
        changed = git('status', '--porcelain', '--untracked-files=no')
        return git('rev-parse', 'HEAD') + ('+' if changed else '')
    except (OSError, subprocess.CalledProcessError):
        return None


def select(rows: Iterable[Row], fields: Mapping[str, Any]) -> list[Row]:
    """The finished rows whose config has these values."""
    return [row for row in rows if row['status'] == FINISHED
            and all(row['config'].get(field) == value for field, value in fields.items())]
