"""Videos that cannot be read, or in part: named once, counted, too many of them stop a run."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from mcn.errors import MCNError


@dataclass
class BadVideos:
    """Names each bad video once, counts them, and stops a run that has too many unreadable ones."""

    total: int
    limit: float
    seen: dict[str, str] = field(default_factory=dict)  #: that cannot be read
    damaged: dict[str, str] = field(default_factory=dict)  #: of which a part is used

    def note(self, name: str, damage: str) -> list[str]:
        """Take note of a video of which a part is used; gives a line the first time."""
        if not damage or name in self.damaged:
            return []
        self.damaged[name] = damage
        return [damaged_line(name, damage)]

    def report(self, bad: tuple[tuple[str, str], ...], remedy: str = "another is drawn instead") -> list[str]:
        """Take note of failures; gives a line for each video not seen before.

        ``remedy`` says what is done about it. Raises :class:`~mcn.errors.MCNError` once more than
        ``limit`` of all videos are bad.
        """
        new = [(name, reason) for name, reason in dict(bad).items() if name not in self.seen]
        self.seen.update(new)
        if len(self.seen) > self.limit * self.total:
            raise MCNError(
                f"{len(self.seen)} of {self.total} videos cannot be read, the limit is {self.limit:.0%}. "
                f"The last: {list(self.seen.values())[-1]} (mend or remove them, or raise --max_bad)"
            )
        return [f"unreadable video, {remedy}: {reason}" for _, reason in new]

    def summary(self) -> list[str]:
        """Lines for the end of a run; none where all was well."""
        told = ((self.seen, "could not be read"), (self.damaged, "are damaged and were used in part"))
        return [f"{len(of)} of {self.total} videos {what}: {_some(of)}" for of, what in told if of]


def damaged_line(name: str, damage: str) -> str:
    """What is said of a damaged video of which a part is used."""
    return f"damaged video, what can be read of it is used: {name}: {damage}"


def _some(names: Iterable[str]) -> str:
    first = [*names]
    return ", ".join(first[:5]) + (", ..." if len(first) > 5 else "")
