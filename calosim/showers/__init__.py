"""Showers: primary particles with their photon images, and every form of file that holds them."""

from calosim.showers.primaries import read_primaries
from calosim.showers.reading import convert, read
from calosim.showers.record import FEATURES, Showers
from calosim.showers.root import Writer, write

__all__ = ["FEATURES", "Showers", "Writer", "convert", "read", "read_primaries", "write"]
