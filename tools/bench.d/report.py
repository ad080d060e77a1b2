# SPDX-License-Identifier: Apache-2.0
"""What was measured, as text, as JSON, as SVG charts, and all of it in one HTML file."""

import html
import json
import os
import textwrap

from chart import number, svg, with_unit

WIDTH = 100


def table(group):
    """Rows of: what, who, median, min to max, times the peer's median."""
    peers = {}
    for figure in group["figures"]:
        if figure["who"].lower().startswith("qemu"):
            peers.setdefault(figure["what"], figure)
    last = None
    for figure in group["figures"]:
        peer = peers.get(figure["what"])
        ratio = f"x {figure['median'] / peer['median']:.3f}" if peer and peer is not figure and peer["median"] else ""
        spread = f"{number(figure['min'])} to {number(figure['max'])}" if len(figure["values"]) > 1 else ""
        yield (figure["what"] if figure["what"] != last else "", figure["who"],
               with_unit(figure["median"], figure["unit"]), spread, ratio)
        last = figure["what"]


def bar_line(bar):
    verdict = "met" if bar["met"] else "MISSED"
    limit = with_unit(bar["limit"], bar["unit"])
    # Three digits, so that a value near its limit is told from it.
    value = f"{bar['value']:.3f}" if abs(bar["value"]) < 10 else number(bar["value"])
    return f"  {verdict:<6}  {bar['text']}: {value} {bar['unit']}".rstrip() + f" (bar: {bar['relation']} {limit})"


def group_text(group):
    lines = [group["title"], "=" * len(group["title"])]
    if group["figures"]:
        rows = [("", "", "median", "min to max", "ratio"), *table(group)]
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        for row in rows:
            cells = [row[0].ljust(widths[0]), row[1].ljust(widths[1])]
            cells += [row[i].rjust(widths[i]) for i in range(2, 5)]
            lines.append(("  " + "  ".join(cells)).rstrip())
    lines += [bar_line(bar) for bar in group["bars"]]
    lines += [line for text in group["missing"] for line in wrapped("not measured: " + text)]
    lines += [line for text in group["method"] for line in wrapped(text)]
    return "\n".join(lines) + "\n"


def wrapped(text):
    return textwrap.wrap(text, WIDTH, initial_indent="  - ", subsequent_indent="    ", break_long_words=False)


def facts_text(facts):
    width = max(map(len, facts))
    return "".join(f"{name.ljust(width)}  {value}\n" for name, value in facts.items())


def closing(groups):
    bars = [bar for group in groups for bar in group["bars"]]
    met = sum(bar["met"] for bar in bars)
    return f"{met} bars met, {len(bars) - met} missed, {sum(len(group['missing']) for group in groups)} not measured"


def as_text(facts, groups):
    return "\n".join([facts_text(facts), *map(group_text, groups), closing(groups)]) + "\n"


def as_json(facts, groups):
    return json.dumps({"format": 1, "host": facts, "groups": groups}, indent=1) + "\n"


def as_html(facts, groups):
    charts = "\n".join(f"{svg(group)}\n<pre>{html.escape(group_text(group))}</pre>" for group in groups)
    data = as_json(facts, groups).replace("</", "<\\/")
    return ("<!doctype html>\n<meta charset=\"utf-8\">\n<title>Corral benchmark report</title>\n"
            "<style>body{font-family:system-ui,sans-serif;max-width:900px;margin:2em auto;padding:0 1em}"
            "pre{overflow-x:auto;font-size:12px}svg{max-width:100%;height:auto}</style>\n"
            f"<h1>Corral benchmark report</h1>\n<pre>{html.escape(facts_text(facts))}</pre>\n{charts}\n"
            f"<p>{html.escape(closing(groups))}</p>\n"
            f"<script type=\"application/json\" id=\"figures\">\n{data}</script>\n")


def write(directory, name, text):
    path = os.path.join(directory, name)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    return path


def write_all(directory, facts, groups):
    os.makedirs(directory, exist_ok=True)
    paths = [write(directory, "bench.txt", as_text(facts, groups)),
             write(directory, "bench.json", as_json(facts, groups))]
    for group in groups:
        if group["figures"]:
            paths.append(write(directory, f"{group['name']}.svg", svg(group)))
    return paths
