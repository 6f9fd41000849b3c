"""Plans of runs, which draw themselves in notebooks."""

from __future__ import annotations

from html import escape
from typing import Any, Optional

#: The longer side of a drawing, and most rows or columns that are drawn, in px.
_SIDE = 320
_MOST_SPANS = 200


class Plan(dict[str, Any]):
    """What is known of a run before it begins: shapes, tiles, stages and predicted memory, as `tilevae plan --format json` gives them."""

    def __repr__(self) -> str:
        return f"<Plan: {'; '.join(self._figures())}>"

    def _figures(self) -> list[str]:
        tiles, bytes_ = self["tiles"], self["bytes"]
        largest = [max(span["length"] for span in tiles[axis]) for axis in ("rows", "columns")]
        count = len(tiles["rows"]) * len(tiles["columns"])
        figures = [
            f"{self['direction']} of {_shape(self['input_shape'])} to {_shape(self['output_shape'])}",
            "1 tile" if count == 1 else f"{count} tiles of at most {_shape(largest)} px",
            f"{self['work_ratio']:.2f} times the work of the whole",
        ]
        peak = self.get("peak_bytes")
        figures.append(f"{_size(bytes_['largest_tile'])} for the largest tile" if peak is None else f"{_size(peak)} at the peak")
        memory: Optional[dict[str, Any]] = self.get("memory")
        if memory and memory["budget"] is not None:
            figures[-1] += f" of {_size(memory['budget'])}"
        if memory and memory["scratch"]:
            figures.append(f"{_size(memory['scratch'])} in a scratch file")
        return figures

    def _repr_svg_(self) -> str:
        rows, columns = (self["tiles"][axis] for axis in ("rows", "columns"))
        height, width = (max(1, max(span["start"] + span["length"] for span in spans)) for spans in (rows, columns))
        scale = _SIDE / max(height, width)
        style = 'fill="#4878a8" fill-opacity=".14" stroke="#4878a8" stroke-width=".8"'

        def box(left: float, top: float, wide: float, tall: float) -> str:
            return f'<rect x="{left * scale + 8:.1f}" y="{top * scale + 8:.1f}" width="{wide * scale:.1f}" height="{tall * scale:.1f}" {style}/>'

        # Bands instead of tiles: their number does not grow with the product.
        boxes = [box(0, 0, width, height)]
        if len(rows) > 1 and len(rows) <= _MOST_SPANS:
            boxes += [box(0, span["start"], width, span["length"]) for span in rows]
        if len(columns) > 1 and len(columns) <= _MOST_SPANS:
            boxes += [box(span["start"], 0, span["length"], height) for span in columns]
        below = height * scale + 28
        lines = [f'<text x="8" y="{below + 16 * at:.1f}">{escape(figure)}</text>' for at, figure in enumerate(self._figures())]
        size = f'width="{max(width * scale, 380) + 16:.0f}" height="{below + 16 * len(lines):.0f}"'
        body = "".join(boxes + lines)
        return f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12" fill="#333">{body}</svg>'


def _shape(sides: list[int]) -> str:
    return "x".join(str(side) for side in sides)


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
