# SPDX-License-Identifier: Apache-2.0
"""A group of figures as one SVG: for each thing measured a row a program, its runs as dots, the median
as a bar, and the limit where there is one. No scripts, no fonts, nothing from elsewhere."""

from xml.sax.saxutils import escape

WIDTH, LEFT, RIGHT = 860, 210, 150
ROW, BAR, TITLE, GAP, TOP = 30, 16, 34, 14, 46
OURS, PEER, DOT, LIMIT = "#1f6f8b", "#b9b2a6", "#222222", "#c0392b"


def number(value):
    """Three digits that mean something; thousands apart."""
    if abs(value) >= 1000 or float(value).is_integer():
        return f"{value:,.0f}"
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:.{digits}f}" if abs(value) >= 0.01 else f"{value:.4f}"


def with_unit(value, unit):
    return f"{number(value)} {unit}".strip()


class Drawing:
    def __init__(self):
        self.parts = []

    def text(self, x, y, text, size=13, anchor="start", weight="normal", fill="#222222"):
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" '
                          f'font-weight="{weight}" fill="{fill}">{escape(text)}</text>')

    def rect(self, x, y, width, height, fill):
        self.parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" height="{height}" '
                          f'fill="{fill}"/>')

    def dot(self, x, y):
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.2" fill="{DOT}" fill-opacity="0.45"/>')

    def line(self, x, y0, y1):
        self.parts.append(f'<line x1="{x:.1f}" y1="{y0:.1f}" x2="{x:.1f}" y2="{y1:.1f}" stroke="{LIMIT}" '
                          'stroke-width="1.5" stroke-dasharray="4 3"/>')


def things(group):
    """The figures of a group by what they measure, in order."""
    by_what = {}
    for figure in group["figures"]:
        by_what.setdefault(figure["what"], []).append(figure)
    return by_what


def draw_row(drawing, figure, y, scale, most, is_ours):
    drawing.text(LEFT - 10, y + BAR - 3, figure["who"], anchor="end")
    drawing.rect(LEFT, y, figure["median"] * scale, BAR, OURS if is_ours else PEER)
    inside = [value for value in figure["values"] if value <= most]
    for value in inside if len(figure["values"]) > 1 else []:
        drawing.dot(LEFT + value * scale, y + BAR / 2)
    beyond = len(figure["values"]) - len(inside)
    label = with_unit(figure["median"], figure["unit"]) + (f"  ({beyond} beyond)" if beyond else "")
    drawing.text(WIDTH - RIGHT + 10, y + BAR - 3, label)


def draw_thing(drawing, what, figures, bars, y):
    """Returns where the next one begins. The axis ends a little beyond the largest median or limit."""
    limits = [bar["line"][1] for bar in bars if bar.get("line") and bar["line"][0] == what]
    most = 1.25 * max([figure["median"] for figure in figures] + limits) or 1
    scale = (WIDTH - LEFT - RIGHT) / most
    drawing.text(LEFT, y + 18, what, weight="bold")
    y += TITLE - 8
    for i, figure in enumerate(figures):
        draw_row(drawing, figure, y + i * ROW, scale, most, not figure["who"].startswith(("QEMU", "qemu")))
    end = y + len(figures) * ROW
    for limit in limits:
        drawing.line(LEFT + limit * scale, y - 4, end - ROW + BAR + 6)
        drawing.text(LEFT + limit * scale + 4, end - ROW + BAR + 14, f"bar {number(limit)}", size=10, fill=LIMIT)
    return end + GAP


def svg(group):
    drawing = Drawing()
    drawing.text(16, 28, group["title"], size=17, weight="bold")
    y = TOP
    for what, figures in things(group).items():
        y = draw_thing(drawing, what, figures, group["bars"], y)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y:.0f}" width="{WIDTH}" height="{y:.0f}" '
            'font-family="system-ui, sans-serif">\n'
            f'<title>{escape(group["title"])}</title>\n<rect width="100%" height="100%" fill="#fbfaf7"/>\n' +
            "\n".join(drawing.parts) + "\n</svg>\n")
