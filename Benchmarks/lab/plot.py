"""Plots as SVG, without a library: lines with points, bars in groups, histograms. One place for all scripts of this folder."""
import math
from xml.sax.saxutils import escape

COLOURS = ["#444444", "#e45756", "#4c78a8", "#f58518", "#54a24b", "#b279a2"]
GREY = "#cccccc"
# The same in every plot, however many others are in it.
OF_NAME = {"base": "#444444", "vmfence": "#e45756", "other": "#4c78a8"}


def colour_of(name, index):
    return OF_NAME.get(name, COLOURS[index % len(COLOURS)])


def number(value):
    """As short as it can be read."""
    if value == 0:
        return "0"
    if abs(value) >= 1e6:
        return f"{value / 1e6:g} M"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def steps(peak, count=5):
    """Round numbers from 0 to at least `peak`."""
    if peak <= 0:
        return [0, 1]
    size = 10 ** math.floor(math.log10(peak / count))
    size = next(size * factor for factor in (1, 2, 5, 10, 20) if size * factor * count >= peak)
    return [size * index for index in range(math.ceil(peak / size) + 1)]


class Panel:
    """One plot: axes, and what is drawn between them. `y` grows upwards."""

    def __init__(self, title, x_label="", y_label="", width=460, height=240):
        self.title, self.x_label, self.y_label = title, x_label, y_label
        self.width, self.height = width, height
        self.marks, self.ticks_x, self.names = [], [], []

    def _frame(self, y_steps):
        top = y_steps[-1]
        parts = [f'<text x="0" y="-14" font-size="13">{escape(self.title)}</text>']
        for value in y_steps:
            y = self.height * (1 - value / top)
            parts.append(f'<line x1="0" x2="{self.width}" y1="{y:.1f}" y2="{y:.1f}" stroke="{GREY}" stroke-width="0.5"/>'
                         f'<text x="-6" y="{y + 4:.1f}" text-anchor="end">{number(value)}</text>')
        parts.append(f'<rect width="{self.width}" height="{self.height}" fill="none" stroke="{GREY}"/>')
        for x, text in self.ticks_x:
            parts.append(f'<text x="{x:.1f}" y="{self.height + 16}" text-anchor="middle">{escape(text)}</text>')
        parts.append(f'<text x="{self.width / 2}" y="{self.height + 34}" text-anchor="middle">{escape(self.x_label)}</text>')
        parts.append(f'<text transform="translate(-46,{self.height / 2}) rotate(-90)" text-anchor="middle">'
                     f'{escape(self.y_label)}</text>')
        return parts

    def svg(self):
        return "".join(self._frame(self.y_steps) + self.marks)


def lines(title, series, x_label="", y_label="", width=460, height=240):
    """`series`: name to a list of (x, y)."""
    panel = Panel(title, x_label, y_label, width, height)
    points = [point for values in series.values() for point in values]
    x_steps, panel.y_steps = steps(max(x for x, _ in points)), steps(max(y for _, y in points))
    panel.ticks_x = [(width * x / x_steps[-1], number(x)) for x in x_steps]
    for index, (name, values) in enumerate(series.items()):
        colour = colour_of(name, index)
        places = [(width * x / x_steps[-1], height * (1 - y / panel.y_steps[-1])) for x, y in values]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        panel.marks.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        # Of many, the points would hide the line.
        if len(places) <= width / 8:
            panel.marks += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in places]
    panel.names = list(series)
    return panel


def bars(title, groups, series, x_label="", y_label="", width=460, height=240):
    """`groups`: what stands below each group; `series`: name to a value for each group."""
    panel = Panel(title, x_label, y_label, width, height)
    panel.y_steps = steps(max(max(values) for values in series.values()))
    step, bar = width / len(groups), width / len(groups) / (len(series) + 1)
    panel.ticks_x = [((index + 0.5) * step, str(name)) for index, name in enumerate(groups)]
    for index, (name, values) in enumerate(series.items()):
        for column, value in enumerate(values):
            tall = height * value / panel.y_steps[-1]
            panel.marks.append(
                f'<rect x="{column * step + (index + 0.5) * bar:.1f}" y="{height - tall:.1f}" width="{bar:.1f}" '
                f'height="{tall:.1f}" fill="{colour_of(name, index)}"/>')
    panel.names = list(series)
    return panel


def histogram(title, series, x_label="", y_label="samples", width=460, height=240, count=40):
    """`series`: name to values, all above 0. The buckets grow by a factor: the x axis is logarithmic."""
    panel = Panel(title, x_label, y_label, width, height)
    values = [value for list_ in series.values() for value in list_]
    low, high = math.log10(min(values)), math.log10(max(values) * 1.001)
    low, high = math.floor(low * 3) / 3, max(math.ceil(high * 3) / 3, math.floor(low * 3) / 3 + 1 / 3)
    table = {}
    for name, list_ in series.items():
        buckets = [0] * count
        for value in list_:
            buckets[min(count - 1, int((math.log10(value) - low) / (high - low) * count))] += 1
        table[name] = buckets
    panel.y_steps = steps(max(max(buckets) for buckets in table.values()))
    for tick in range(math.ceil(low * 3 - 1e-9), math.floor(high * 3 + 1e-9) + 1):
        value = 10 ** (tick // 3) * (1, 2, 5)[tick % 3]
        place = (math.log10(value) - low) / (high - low) * width
        if 0 <= place <= width:
            panel.ticks_x.append((place, number(value)))
    bar = width / count
    for index, buckets in enumerate(table.values()):
        for column, amount in enumerate(buckets):
            tall = height * amount / panel.y_steps[-1]
            if amount:
                panel.marks.append(
                    f'<rect x="{column * bar:.1f}" y="{height - tall:.1f}" width="{bar:.1f}" height="{tall:.1f}" '
                    f'fill="{COLOURS[(index + 1) % len(COLOURS)]}" fill-opacity="0.6"/>')
    panel.names = list(series) if len(series) > 1 else []
    panel.colour_offset = 1
    return panel


def write(path, panels, columns=2):
    """Draws the panels into one file, row by row."""
    left, top, gap = 70, 40, 80
    wide, tall = max(panel.width for panel in panels), max(panel.height for panel in panels)
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    width, height = left + columns * (wide + gap) + 10, rows * (tall + top + gap + 24) + 10
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" font-size="11" width="{width}" '
             f'height="{height}"><rect width="{width}" height="{height}" fill="white"/>']
    for index, panel in enumerate(panels):
        x, y = left + index % columns * (wide + gap), top + index // columns * (tall + top + gap + 24)
        parts.append(f'<g transform="translate({x},{y})">{panel.svg()}')
        place = 0
        for series, name in enumerate(panel.names):
            colour = colour_of(name, series + getattr(panel, "colour_offset", 0))
            parts.append(f'<rect x="{place}" y="{panel.height + 46}" width="11" height="11" fill="{colour}"/>'
                         f'<text x="{place + 16}" y="{panel.height + 56}">{escape(name)}</text>')
            place += 30 + 7 * len(name)
        parts.append("</g>")
    with open(path, "w") as file:
        file.write("\n".join(parts + ["</svg>\n"]))
