"""Images of Pillow and uploaded files as parts: inside a content, the SDK takes neither for what it is."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

__all__ = ["part_of"]

_JPEG = "JPEG"


def part_of(thing: Any) -> Any:
    """Return an image of Pillow or a file of the SDK as a part, and anything else as it is."""
    if isinstance(thing, Mapping):
        return thing
    if all(hasattr(thing, name) for name in ("getpixel", "mode", "save")):
        return {"inline_data": _image(thing)}
    uri, mime_type = getattr(thing, "uri", None), getattr(thing, "mime_type", None)
    if isinstance(uri, str) and isinstance(mime_type, str):
        return {"file_data": {"file_uri": uri, "mime_type": mime_type}}
    return thing


def _image(image: Any) -> dict[str, Any]:
    """Return the data of an image: a JPEG as one, any other without loss."""
    kind = _JPEG if getattr(image, "format", None) == _JPEG else "PNG"
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return {"mime_type": f"image/{kind.lower()}", "data": buffer.getvalue()}
