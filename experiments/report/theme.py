"""Chart themes for light and dark pages."""

from typing import Any

# Told apart from each other and from the page; shapes and names stand beside them everywhere.
LIGHT = ('#0b6fb8', '#c2500f', '#12805c', '#a3427f', '#7a5c00', '#5b5bd6', '#b3261e', '#00798a',
         '#5f6773', '#8a5a2b')
DARK = ('#62b5f2', '#ff9d5c', '#4fd1a5', '#f08bc6', '#e3c34a', '#a9a9ff', '#ff8a80', '#4dd0e1',
        '#b7bec9', '#d9ae78')
FONT = 'system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif'


def config(dark: bool) -> dict[str, Any]:
    """A Vega-Lite config."""
    text, quiet, line, page, colors = (
        ('#e6e9ee', '#b4bbc6', '#39414d', '#171b21', DARK) if dark else
        ('#1b2027', '#4b5563', '#dfe3e8', '#ffffff', LIGHT))
    return {
        'background': 'transparent' if dark else page,
        'font': FONT,
        'range': {'category': list(colors)},
        'view': {'stroke': line},
        'title': {'color': text, 'fontSize': 14, 'fontWeight': 600, 'anchor': 'start'},
        'axis': {'labelColor': quiet, 'titleColor': quiet, 'gridColor': line, 'domainColor': line,
                 'tickColor': line, 'labelFontSize': 11, 'titleFontSize': 12,
                 'titleFontWeight': 'normal', 'titlePadding': 8},
        'legend': {'labelColor': text, 'titleColor': quiet, 'titleFontWeight': 'normal',
                   'labelFontSize': 12, 'titleFontSize': 12, 'labelLimit': 220,
                   'symbolBaseFillColor': quiet, 'symbolBaseStrokeColor': quiet},
        'header': {'labelColor': text, 'titleColor': quiet, 'labelFontSize': 13,
                   'labelFontWeight': 600},
        'text': {'color': text},
        'rule': {'color': quiet},
        'style': {'name': {'fill': text, 'fontSize': 15, 'fontWeight': 700},
                  'halo': {'fill': page, 'stroke': page, 'strokeWidth': 4, 'strokeOpacity': 0.85,
                           'fontSize': 15, 'fontWeight': 700}},
    }
