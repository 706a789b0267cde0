"""Runs the notebook tour.ipynb and writes it, with its outputs and pictures, as docs/tour.md.

  python -m experiments.tour

The notebook itself stays without outputs.
"""

import base64
import os
import pathlib
import re

import nbclient
import nbformat

from resnet_jax.output import write_whole

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOK = ROOT / 'experiments' / 'tour.ipynb'
PAGE = ROOT / 'docs' / 'tour.md'
PICTURES = {'image/png': 'png', 'image/svg+xml': 'svg'}
COMMAND = 'python -m experiments.tour'
NOTE = f'''This page was made from [experiments/tour.ipynb](../experiments/tour.ipynb), on a CPU, by

```bash
{COMMAND}
```'''


def source(cell: nbformat.NotebookNode) -> str:
    """A cell without its outputs, as Markdown."""
    if cell.cell_type == 'code':
        return f'```python\n{cell.source}\n```'
    return cell.source.replace('](../docs/', '](')


def pages(notebook: nbformat.NotebookNode) -> tuple[str, dict[str, bytes]]:
    """The text of the page, and its pictures by the names of their files."""
    parts, pictures = [], {}
    for cell in notebook.cells:
        parts.append(source(cell))
        if len(parts) == 1:
            parts.append(NOTE)
        printed = ''.join(output.text for output in cell.get('outputs', ())
                          if output.output_type == 'stream' and output.name == 'stdout')
        if printed:
            parts.append(f'```text\n{printed.rstrip()}\n```')
        for output in cell.get('outputs', ()):
            data = output.get('data', {})
            kind = next((kind for kind in PICTURES if kind in data), None)
            if kind:
                name = f'picture{len(pictures) + 1}.{PICTURES[kind]}'
                pictures[name] = (base64.b64decode(data[kind]) if kind == 'image/png'
                                  else data[kind].encode())
                parts.append(f'![{caption(cell.source)}](tour/{name})')
            elif 'text/plain' in data:
                parts.append(f'```text\n{data["text/plain"]}\n```')
    return '\n\n'.join(parts) + '\n', pictures


def caption(code: str) -> str:
    """What a picture shows: the first comment of its cell, for those who cannot see it."""
    return re.search(r'^# (.*)$', code, re.MULTILINE)[1].rstrip('.')


def main() -> None:
    notebook = nbformat.read(NOTEBOOK, 4)
    os.environ['JAX_PLATFORMS'] = 'cpu'
    nbclient.NotebookClient(notebook, timeout=None, kernel_name='python3',
                            resources={'metadata': {'path': NOTEBOOK.parent}}).execute()
    text, pictures = pages(notebook)
    folder = PAGE.with_suffix('')
    folder.mkdir(exist_ok=True)
    for name, content in pictures.items():
        write_whole(folder / name, content)
    write_whole(PAGE, text)


if __name__ == '__main__':
    main()
