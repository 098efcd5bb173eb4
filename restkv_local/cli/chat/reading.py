"""How reading a prompt shows itself: a bar in a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

# A prompt without documents that is read within so many seconds, and one of so few tokens, shows nothing.
_AFTER = 0.3
# Seconds until the first line where there is no terminal, and how much longer each pause is, up to the longest.
_FIRST, _LONGER, _LONGEST = 3.0, 1.5, 60.0
# A terminal narrower than this gets shorter figures.
_NARROW = 70


class Reading:
    """One prompt. name: of what is read, "" for a question without documents; it is said at once."""

    def __init__(self, console: Console, name: str = "") -> None:
        self._console, self._name = console, name
        self._bar: Progress | None = None
        self._start: float | None = None
        self._chunk_end = 0.0  # when the last chunk ended
        self._done = self._total = 0
        self._pause, self._said = _FIRST, 0.0
        self._plain = not console.is_terminal or console.is_dumb_terminal

    def update(self, done: int, total: int) -> None:
        """Tokens that are read, and all of them; called at 0 and after each chunk."""
        now = time.monotonic()
        if self._start is None:
            self._start = self._said = now
            if self._name and done < total:
                self._console.print(f"reading {self._name}: {total:,} tokens", style="dim", markup=False)
        if done > self._done:
            self._chunk_end = now
        self._done, self._total = done, total
        self.tick()
        if done >= total:
            self.end()

    def tick(self) -> None:
        """Let the clock go on."""
        if self._start is None or self._total <= 1 or self._done >= self._total:
            return
        now = time.monotonic()
        if self._plain:
            if now - self._said >= self._pause:
                self._console.print(f"read {self._figures(now)}", style="dim", markup=False, soft_wrap=True)
                self._said, self._pause = now, min(_LONGEST, self._pause * _LONGER)
            return
        if self._bar is None:
            if not self._name and now - self._start < _AFTER:
                return
            columns = [BarColumn(bar_width=None), TextColumn("{task.fields[figures]}", markup=False)]
            if self._console.width >= _NARROW:
                columns.insert(0, TextColumn("reading"))
            self._bar = Progress(*columns, console=self._console, transient=True, expand=True, auto_refresh=False)
            self._bar.start()
            self._bar.add_task("", figures="")
        task = self._bar.tasks[0].id
        short = self._console.width < _NARROW
        self._bar.update(
            task, total=self._total, completed=self._done, figures=self._figures(now, short=short), refresh=True
        )

    def end(self) -> None:
        """Take the bar off the screen."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _figures(self, now: float, *, short: bool = False) -> str:
        """Tokens, and of the finished chunks the speed, from which follows what is left."""
        assert self._start is not None
        share = f"{100 * self._done / self._total:.0f} %"
        count = share if short else f"{self._done:,} of {self._total:,} tokens ({share})"
        if not self._done or self._chunk_end <= self._start:
            return f"{count}, {now - self._start:.0f} s"
        speed = self._done / (self._chunk_end - self._start)
        left = max(0.0, (self._total - self._done) / speed - (now - self._chunk_end))
        rate = f"{speed:.0f}" if speed >= 10 else f"{speed:.1f}"
        return f"{count}, {rate} tok/s, " + (f"{duration(left)} left" if short else f"about {duration(left)} left")


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
