"""HTML pages that open anywhere: each carries its styles and pictures, fetches nothing and runs nothing."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Any

from agrikd import image
from agrikd.errors import MissingExtraError
from agrikd.types import Image

_QUALITY = 80


def render(template: str, filters: Mapping[str, Callable[..., str]], **values: Any) -> str:
    """The page that `templates/<template>` makes of the values; whatever is no `Markup` is escaped."""
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError:
        raise MissingExtraError("jinja2", "train") from None
    environment = Environment(
        loader=PackageLoader("agrikd"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= filters
    return environment.get_template(template).render(**values)


def picture(pixels: Image, tile: tuple[int, int]) -> str:
    """A data URI of the image shrunk into a tile (height, width), its aspect kept."""
    height, width = pixels.shape[:2]
    scale = min(tile[0] / height, tile[1] / width)
    small = image.resize(pixels, (max(round(height * scale), 1), max(round(width * scale), 1)))
    return "data:image/jpeg;base64," + base64.b64encode(image.encode_jpeg(small, _QUALITY)).decode()
