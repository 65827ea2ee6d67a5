"""The store itself: live records, the log of changes and the small state around them, in ordinary collections.

Python compares strings by code point, which is the order of their bytes in UTF-8 and so the one that the interface
asks for. Ids are kept in order as they change: sorting them when they are read would make one call in many take a
second.
"""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

from componentize_py_types import Err, Ok, Result
from wit_world.exports.store import (
    Change, ChangesPage, ChangesRequest, Checkpoint, Evicted, EvictRequest, LeaseAction_Hold, LeaseRequest,
    Operation_Upsert, Options, Outcome, Outcome_Deleted, Outcome_Missing, Outcome_Stored, Pruned, Refusal,
    Refusal_Conflict, Refusal_Exhausted, ScanPage, ScanRequest, Service, Statistics, TypeStatistics,
)  # fmt: skip
from wit_world.imports.types import Error_Pruned, Key, Position, Record

from ordered import Ordered

# What a record costs besides its bytes, roughly: the objects and their places in the collections.
OVERHEAD = 1024

# The tombstones that one call of `put` answers with hold no more bytes than this: the host takes no larger answer.
ANSWER_BYTES = 64 << 20

# The tombstones of one eviction hold no more bytes than this, or are one. The request bounds their number alone.
EVICTION_BYTES = 4 << 20


class Entry(NamedTuple):
    """A record or a tombstone, never changed once it is made, with its size as the interface counts it."""

    record: Record
    size: int

    @staticmethod
    def of(record: Record) -> "Entry":
        return Entry(record, size(record.type, record.id, record.data))

    def cost(self) -> int:
        return self.size + OVERHEAD


class Table:
    """The live records of one type."""

    def __init__(self) -> None:
        self.ids = Ordered()
        # In the order of their versions, since each new one goes to the end: evictions find the lowest without a search.
        self.entries: OrderedDict[str, Entry] = OrderedDict()
        self.bytes = 0

    def insert(self, entry: Entry) -> None:
        self.ids.add(entry.record.id)
        self.entries[entry.record.id] = entry
        self.bytes += entry.size

    def replace(self, entry: Entry) -> None:
        id = entry.record.id
        self.bytes += entry.size - self.entries[id].size
        self.entries[id] = entry
        self.entries.move_to_end(id)

    def remove(self, id: str) -> None:
        self.ids.remove(id)
        self.bytes -= self.entries.pop(id).size

    def due(self, request: EvictRequest) -> Iterator[Entry]:
        """The records to evict, lowest versions first."""
        surplus = 0 if request.keep is None else max(0, len(self.entries) - request.keep)
        yield from islice(self.entries.values(), surplus)
        if request.modified_before is not None:
            # The clock may have been set back, so the order of versions is not that of times: all must be looked at.
            for entry in islice(self.entries.values(), surplus, None):
                if entry.record.modified_at < request.modified_before:
                    yield entry


class Records:
    """Records and what belongs to them."""

    def __init__(self, server_version: int, limit_bytes: int) -> None:
        self.server_version = server_version
        self.latest_version = 0  # The newest change ever made. Nothing lowers it.
        self.pruned_version = 0  # The newest change that is no longer in the log; 0 where none was removed.
        self.log: list[Entry] = []  # In the order of versions.
        self.tables: dict[str, Table] = {}  # A type without live records is not here.
        self.options: dict[str, Options] = {}  # The host enforces capacity and ttl; this store has no indexes.
        self.checkpoint = Checkpoint(0, 0)
        self.leases: dict[str, tuple[str, int]] = {}  # Holder and end of each.
        self.services: dict[tuple[int, str], int] = {}  # The end of each one's time, by kind and endpoint.
        # What live records cost, and what the log does. What is in both counts twice, which errs on the safe side.
        self.live_bytes = 0
        self.log_bytes = 0
        self.limit_bytes = limit_bytes
        self.pruned_for_space = 0

    def position(self) -> Position:
        earliest = self.log[0].record.version if self.log else 0
        return Position(self.server_version, earliest, self.latest_version)

    def get(self, key: Key) -> Record | None:
        entry = self.entry(key)
        return entry.record if entry else None

    def entry(self, key: Key) -> Entry | None:
        table = self.tables.get(key.type)
        return table.entries.get(key.id) if table else None

    # Writing

    def put(self, batches: list[list[Change]], now: int) -> list[Result[list[Outcome], Refusal]]:
        """Applies batches, each of them whole or not at all."""
        results: list[Result[list[Outcome], Refusal]] = []
        # A delete answers with the last data of its record, so a small call may ask for a very large answer.
        room = ANSWER_BYTES
        for batch in batches:
            answer = self.tombstones_of(batch)
            result = self.put_one(batch, now, answer <= room)
            if isinstance(result, Ok):
                room -= answer
            results.append(result)
        return results

    def put_one(self, batch: list[Change], now: int, answer_fits: bool) -> Result[list[Outcome], Refusal]:
        """Applies a batch, all of it or nothing: every reason to refuse it is looked for before the first step is
        taken, so there is never anything to undo."""
        refusal = self.conflict_in(batch)
        if not refusal and not answer_fits:
            refusal = Refusal_Exhausted("their last data is too much for one answer: delete fewer records at once")
        refusal = refusal or self.make_room(batch)
        if refusal:
            return Err(refusal)
        return Ok([self.apply(change, now) for change in batch])

    def tombstones_of(self, batch: list[Change]) -> int:
        """The bytes of the tombstones that a batch will leave."""
        left: dict[tuple[str, str], int] = {}
        tombstones = 0
        for change in batch:
            key = change.key
            name = (key.type, key.id)
            if isinstance(change.operation, Operation_Upsert):
                left[name] = size(key.type, key.id, change.operation.value.data)
                continue
            entry = self.entry(key)
            tombstones += left.get(name, entry.size if entry else 0)
            left[name] = 0
        return tombstones

    def conflict_in(self, batch: list[Change]) -> Refusal | None:
        """Compares the expected versions with what the steps before each will have left, without taking any."""
        if all(change.expected is None for change in batch):
            return None
        next_version = self.latest_version
        left: dict[tuple[str, str], int] = {}
        for index, change in enumerate(batch):
            name = (change.key.type, change.key.id)
            if name not in left:
                record = self.get(change.key)
                left[name] = record.version if record else 0
            if change.expected is not None and change.expected != left[name]:
                return Refusal_Conflict(index)
            if isinstance(change.operation, Operation_Upsert):
                next_version += 1
                left[name] = next_version
            elif left[name] != 0:
                next_version += 1
                left[name] = 0
        return None

    def make_room(self, batch: list[Change]) -> Refusal | None:
        """Gives up the oldest changes until a batch fits, or refuses it where live records alone leave no room. A
        batch of deletes is never refused, since it is the way out of a full store."""
        needed = 0
        for change in batch:
            if isinstance(change.operation, Operation_Upsert):
                needed += 2 * (size(change.key.type, change.key.id, change.operation.value.data) + OVERHEAD)
        if needed and self.live_bytes + needed > self.limit_bytes:
            return Refusal_Exhausted(
                f"the live records hold {self.live_bytes} of {self.limit_bytes} bytes: delete some, or raise the limit"
                " in the connection string"
            )
        excess = self.live_bytes + self.log_bytes + needed - self.limit_bytes
        if excess > 0:
            count = 0
            for entry in islice(self.log, len(self.log) - 1):
                if excess <= 0:
                    break
                excess -= entry.cost()
                count += 1
            self.drop_oldest(count)
            self.pruned_for_space += count
        return None

    def apply(self, change: Change, now: int) -> Outcome:
        if isinstance(change.operation, Operation_Upsert):
            return Outcome_Stored(self.upsert(change.key, change.operation.value.data, now))
        tombstone = self.remove(change.key.type, change.key.id, now)
        return Outcome_Deleted(tombstone) if tombstone else Outcome_Missing()

    def upsert(self, key: Key, data: bytes | None, now: int) -> int:
        entry = Entry.of(Record(self.next_version(), key.type, key.id, data, now, None))
        table = self.tables.setdefault(key.type, Table())
        previous = table.entries.get(key.id)
        if previous:
            self.live_bytes -= previous.cost()
            table.replace(entry)
        else:
            table.insert(entry)
        self.live_bytes += entry.cost()
        self.append(entry)
        return entry.record.version

    def remove(self, type: str, id: str, now: int) -> Record | None:
        """Removes a record and appends its tombstone: the last data under a version of its own. The only way that a
        record goes, save for `clear`."""
        table = self.tables.get(type)
        entry = table.entries.get(id) if table else None
        if not table or not entry:
            return None
        table.remove(id)
        if not table.entries:
            del self.tables[type]
        self.live_bytes -= entry.cost()
        tombstone = replace(entry.record, version=self.next_version(), modified_at=now, deleted_at=now)
        self.append(Entry(tombstone, entry.size))
        return tombstone

    def next_version(self) -> int:
        self.latest_version += 1
        return self.latest_version

    def append(self, entry: Entry) -> None:
        self.log.append(entry)
        self.log_bytes += entry.cost()

    # Reading

    def scan(self, request: ScanRequest) -> ScanPage:
        """A page of live records. The next page starts after a key and not at a place in a list, so what is written
        between two pages moves nothing: a record that is not touched is there exactly once."""
        records, more = page(self.live_after(request), request.max_records, request.max_bytes)
        return ScanPage(records, more, self.position())

    def live_after(self, request: ScanRequest) -> Iterator[Entry]:
        after = request.after
        for type in sorted(self.tables) if request.type is None else [request.type]:
            table = self.tables.get(type)
            if not table or (after and type < after.type):
                continue
            for id in table.ids.after(after.id) if after and type == after.type else table.ids:
                yield table.entries[id]

    def count(self, type: str | None) -> int:
        if type is None:
            return sum(len(table.entries) for table in self.tables.values())
        table = self.tables.get(type)
        return len(table.entries) if table else 0

    def types(self) -> list[str]:
        return sorted(self.tables)

    def changes(self, request: ChangesRequest) -> ChangesPage:
        """A page of the change log."""
        if request.after < self.pruned_version:
            raise Err(Error_Pruned(self.pruned_version))
        start = bisect_right(self.log, request.after, key=version_of)
        later = islice(self.log, start, None)
        wanted = (entry for entry in later if request.type is None or entry.record.type == request.type)
        records, more = page(wanted, request.max_records, request.max_bytes)
        # Without more, everything up to the newest change was looked at, or the reader is ahead of it.
        through = records[-1].version if more else max(self.latest_version, request.after)
        return ChangesPage(records, through, self.position())

    # Removing

    def prune(self, before: int, max_changes: int) -> Pruned:
        """Removes changes older than `before` from the log. The newest stays, however old."""
        due = 0
        for entry in islice(self.log, len(self.log) - 1 if self.log else 0):
            if entry.record.modified_at >= before or due > max_changes:
                break
            due += 1
        removed = min(due, max_changes)
        self.drop_oldest(removed)
        return Pruned(removed, due > removed, self.position())

    def drop_oldest(self, count: int) -> None:
        if count > 0:
            self.log_bytes -= sum(entry.cost() for entry in islice(self.log, count))
            self.pruned_version = self.log[count - 1].record.version
            del self.log[:count]

    def evict(self, request: EvictRequest, now: int) -> Evicted:
        """Removes the records of a type that are too old or too many, lowest versions first."""
        table = self.tables.get(request.type)
        due, more = page(table.due(request) if table else [], request.max_records, EVICTION_BYTES)
        tombstones = [self.remove(record.type, record.id, now) for record in due]
        return Evicted(self.server_version, [tombstone for tombstone in tombstones if tombstone], more)

    def clear(self, new_server_version: int) -> Position:
        """Removes all records, changes and options. Versions go on, so that none is ever used twice; leases and
        services stay, since they say who runs and not what is stored."""
        self.server_version = new_server_version
        self.pruned_version = 0
        self.log.clear()
        self.tables.clear()
        self.options.clear()
        self.checkpoint = Checkpoint(0, 0)
        self.live_bytes = 0
        self.log_bytes = 0
        return self.position()

    # Small state

    def lease(self, request: LeaseRequest, now: int) -> bool:
        """Answers one request. What has run out is forgotten first, so whatever is left is held."""
        self.leases = {name: (id, until) for name, (id, until) in self.leases.items() if until > now}
        holder, _ = self.leases.get(request.name, (None, 0))
        if isinstance(request.action, LeaseAction_Hold):
            if holder is not None and holder != request.id:
                return False
            self.leases[request.name] = (request.id, now + request.action.value)
            return True
        if holder != request.id:
            return False
        del self.leases[request.name]
        return True

    def report_services(self, services: list[Service], until: int) -> None:
        for service in services:
            self.services[service.kind, service.endpoint] = until

    def list_services(self, now: int) -> list[Service]:
        """The services whose time has not run out; the others are forgotten."""
        self.services = {service: until for service, until in self.services.items() if until > now}
        return [Service(kind, endpoint) for kind, endpoint in sorted(self.services)]

    def measure(self) -> Statistics:
        types = [TypeStatistics(type, len(self.tables[type].entries), self.tables[type].bytes) for type in self.types()]
        used = self.live_bytes + self.log_bytes
        return Statistics(types, len(self.log), used, self.limit_bytes, self.pruned_for_space)


def page(entries: Iterable[Entry], max_records: int, max_bytes: int) -> tuple[list[Record], bool]:
    """Takes records until the next would cross a bound, but one at least; True if any are left."""
    records: list[Record] = []
    total = 0
    for entry in entries:
        total += entry.size
        if records and (total > max_bytes or len(records) >= max_records):
            return records, True
        records.append(entry.record)
    return records, False


def version_of(entry: Entry) -> int:
    return entry.record.version


def size(type: str, id: str, data: bytes | None) -> int:
    """The bytes of a record as the interface counts them."""
    return len(type.encode()) + len(id.encode()) + len(data or b"")
