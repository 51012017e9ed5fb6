"""What every result can do: be a table, plain values or a file, and show itself in a few lines.

A result says what it is (`facts`) and has rows (`to_dataframe`); the rest follows. Words mean the same everywhere:
``label`` is a head or neuron, ``position`` where, ``token`` the text of a token and ``id`` its number, ``effect`` what
a part contributes over all paths and ``direct`` without detours, ``score`` what a head or pair was rated.
"""

from __future__ import annotations

import html
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allheads.disk import checked_path, write_whole, written
from allheads.errors import AllHeadsError, printable
from allheads.extras import extra

if TYPE_CHECKING:
    import pandas

#: Rows that a shown result has, and letters of a fact.
SHOWN, LETTERS = 8, 60


class Result:
    """The base of results."""

    def facts(self) -> dict[str, Any]:
        """What it is the result of, and its figures: plain values by name."""
        raise NotImplementedError

    def to_dataframe(self) -> pandas.DataFrame:
        """Its rows."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Facts, and rows as a list of mappings: plain values for JSON; infinities and NaN become None."""
        return finite(self.facts() | {"rows": self.to_dataframe().to_dict("records")})

    def save(self, path: str | Path) -> Path:
        """Write ``.json`` (as `to_dict`), ``.csv`` or ``.parquet`` (as `to_dataframe`), whole or not at all.

        Returns the path. Raises `AllHeadsError` for another suffix, for a path that cannot be written, and for Parquet
        without pyarrow, which comes with the extra ``parquet``.
        """
        target = checked_path(path)
        if target.suffix == ".json":
            write_whole(target, json.dumps(self.to_dict(), indent=1, allow_nan=False))
        elif target.suffix == ".csv":
            write_whole(target, self.to_dataframe().to_csv(index=False))
        elif target.suffix == ".parquet":
            extra("pyarrow", "parquet", "write Parquet")
            with written(target) as beside:
                self.to_dataframe().to_parquet(beside, engine="pyarrow", index=False)
        else:
            raise AllHeadsError("a file that ends in .json, .csv or .parquet", target.name, "Name it so.")
        return target

    def preview(self) -> pandas.DataFrame | None:
        """The rows that are shown; None for a result whose rows take long to make."""
        return self.to_dataframe()

    def headline(self) -> str:
        """Its facts in one line."""
        shown = (f"{name}={_short(value)}" for name, value in self.facts().items())
        return f"{type(self).__name__}({', '.join(shown)})"

    def __repr__(self) -> str:
        rows = self.preview()
        if rows is None or not len(rows):
            return self.headline()
        lines = [self.headline(), printable(rows.head(SHOWN).to_string(index=False, max_colwidth=LETTERS))]
        return "\n".join([*lines, f"... of {len(rows):,} rows"] if len(rows) > SHOWN else lines)

    def _repr_html_(self) -> str:
        """What notebooks show."""
        rows = self.preview()
        head = f"<p><code>{html.escape(self.headline())}</code></p>"
        if rows is None or not len(rows):
            return head
        # pandas escapes what is in cells.
        table = rows.head(SHOWN).map(lambda cell: printable(cell) if isinstance(cell, str) else cell)
        more = f"<p>... of {len(rows):,} rows</p>" if len(rows) > SHOWN else ""
        return head + table.to_html(index=False) + more


def finite(value: Any) -> Any:
    """Plain values for JSON: infinities and NaN become None, sequences lists.

    >>> finite({"bound": float("inf"), "bias_tokens": (8, 1)})
    {'bound': None, 'bias_tokens': [8, 1]}
    """
    if isinstance(value, dict):
        return {str(name): finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    if hasattr(value, "item") and not isinstance(value, str):  # numbers of numpy, scalars of torch
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _short(value: Any) -> str:
    text = f"{value:.5g}" if isinstance(value, float) else printable(repr(value))
    return text if len(text) <= LETTERS else f"{text[: LETTERS - 3]}..."
