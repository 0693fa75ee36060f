"""What the pages of engines have in common: their look, pictures inside, and files replaced whole.

Equal contents give equal bytes. Draws with Agg into memory and leaves pyplot alone.
"""

import base64
import io
from collections.abc import Mapping
from html import escape
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from engines.files import replace_file

STYLE = """
body{font:15px/1.45 system-ui,sans-serif;color:#22262b;background:#fff;max-width:70rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin:0 0 .3rem} h2{font-size:1.1rem;margin:2rem 0 .5rem}
.verdict{border-left:.5rem solid;padding:.8rem 1.2rem;margin-bottom:1rem}
.go{border-color:#2c7a3f;background:#eef7f0} .no-go{border-color:#b3261e;background:#fcefee}
table{border-collapse:collapse;font-variant-numeric:tabular-nums} caption{text-align:left;color:#5b626a}
th,td{padding:.25rem .7rem;border-bottom:1px solid #e3e5e8;text-align:left} td.n{text-align:right}
tr.bad td{background:#fcefee} .bad .mark{color:#b3261e;font-weight:600}
.faint{color:#5b626a} img{max-width:100%} dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1rem}
dd{margin:0;overflow-wrap:anywhere} dt{color:#5b626a} .wide{overflow-x:auto}
"""


def document(title: str, body: str, style: str = "", head: str = "") -> str:
    """A whole page that needs nothing from elsewhere.

    Args:
        title: plain text.
        body, head: markup, what comes from outside escaped already.
        style: CSS beyond `STYLE`.
    """
    head += f"<title>{escape(title)}</title><style>{STYLE}{style}</style>"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">{head}</head><body>
{body}
</body></html>
"""


def facts(pairs: Mapping[str, str]) -> str:
    """Names and values as a list, escaped."""
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in pairs.items())
    return f"<dl>{rows}</dl>"


def image(png: bytes, says: str) -> str:
    """A picture that lies in the page itself, and what it says to those who do not see it."""
    return f'<img alt="{escape(says)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def to_png(figure: Figure) -> bytes:
    """A drawn figure, without the name of what drew it."""
    FigureCanvasAgg(figure)
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def write_pair(folder: Path, name: str, html: str, json: str) -> tuple[Path, Path]:
    """Paths of `name`.html and `name`.json in a folder, made if need be; each is replaced in one step."""
    page, twin = Path(folder, f"{name}.html"), Path(folder, f"{name}.json")
    return replace_file(page, html.encode()), replace_file(twin, json.encode())
