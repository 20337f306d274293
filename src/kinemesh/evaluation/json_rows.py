"""Large JSON lists, read an element at a time."""

import codecs
import json
from collections.abc import Iterator
from typing import IO, Any

from kinemesh.errors import InputError

CHUNK = 1 << 20
_SPACE = " \t\r\n"


def json_rows(file: IO[bytes], depth: int, where: str) -> Iterator[tuple[tuple[int, ...], Any]]:
    """Elements of nested JSON lists without holding the file.

    Args:
        file: UTF-8, open for reading.
        depth: How many lists are around an element: 1 for ``[a, b]``, 2 for ``[[a, b], [c]]``.
        where: Names the file in messages.

    Yields:
        The places of the lists inside the outermost one that hold the element (``depth - 1``
        numbers), and the element.

    Raises:
        InputError: It is something else, or cut short.
    """
    text = _Text(file, where)
    text.expect("[")
    counters = [0]
    while counters:
        character = text.peek()
        if character == "]":
            text.expect("]")
            counters.pop()
            if counters:
                counters[-1] += 1
        elif character == ",":
            text.expect(",")
        elif len(counters) < depth:
            text.expect("[")
            counters.append(0)
        else:
            yield tuple(counters[:-1]), text.value()
    text.expect_end()


class _Text:
    """What has been read of a file and not yet used."""

    def __init__(self, file: IO[bytes], where: str) -> None:
        self.file, self.where = file, where
        self.buffer, self.position = "", 0
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._values = json.JSONDecoder()

    def peek(self) -> str:
        """The next character that is not white space."""
        while True:
            while self.position < len(self.buffer):
                if self.buffer[self.position] not in _SPACE:
                    return self.buffer[self.position]
                self.position += 1
            if not self._more():
                raise self._damaged("the end of the file")

    def expect(self, character: str) -> None:
        if self.peek() != character:
            raise self._damaged(repr(self.buffer[self.position : self.position + 40]))
        self.position += 1

    def expect_end(self) -> None:
        while not self.buffer[self.position :].strip(_SPACE):
            self.position = len(self.buffer)
            if not self._more():
                return
        raise self._damaged(repr(self.buffer[self.position : self.position + 40]))

    def value(self) -> Any:
        self.peek()
        while True:
            try:
                value, end = self._values.raw_decode(self.buffer, self.position)
            except json.JSONDecodeError as error:
                if not self._more():
                    found = repr(self.buffer[self.position : self.position + 40])
                    raise self._damaged(found) from error
                continue
            # a number at the very end may go on in the next chunk
            if end < len(self.buffer) or not self._more():
                self.position = end
                return value

    def _more(self) -> bool:
        block = self.file.read(CHUNK)
        self.buffer = self.buffer[self.position :] + self._decode(block)
        self.position = 0
        return bool(block)

    def _damaged(self, found: str) -> InputError:
        return InputError(
            f"{self.where}: expected nested JSON lists of numbers, found {found}. The file is "
            "damaged or cut short; copy it again."
        )
