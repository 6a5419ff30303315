"""A seller's logo: a small SVG that draws itself and fetches nothing. Pure."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

LOGO_BYTES_MAX = 16_384
_NAMESPACE = "{http://www.w3.org/2000/svg}"
_FOREIGN = frozenset({"script", "image", "foreignObject", "a", "style", "animate", "set"})
_REFERENCE = re.compile(r"url\(\s*['\"]?(?!#)")


def logo_fault(svg: str) -> str:
    """Say why a text is no logo; empty where it is one.

    Refused is what could show something else later: references to outside, scripts, declarations of entities.
    """
    if len(svg.encode()) > LOGO_BYTES_MAX:
        return "is too long"
    if "<!" in svg or "<?xml-stylesheet" in svg:
        return "has declarations or comments"
    try:
        root = ET.fromstring(svg)  # noqa: S314 - without declarations there are no entities to expand
    except ET.ParseError as error:
        return f"is not XML: {error}"
    if root.tag != f"{_NAMESPACE}svg":
        return "is not an SVG"
    return next(filter(None, map(_element_fault, root.iter())), "")


def _element_fault(element: ET.Element) -> str:
    tag = element.tag.removeprefix(_NAMESPACE)
    if tag in _FOREIGN:
        return f"has an element {tag}"
    for name, value in element.attrib.items():
        is_link = name.rpartition("}")[2] == "href" and not value.startswith("#")
        if is_link or _REFERENCE.search(value) or name.lower().startswith("on"):
            return f"refers to something outside of itself: {name}"
    return ""
