"""Reads a report back: its tables, its visible text, its addresses."""

import html.parser
import re


class Page(html.parser.HTMLParser):
    """Tables as (attributes, rows of cells), the visible text, and every address."""

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.addresses, self.tags, self.text, self.tables = [], [], "", []
        self._row, self._cell = ({}, []), None
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        known = dict(attrs)
        self.tags.append(tag)
        self.addresses += [known[name] for name in ("src", "href", "action", "data", "srcset") if name in known]
        if tag == "table":
            self.tables.append((known, []))
        elif tag == "tr":
            self._row = (known, [])
            self.tables[-1][1].append(self._row)
        elif tag in ("td", "th"):
            self._cell = [known, ""]
            self._row[1].append(self._cell)

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._cell = None

    def handle_data(self, data):
        self.text += data
        if self._cell:
            self._cell[1] += data

    def group(self, dataset, group, score):
        """The numbers of a group's row: value, and where given low and high, for each series or difference."""
        (rows,) = [rows for known, rows in self.tables if known.get("data-dataset") == dataset]
        (cells,) = [cells for known, cells in rows if known.get("data-group") == group]
        return [numbers(text) for known, text in cells if known.get("data-score") == score]

    def gap(self, dataset, attribute, score):
        """The numbers of an attribute's gap: gap, low, high, by chance, adjusted p, for each series."""
        (rows,) = [rows for known, rows in self.tables if known.get("data-dataset") == dataset]
        (cells,) = [cells for known, cells in rows if known.get("data-gap") == attribute]
        return [numbers(text) for known, text in cells if known.get("data-score") == f"{score}-gap"]

    def sizes(self, dataset, group):
        (rows,) = [rows for known, rows in self.tables if known.get("data-dataset") == dataset]
        return [[int(text) for _, text in cells[1:3]] for known, cells in rows if known.get("data-group") == group][0]

    def table(self, name):
        return [
            [text.strip() for _, text in cells]
            for known, rows in self.tables
            if known.get("class") == name
            for _, cells in rows
        ]


def numbers(text):
    return [float(found.replace("−", "-")) for found in re.findall(r"[+−]?\d+(?:\.\d+)?", text)]
