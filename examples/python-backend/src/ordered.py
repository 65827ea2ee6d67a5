"""Strings in ascending order.

One sorted list would do for some ten thousand of them; beyond, moving half of the list for every new string takes longer
than all else. So it is cut into pieces, and an insertion moves part of one.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from itertools import islice
from operator import itemgetter

# A longer piece is cut in two.
MOST = 1000


class Ordered:
    """A set of strings in ascending order. The caller sees to it that none is added twice."""

    def __init__(self) -> None:
        self.pieces: list[list[str]] = []  # Ascending, none of them empty.

    def add(self, text: str) -> None:
        if not self.pieces:
            self.pieces.append([])
            place = 0
        else:
            place = self.place_of(text)
        piece = self.pieces[place]
        insort(piece, text)
        if len(piece) > MOST:
            half = len(piece) // 2
            self.pieces[place : place + 1] = [piece[:half], piece[half:]]

    def remove(self, text: str) -> None:
        """Removes a string that is there."""
        place = self.place_of(text)
        piece = self.pieces[place]
        del piece[bisect_left(piece, text)]
        if not piece:
            del self.pieces[place]

    def after(self, text: str) -> Iterator[str]:
        """All strings that are higher."""
        place = self.place_of(text)
        for piece in islice(self.pieces, place, place + 1):
            yield from islice(piece, bisect_right(piece, text), None)
        for piece in islice(self.pieces, place + 1, None):
            yield from piece

    def __iter__(self) -> Iterator[str]:
        for piece in self.pieces:
            yield from piece

    def place_of(self, text: str) -> int:
        """The piece that holds a string, or would."""
        return max(0, bisect_right(self.pieces, text, key=itemgetter(0)) - 1)
