"""Showers: primary particles with their photon images, and every form of file that holds them."""

from calosim.data.reading import convert, read, read_primaries
from calosim.data.record import FEATURES, Showers
from calosim.data.root import Writer, write

__all__ = ["FEATURES", "Showers", "Writer", "convert", "read", "read_primaries", "write"]
