"""The binary part of a glTF 2.0 file, and the file around it (Khronos glTF 2.0, 3.6 and 4.4)."""

import json
import struct
from typing import Any

import numpy as np

ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER = 34962, 34963
_COMPONENTS = {"u1": 5121, "u2": 5123, "u4": 5125, "f4": 5126}
_TYPES: dict[tuple[int, ...], str] = {(): "SCALAR", (3,): "VEC3", (4,): "VEC4", (4, 4): "MAT4"}
_ALIGNMENT = 4


class GltfBuffer:
    """Arrays as accessors of one buffer.

    Attributes:
        accessors: For the document, as are ``views``.
        views: The document's bufferViews.
    """

    def __init__(self) -> None:
        self.accessors: list[dict[str, Any]] = []
        self.views: list[dict[str, Any]] = []
        self._bytes = bytearray()

    def add(self, values: np.ndarray, target: int | None = None, *, bounds: bool = False) -> int:
        """Append an array and return the index of its accessor.

        Args:
            values: (K,), (K, 3), (K, 4) or (K, 4, 4) of float32 or of unsigned integers up to 32
                bits; matrices column by column.
            target: What the graphics card will use it for, if it is of a mesh.
            bounds: Whether to say least and greatest value, as positions and times must.
        """
        values = np.ascontiguousarray(values)
        view: dict[str, Any] = {
            "buffer": 0,
            "byteOffset": len(self._bytes),
            "byteLength": values.nbytes,
        }
        if target is not None:
            view["target"] = target
        accessor: dict[str, Any] = {
            "bufferView": len(self.views),
            "componentType": _COMPONENTS[values.dtype.str[1:]],
            "count": len(values),
            "type": _TYPES[values.shape[1:]],
        }
        if bounds:
            accessor["min"] = np.atleast_1d(values.min(0)).tolist()
            accessor["max"] = np.atleast_1d(values.max(0)).tolist()
        self._bytes += values.tobytes() + bytes(-values.nbytes % _ALIGNMENT)
        self.views.append(view)
        self.accessors.append(accessor)
        return len(self.accessors) - 1

    def encode(self, document: dict[str, Any]) -> bytes:
        """The bytes of a GLB file from a document without buffers, views and accessors."""
        content = document | {
            "asset": {"version": "2.0", "generator": "kinemesh"},
            "buffers": [{"byteLength": len(self._bytes)}],
            "bufferViews": self.views,
            "accessors": self.accessors,
        }
        text = json.dumps(content, allow_nan=False, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        length = 12 + 8 + len(text) + 8 + len(self._bytes)
        header = struct.pack("<4sII", b"glTF", 2, length)
        chunks = struct.pack("<I4s", len(text), b"JSON") + text
        return header + chunks + struct.pack("<I4s", len(self._bytes), b"BIN\0") + self._bytes
