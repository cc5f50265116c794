"""
When a volume's writers are stopped, thawed and killed.

    running ──deadline passed──► frozen ──deadline renewed──► running
                                   │
                                   └─ epoch taken, freeze_max passed ─► killed

A killed volume stays so until the daemon no longer holds it: the deadline that the
daemon tells is the node's, and proves nothing about this volume. A frozen volume that
the daemon no longer mentions stays frozen; after `freeze_max_s` its writers are killed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from backends.system import clock
from plugin.fencing import freezer, memory, processes, writers
from plugin.fencing.freezer import Target
from plugin.fencing.held import PAUSE_MAX_S, HeldVolume, State
from plugin.fencing.memory import Fence, Pause

# How soon a process that enters a frozen volume's namespace is stopped too. Once all
# were killed, new ones are rare: a container that its engine starts again.
_SCAN_INTERVAL_S: Final = 0.2
_SCAN_INTERVAL_KILLED_S: Final = 1.0
# Of a processor, for the scans when all were killed, however many processes there are.
_SHARE_KILLED: Final = 0.05
# How often all open files of the machine are looked at: that takes longer than a scan.
_FILES_INTERVAL_S: Final = 1.0
# So often we look for writers, until a look finds no new one; the next scan goes on.
_ROUNDS_MAX: Final = 20
# So often we hunt writers that end as soon as they are seen. The number is bounded: on
# a busy machine other processes end all the time.
_HUNTS_MAX: Final = 5
_ROUNDS_BUDGET_S: Final = 0.8
# Short, because another volume's deadline may pass meanwhile; the next scan goes on.
_GONE_BUDGET_S: Final = 0.2
_GONE_INTERVAL_S: Final = 0.01
# So many looks must find no writer: one that forks and ends is not seen in every look.
_GONE_LOOKS: Final = 5

Log = Callable[[str], None]


class Fences:
    """The volumes held and fenced, as *run_dir* has them and as the daemon says."""

    def __init__(self, run_dir: str, *, log: Log) -> None:
        self._run_dir = run_dir
        self._log = log
        self._memory = memory.load(run_dir)
        self._scan_at_s = 0.0
        self._files_at_s = 0.0
        # They were asked to stop, but are still in the kernel: at a disk, or forking.
        self._late: set[Target] = set()
        # The daemon and its helpers, which read volumes: they stop by themselves.
        self.never: frozenset[int] = frozenset()

    @property
    def empty(self) -> bool:
        """Whether there is nothing to guard."""
        memory = self._memory
        return not (memory.held or memory.fences or memory.pauses)

    def states(self) -> dict[str, State]:
        """Return the state of each volume."""
        states: dict[str, State] = dict.fromkeys(self._memory.held, "running")
        for volume_id, fence in self._memory.fences.items():
            if fence.killed:
                states[volume_id] = "killed"
            else:
                late = not self._late.isdisjoint(fence.targets)
                states[volume_id] = "stopping" if late else "frozen"
        return states

    def hold(self, volumes: Sequence[HeldVolume]) -> None:
        """Hold exactly *volumes*; thaw those whose deadline was renewed."""
        now_s = clock.boottime_s()
        before = self._memory.held
        self._memory.held = {each.id: _resolved(each, before) for each in volumes}
        for volume_id, fence in list(self._memory.fences.items()):
            volume = self._memory.held.get(volume_id)
            if volume is not None and 0 < fence.volume.epoch < volume.epoch:
                self._end(fence)
            elif fence.kill:
                if fence.killed and volume is None:
                    del self._memory.fences[volume_id]
            elif volume is not None and volume.deadline_s > now_s:
                self._thaw(fence)
        self.save()

    def kill(self, volume_ids: Iterable[str]) -> None:
        """Kill the writers of volumes that other nodes own by now."""
        for volume_id in volume_ids:
            fence = self._fence(volume_id)
            # The daemon asks again until it has let go of the volume.
            if fence is not None and not fence.killed:
                fence.kill = True
                self._scan_soon()
        self.save()

    def forget(self, volume_id: str) -> None:
        """Thaw a volume, and guard it no more."""
        self._memory.held.pop(volume_id, None)
        if fence := self._memory.fences.get(volume_id):
            self._thaw(fence)
        self.save()

    def pause(self, volume_id: str, targets: Collection[Target]) -> Collection[Target]:
        """
        Stop *targets* for a commit; return those that do not stand still.

        If there are any, none is stopped.
        """
        if volume_id in self._memory.fences:
            return targets
        stopped = self._stopped()
        self._memory.pauses[volume_id] = Pause(
            clock.boottime_s() + PAUSE_MAX_S,
            {e: stopped.get(e, False) or not freezer.is_stopped(e) for e in targets},
        )
        # Saved before it is done: after a crash the next guard can thaw them.
        self.save()
        if late := freezer.stop(targets):
            self.resume(volume_id)
        return late

    def resume(self, volume_id: str) -> bool:
        """Let go on what `pause` has stopped; return whether it still stood still."""
        pause = self._memory.pauses.pop(volume_id, None)
        if pause is None:
            return False
        still = all(each.exists and freezer.is_stopped(each) for each in pause.targets)
        stopped = self._stopped()
        ours = [each for each, ours in pause.targets.items() if ours]
        freezer.thaw([each for each in ours if each not in stopped])
        self.save()
        return still

    def resume_all(self) -> None:
        """Let go on all that `pause` has stopped: who wanted that has ended."""
        for volume_id in list(self._memory.pauses):
            self.resume(volume_id)

    def save(self) -> None:
        """Write down what a later guard has to know."""
        memory.save(self._run_dir, self._memory)

    def next_s(self) -> float | None:
        """Return when `act` has something to do, in `clock.boottime_s`."""
        moments = [volume.deadline_s for volume in self._unfenced()]
        moments += [pause.until_s for pause in self._memory.pauses.values()]
        if self._memory.fences:
            moments.append(self._scan_at_s)
            moments += [
                fence.since_s + fence.volume.freeze_max_s
                for fence in self._memory.fences.values()
                if not fence.kill
            ]
        return min(moments, default=None)

    def act(self) -> None:
        """Do what is due by now."""
        now_s = clock.boottime_s()
        for volume_id, pause in list(self._memory.pauses.items()):
            if now_s >= pause.until_s:
                self._log(f"{volume_id}: paused too long, its writers go on")
                self.resume(volume_id)
        for volume in self._unfenced():
            if now_s >= volume.deadline_s:
                fence = self._fence(volume.id)
                if fence is not None:
                    fence.kill = volume.policy == "kill"
                    self._scan_soon()
        for fence in self._memory.fences.values():
            if not fence.kill and now_s >= fence.since_s + fence.volume.freeze_max_s:
                self._log(f"{fence.volume.id}: frozen too long, its writers are killed")
                fence.kill = True
                self._scan_soon()
        if self._memory.fences and now_s >= self._scan_at_s:
            self._scan()

    def _scan_soon(self) -> None:
        self._scan_at_s = self._files_at_s = 0.0

    def _unfenced(self) -> list[HeldVolume]:
        return [
            volume
            for volume in self._memory.held.values()
            if volume.policy != "none" and volume.id not in self._memory.fences
        ]

    def _fence(self, volume_id: str) -> Fence | None:
        """Return the volume's fence, a new one if it has none; None if unknown."""
        fence = self._memory.fences.get(volume_id)
        volume = self._memory.held.get(volume_id)
        if fence is None and volume is not None:
            fence = Fence(volume, since_s=clock.boottime_s())
            self._memory.fences[volume_id] = fence
        return fence

    def _scan(self) -> None:
        """Stop all that can write to fenced volumes now; kill what has to be killed."""
        # It may take longer than a pause may, and nobody else ends one meanwhile.
        self.resume_all()
        began_s = clock.process_cpu_s()
        fences = list(self._memory.fences.values())
        self._stop(fences)
        # A new process of a killed volume has made it one to be killed again.
        doomed = [fence for fence in fences if fence.kill and not fence.killed]
        if doomed:
            self._kill(doomed)
        pause_s = _SCAN_INTERVAL_S
        if all(fence.killed for fence in fences):
            pause_s = _SCAN_INTERVAL_KILLED_S
            # Nothing else on the machine comes before us: what looks for rare things
            # must not keep etcd and the daemon from ending the trouble.
            cpu_s = clock.process_cpu_s() - began_s
            pause_s = max(pause_s, cpu_s / _SHARE_KILLED)
        self._scan_at_s = clock.boottime_s() + pause_s

    def _stop(self, fences: Sequence[Fence]) -> None:
        deadline = clock.Deadline(_ROUNDS_BUDGET_S)
        self._late = {target for target in self._late if not freezer.is_still(target)}
        files = clock.boottime_s() >= self._files_at_s
        if files:
            self._files_at_s = clock.boottime_s() + _FILES_INTERVAL_S
        hunts = 0 if files else _HUNTS_MAX - 1
        for number in range(_ROUNDS_MAX):
            # Containers first: they are found sooner.
            found = self._find(fences, open_files=files and number > 0)
            new: set[Target] = set()
            for fence in fences:
                new |= self._add(fence, found[fence.volume.id])
            if new:
                # Saved before it is done: after a crash the next guard can thaw them.
                self.save()
                for target in freezer.stop(new):
                    self._log(f"{target.path or target.pid} does not stand still yet")
                    self._late.add(target)
            if number > 0 or not files:
                hunts += 1
                hunted = hunts <= _HUNTS_MAX and self._hunt(fences, found)
                if not new and not hunted:
                    break
            if deadline.passed():
                break

    def _hunt(
        self, fences: Sequence[Fence], found: Mapping[str, writers.Writers]
    ) -> bool:
        """
        Stop processes that end before a list shows them; return whether any may exist.

        Processes that fork and end at once are in no list of processes for long, but a
        signal to their process group reaches all their children. Those that it stops
        are noted at once: the volume may be held again before the next scan.
        """
        namespaces = {
            number
            for each in found.values()
            if each.fleeting
            for number in each.namespaces
        }
        if not namespaces:
            return False
        inside = writers.groups_within(namespaces, never=self.never)
        for group, members in inside.items():
            # In a frozen control group no process can fork.
            if not freezer.any_frozen(members, self._stopped()):
                known = freezer.running(members)
                # Noted before it is done: after a crash the next guard can thaw them.
                self._note(known, fences, found)
                born = freezer.stop_group(group, members) - known
                freezer.thaw(self._note(born, fences, found))
        return True

    def _note(
        self,
        targets: Collection[Target],
        fences: Sequence[Fence],
        found: Mapping[str, writers.Writers],
    ) -> set[Target]:
        """Write down that we thaw *targets*; return those that belong to no fence."""
        strangers = set()
        for target in targets:
            namespace = processes.mount_namespace(target.pid)
            theirs = [
                fence
                for fence in fences
                if namespace in found[fence.volume.id].namespaces
            ]
            for fence in theirs:
                fence.targets[target] = True
                fence.killed = False
            if not theirs:
                strangers.add(target)
        # A scan that finds no running process has nothing to write.
        if targets:
            self.save()
        return strangers

    def _find(
        self, fences: Iterable[Fence], *, open_files: bool
    ) -> dict[str, writers.Writers]:
        volumes = [fence.volume for fence in fences]
        return writers.find(volumes, never=self.never, open_files=open_files)

    def _add(self, fence: Fence, found: writers.Writers) -> set[Target]:
        """Return what *fence* still has to stop; remember it with what is stopped."""
        wanted: dict[Target, bool] = {}
        if found.pids:
            wanted = freezer.plan(found, self._stopped())
        new = set()
        for target, mine in wanted.items():
            known = fence.targets.get(target)
            if known is None:
                self._log(f"{fence.volume.id}: stops {target.path or target.pid}")
            stopped = target in self._late or freezer.is_stopped(target)
            if known != mine or not stopped:
                new.add(target)
            fence.targets[target] = mine
        if new:
            fence.killed = False
        for target in [each for each in fence.targets if each not in wanted]:
            if not target.exists:
                del fence.targets[target]
        return new

    def _stopped(self) -> dict[Target, bool]:
        stopped: dict[Target, bool] = {}
        for fence in self._memory.fences.values():
            stopped |= fence.targets
        for pause in self._memory.pauses.values():
            stopped |= pause.targets
        return stopped

    def _thaw(self, fence: Fence) -> None:
        """Thaw all of *fence*, except what another fence stops, too."""
        del self._memory.fences[fence.volume.id]
        still = self._stopped()
        mine = [
            target
            for target, ours in fence.targets.items()
            if ours and target not in still
        ]
        freezer.thaw(mine)
        self._log(f"{fence.volume.id}: its writers go on")

    def _end(self, fence: Fence) -> None:
        """Kill what *fence* stopped; who writes in a later epoch is none of it."""
        del self._memory.fences[fence.volume.id]
        freezer.kill(fence.targets)
        freezer.thaw([each for each in fence.targets if each not in self._stopped()])

    def _kill(self, fences: Sequence[Fence]) -> None:
        """Kill the writers of *fences*; note the fences that have none left."""
        freezer.kill({target for fence in fences for target in fence.targets})
        deadline = clock.Deadline(_GONE_BUDGET_S)
        gone = self._without_writers(fences)
        while len(gone) < len(fences) and not deadline.passed():
            clock.pause(_GONE_INTERVAL_S)
            gone = self._without_writers(fences)
        changed = False
        for fence in gone:
            # A process that enters such a group later may be no writer.
            freezer.thaw(fence.targets)
            fence.targets.clear()
            if not fence.killed:
                fence.killed = changed = True
                self._log(f"{fence.volume.id}: its writers are killed")
            if fence.volume.id not in self._memory.held:
                del self._memory.fences[fence.volume.id]
        if changed:
            self.save()

    def _without_writers(self, fences: Sequence[Fence]) -> list[Fence]:
        """Return those of *fences* that have no writers left."""
        gone = list(fences)
        for _ in range(_GONE_LOOKS):
            found = self._find(gone, open_files=False)
            gone = [
                fence
                for fence in gone
                if not found[fence.volume.id].pids
                and not any(target.lives for target in fence.targets)
            ]
            if not gone:
                break
        return gone


def _resolved(volume: HeldVolume, before: Mapping[str, HeldVolume]) -> HeldVolume:
    """Return *volume* with its deadline; the past if it was never told."""
    known = before.get(volume.id)
    deadline_s = known.deadline_s if volume.as_before and known else volume.deadline_s
    return replace(volume, deadline_s=deadline_s, as_before=False)
