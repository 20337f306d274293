"""Which frame of a video is due."""

from dataclasses import dataclass


@dataclass
class Player:
    """A clock that goes through the frames of a video again and again.

    When showing a frame takes longer than its time, the next ones are left out, so that the motion
    keeps its speed.
    """

    _started_s: float = 0.0
    _first: int = 0
    _expected: int | None = None

    def stop(self) -> None:
        """Forget the time; the next frame that is asked for starts anew."""
        self._expected = None

    def due(self, position: int, count: int, rate_hz: float, now_s: float) -> int:
        """Index of the frame to show now.

        Args:
            position: Index of the frame that is chosen on the page. If it is not the one that was
                due last, the user moved on, and the clock starts there.
            count: Number of frames.
            rate_hz: Frames a second.
            now_s: The time now, seconds of any clock.
        """
        if position != self._expected:
            self._started_s, self._first = now_s, position
        passed = int((now_s - self._started_s) * rate_hz + 1e-6)
        self._expected = (self._first + passed) % count
        return self._expected
