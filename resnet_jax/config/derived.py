"""Fields that a config file derives from others, such as from a number of chips."""

from ml_collections import ConfigDict

from resnet_jax.config.stored import leaves


def derive(config: ConfigDict, field: str, value, source: str) -> None:
    """Sets a field and notes in `config.derived` where its value comes from.

    Args:
      config: is changed.
      field: path, such as 'schedule.learning_rate'.
      value: of the field.
      source: the rule and who published it.
    """
    config.update_from_flattened_dict({field: value})
    config.derived = (*config.derived, (field, value, source))


def derived_table(config: ConfigDict) -> str:
    """Lists the fields of `config.derived`, their values and where those come from.

    Returns:
      A line per field; '' if the config derives none. A value that a flag has set is marked, with
      the derived one beside it, and a last line says that the others stay.
    """
    fields, rows, changed = leaves(config), [], False
    for field, value, source in config.derived:
        now = fields[field]
        said = source if now == value else f'set by a flag; derived: {value}'
        changed |= now != value
        shown = f'{now:,}' if isinstance(now, int) else f'{now:.4g}' if isinstance(
            now, float) else str(now)
        rows.append((field, shown, said))
    width = max((len(shown) for _, shown, _ in rows), default=0)
    lines = [f'{field:<27} {shown:>{width}}  {said}' for field, shown, said in rows]
    if changed:
        lines.append('note: fields set by a flag change no other field; depth, devices and batch '
                     'given behind --config=FILE: do.')
    return '\n'.join(lines)
