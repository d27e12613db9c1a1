"""Plots as inline SVG and HTML, so that a report stands alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

_COLOURS = ("#1971c2", "#e8590c", "#2f9e44", "#9c36b5", "#c92a2a", "#0c8599")
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 640, 300, 56, 40


def bars(values: Sequence[tuple[str, float]]) -> Markup:
    """Horizontal bars from zero, each with its label and value; the colour tells labels' first words apart."""
    longest = max((value for _, value in values), default=0.0) or 1.0
    words = list(dict.fromkeys(label.split()[0] for label, _ in values))
    found = []
    for label, value in values:
        colour = _COLOURS[words.index(label.split()[0]) % len(_COLOURS)]
        found.append(f"<div><b>{escape(label)}</b> {value:g}</div>")
        found.append(
            f'<div class="bar"><span style="width:{100 * value / longest:.2f}%;background:{colour}"></span></div>'
        )
    return Markup("\n".join(found))  # noqa: S704 - labels are escaped above


def lines(series: Mapping[str, Sequence[tuple[float, float]]], over: str) -> Markup:
    """One line for each series, both axes from zero.

    Args:
        series: points (x, y) by name.
        over: what x is.
    """
    points = [point for line in series.values() for point in line]
    most_x, most_y = max(x for x, _ in points) or 1.0, max(y for _, y in points) or 1.0

    def at(x: float, y: float) -> tuple[float, float]:
        across = _LEFT + x / most_x * (_WIDTH - _LEFT - 20)
        return round(across, 1), round(_HEIGHT - _BOTTOM - y / most_y * (_HEIGHT - _BOTTOM - 20), 1)

    found = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" style="max-width:100%">']
    for part in (0.0, 0.5, 1.0):
        (left, height), (right, _) = at(0, part * most_y), at(most_x, 0)
        found.append(f'<line x1="{left}" x2="{right}" y1="{height}" y2="{height}" stroke="#dee2e6"/>')
        found.append(f'<text x="{left - 6}" y="{height + 4}" text-anchor="end">{part * most_y:.3g}</text>')
    for x in sorted({x for x, _ in points}):
        found.append(f'<text x="{at(x, 0)[0]}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{x:g}</text>')
    found.append(f'<text x="{_WIDTH - 20}" y="{_HEIGHT - 6}" text-anchor="end">{escape(over)}</text>')
    for line, colour in zip(series.values(), _COLOURS * len(series), strict=False):
        path = " ".join(f"{x},{y}" for x, y in (at(*point) for point in sorted(line)))
        found.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        found += [f'<circle cx="{x}" cy="{y}" r="3.5" fill="{colour}"/>' for x, y in (at(*p) for p in line)]
    keys = [
        f'<span><i style="background:{colour}"></i>{escape(name)}</span>'
        for name, colour in zip(series, _COLOURS * len(series), strict=False)
    ]
    return Markup("\n".join([*found, "</svg>", f'<div class="key">{"".join(keys)}</div>']))  # noqa: S704 - as above
