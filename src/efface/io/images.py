"""Read pictures, work on them in their stored depth, and write them as they came.

The names here are the door; :mod:`.reading` and :mod:`.writing` are the rooms behind it.
"""

from efface.io.picture import Box, Origin, Picture
from efface.io.reading import MAX_PIXELS, read_picture
from efface.io.writing import SUFFIXES, check_fits, format_of, write_picture

__all__ = [
    "MAX_PIXELS",
    "SUFFIXES",
    "Box",
    "Origin",
    "Picture",
    "check_fits",
    "format_of",
    "read_picture",
    "write_picture",
]
