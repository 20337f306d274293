"""The page of a report: one HTML file that needs nothing but itself."""

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Any

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 76rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; margin: .8rem 0; font-size: .92rem; }
th, td { border-bottom: 1px solid #ddd; padding: .3rem .8rem; text-align: left; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
img { max-width: 100%; height: auto; }
pre { background: #f5f5f3; padding: .8rem; overflow-x: auto; font-size: .85rem; }
p.note { color: #666; }
"""


class Page:
    """Collects the parts of a page; all text is escaped."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.parts: list[str] = []

    def heading(self, text: str) -> None:
        """Begin a section."""
        self.parts.append(f"<h2>{html.escape(text)}</h2>")

    def note(self, text: str) -> None:
        """Add a remark."""
        self.parts.append(f'<p class="note">{html.escape(text)}</p>')

    def verbatim(self, text: str) -> None:
        """Add text with its line breaks."""
        self.parts.append(f"<pre>{html.escape(text)}</pre>")

    def table(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows whose keys are the columns, in the order of the first row."""
        columns = list(rows[0])
        head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
        body = "".join(
            f"<tr>{''.join(_cell(row.get(column)) for column in columns)}</tr>" for row in rows
        )
        self.parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")

    def picture(self, png: bytes, description: str) -> None:
        """Add a picture, stored in the page itself."""
        data = base64.b64encode(png).decode("ascii")
        text = html.escape(description, quote=True)
        self.parts.append(f'<p><img alt="{text}" src="data:image/png;base64,{data}"></p>')

    def __str__(self) -> str:
        title = html.escape(self.title)
        head = f'<meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        body = "\n".join([f"<h1>{title}</h1>", *self.parts])
        start = f'<!doctype html>\n<html lang="en"><head>{head}</head>'
        return f"{start}\n<body>\n{body}\n</body></html>\n"


def _cell(value: object) -> str:
    if value is None:
        return "<td>–</td>"
    if isinstance(value, float):
        return f'<td class="number">{value:.4g}</td>' if abs(value) < 1 else _number(value)
    if isinstance(value, int):
        return f'<td class="number">{value}</td>'
    return f"<td>{html.escape(str(value))}</td>"


def _number(value: float) -> str:
    return f'<td class="number">{value:.2f}</td>'
