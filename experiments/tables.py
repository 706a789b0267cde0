"""Tables of runs for the terminal."""

from collections.abc import Sequence

from experiments.claims import Estimate, GeometricEstimate, estimate
from experiments.ledger import FINISHED, Row

INTERVAL = 'mean ± half of the 95 % t-interval over the seeds'  # of `mean_and_interval`
MEASURED = {  # column of the ledger: heading, digits behind the point
    'final_error': ('top-1 error %', 2),
    'best_error': ('best %', 2),
    'final_ap': ('AP', 2),
    'best_ap': ('best AP', 2),
    'final_train_loss': ('training loss', 4),
    'images_per_second': ('images/s', 0),
    'seconds': ('seconds', 0),
}


def text(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the first being the headings, in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ['  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
             for row in rows]
    return '\n'.join([lines[0], '-' * len(lines[0]), *lines[1:]])


def with_notes(rows: Sequence[Sequence[str]], seeds: int, over_seeds: str, *others: str) -> str:
    """The table of `text`, and a line below it.

    Args:
      rows: see `text`.
      seeds: of the row that has most.
      over_seeds: how the cells sum up the seeds; left out where no row has several.
      others: further notes.
    """
    notes = [over_seeds, *others] if seeds > 1 else others
    return '\n'.join(filter(None, [text(rows), '; '.join(notes)]))


def over_seeds(rows: Sequence[Row]) -> str:
    """A line for each combination of overrides but the seed: mean ± standard deviation over seeds.

    Args:
      rows: of a ledger; all have the same overridden fields.
    """
    fields = [field for field in rows[0]['overrides'] if field != 'seed']
    # Which numbers there are depends on the task.
    measured = {column: MEASURED[column] for column in MEASURED
                if any(column in row for row in rows)}
    headings = [*fields, 'runs', *(heading for heading, _ in measured.values()), 'failed']
    lines = []
    groups = {}
    for row in rows:
        groups.setdefault(tuple(str(row['overrides'][field]) for field in fields), []).append(row)
    for values, group in groups.items():
        done = [row for row in group if row['status'] == FINISHED]
        cells = [_cell([row[column] for row in done if row[column] is not None], digits)
                 for column, (_, digits) in measured.items()]
        lines.append([*values, str(len(done)), *cells, str(len(group) - len(done))])
    if not any(int(line[-1]) for line in lines):
        headings, lines = headings[:-1], [line[:-1] for line in lines]
    most = max(int(line[headings.index('runs')]) for line in lines)
    return with_notes([headings, *lines], most,
                      'mean ± standard deviation over the runs of each row')


def _cell(values: Sequence[float], digits: int) -> str:
    return mean_and_std(estimate(values), digits) if values else '-'


def mean_and_std(of: Estimate, digits: int) -> str:
    """Such as '1.01 ± 0.10', or '1.01' of one value."""
    if of.std is None:
        return f'{of.mean:,.{digits}f}'
    return f'{of.mean:,.{digits}f} ± {of.std:,.{digits}f}'


def mean_and_interval(of: Estimate, digits: int) -> str:
    """Such as '1.01 ± 0.34', half of the 95 % interval, or '1.01' of one value."""
    return with_interval(of.mean, of.half_width, digits)


def with_interval(mean: float, half_width: float | None, digits: int) -> str:
    """The same of an estimate whose numbers have been taken apart for JSON."""
    if half_width is None:
        return f'{mean:.{digits}f}'
    return f'{mean:.{digits}f} ± {half_width:.{digits}f}'


def geometric_mean_and_interval(of: GeometricEstimate, digits: int) -> str:
    """Such as '0.0189 (0.0144 to 0.0248)', the 95 % interval, or '0.0189' of one value."""
    if of.interval is None:
        return f'{of.mean:.{digits}f}'
    low, high = of.interval
    return f'{of.mean:.{digits}f} ({low:.3g} to {high:.3g})'
