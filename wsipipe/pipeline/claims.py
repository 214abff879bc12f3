"""Slides for this process: all of them, or, with `--join`, those whose lease it gets.

A lease places work and decides nothing: what is done is a property of the feature file, so the
file is looked at again under the lease. A process that finds nothing free waits for the slides in
other hands: should their owner die, they are taken over here.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from wsipipe.embed.drain import Drain
from wsipipe.pipeline.planning import SlidePlan
from wsipipe.pipeline.ranges import ranges_of, size_on_disk
from wsipipe.store import Lease, Leases, Records

__all__ = ["Claims", "in_order"]

# So many free slides, or so many for each process at work, and looking ahead starves nobody.
_PLENTY, _PLENTY_EACH = 8, 2
_MANY = 256  # so many left that nobody need count
_POLL_S, _POLL_RANGES_S = 2.0, 0.3  # whoever waits for ranges of a slide is the one to publish it
_STEP_S = 0.1


def in_order(plans: Sequence[SlidePlan]) -> list[SlidePlan]:
    """Largest slides first, so that no process ends the run alone with the largest slide."""
    return sorted(plans, key=lambda plan: size_on_disk(plan.entry.path), reverse=True)


class Claims:
    """Takes slides by lease.

    Args:
        replan: The same slide's plan as of now.
        elsewhere: Told of a slide that another process has settled; returns False where that
            process has failed on something that this one should try itself.
        suspect: Whether a slide has crashed a process: it is put off, to run alone later.
        drain: Ends the waiting.
    """

    def __init__(
        self,
        leases: Leases,
        plans: Sequence[SlidePlan],
        *,
        replan: Callable[[SlidePlan], SlidePlan],
        elsewhere: Callable[[SlidePlan], bool],
        suspect: Callable[[SlidePlan], bool],
        drain: Drain,
    ) -> None:
        self._leases, self._waiting = leases, deque(plans)
        self._replan, self._elsewhere, self._drain = replan, elsewhere, drain
        self._suspect = suspect
        self._put_off: list[SlidePlan] = []
        self._held: dict[str, Lease] = {}
        self._closed = False

    def __iter__(self) -> Iterator[SlidePlan]:
        while self._waiting and not self._stopped:
            taken = False
            for _ in range(len(self._waiting)):
                if not self._leave_some():
                    return
                plan = self._waiting.popleft()
                if self._elsewhere(plan):
                    continue
                if plan.entry.slide_id in self._slides_put_off:
                    self._put_off.append(plan)
                    continue
                lease = self._leases.acquire(plan.key) if self._ready(plan) else None
                if lease is None:
                    self._waiting.append(plan)
                    continue
                now = self._replan(plan)
                if self._elsewhere(now):
                    lease.release()
                    continue
                # Its owner has died, or the lease would not be free: with it in hand?
                if self._suspect(now):
                    lease.release()
                    self._put_off.append(now)
                    continue
                self._held[plan.key] = lease
                taken = True
                yield now
            if not taken:
                self._pause()

    def _leave_some(self) -> bool:
        """Near the end, take the next slide when the one in hand is over, not ahead of time: it
        would wait here while another process stands idle. False if the run is to stop."""
        while not self._stopped:
            if not self._held or len(self._waiting) >= _MANY:
                return True
            others = self._leases.others()
            free = len(self._waiting) - len(others)
            if free > max(_PLENTY, _PLENTY_EACH * len(set(others.values()))):
                return True
            time.sleep(_STEP_S)
        return False

    @property
    def _stopped(self) -> bool:
        return self._closed or bool(self._drain.requested)

    def close(self) -> None:
        """Take no more: the run has ended, perhaps with an error."""
        self._closed = True

    @property
    def put_off(self) -> list[SlidePlan]:
        """The suspects met, each slide behind its ranges, wherever the waiting has brought it."""
        return sorted(self._put_off, key=lambda plan: plan.rows is None)

    @property
    def _slides_put_off(self) -> set[str]:
        return {plan.entry.slide_id for plan in self._put_off}

    def _ready(self, plan: SlidePlan) -> bool:
        """A slide that is cut is published when none of its ranges is still to be made here, or in
        hand: what others have made was let go. Whether all of it still lies there does not count:
        for what was lost since, or made of a file that has changed, nobody would come."""
        if plan.rows is not None or plan.ranges == 1:
            return True
        keys = {piece.key for piece in ranges_of(plan, plan.ranges)}
        return keys.isdisjoint(list(self._held)) and all(p.key not in keys for p in self._waiting)

    def release(self, key: str) -> None:
        """The piece of work is over, one way or the other."""
        lease = self._held.pop(key, None)
        if lease is not None:
            lease.release()

    def _pause(self) -> None:
        cut = any(plan.ranges > 1 for plan in self._waiting)
        until = time.monotonic() + (_POLL_RANGES_S if cut else _POLL_S)
        while time.monotonic() < until and not self._stopped:
            time.sleep(_STEP_S)


def failed_meanwhile(records: Records, slide_id: str, since_utc: str) -> bool:
    """Whether another process has failed on the slide since `since_utc`."""
    record = records.read(slide_id)
    if record is None or not record.attempts:
        return False
    latest = record.attempts[-1]
    return bool(latest["state"] == "failed" and str(latest.get("ended_utc", "")) >= since_utc)
