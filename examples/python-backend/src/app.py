"""A storage backend in memory: the least that keeps every law of the interface. Copy it and put your store in place of
`records.Records`.

This file is the border: one method for each function of the interface, which asks the store and hands back its answer.
Nothing in it awaits, so every call runs from its beginning to its end before another begins. That alone makes batches
atomic and versions visible in their order. A backend that awaits something between reading and writing has to see to
both by other means.

Every function of the interface may fail with an `Error`, which is raised inside of `Err`. Any other exception that
leaves a method ends the instance, and what it held in memory is gone.

Import at the top of a file only: there is no file system to import from once the component runs.
"""

from typing import ClassVar, override

from componentize_py_types import Err
from wit_world import exports
from wit_world.exports.store import (
    Change, ChangesPage, ChangesRequest, Checkpoint, Evicted, EvictRequest, LeaseRequest, Observed, Options, Pruned,
    PutResult, ScanPage, ScanRequest, Service, Settings, Statistics, StoreInfo, TypedOptions,
)  # fmt: skip
from wit_world.imports import log
from wit_world.imports.types import Error_Configuration, Error_Internal, Key, Position, Record

from records import Records

DEFAULT_LIMIT_MIB = 512


class Store(exports.Store):
    """What the component exports. The name is that of the interface. Each call gets an object of its own, so what is to
    last belongs to the class or to a module."""

    # The store, once it is open. Calls do not overlap, so this needs no lock.
    records: ClassVar[Records]

    @override
    async def open(self, settings: Settings) -> StoreInfo:
        limit_mib = limit_from(settings.connection_string)
        Store.records = Records(settings.new_server_version, limit_mib << 20)
        log.write(log.Level.INFO, "the store is new and empty")
        return StoreInfo(
            summary=f"example in Python: memory, at most {limit_mib} MiB",
            # Nobody else can write here, so the host learns of changes from its own calls and never calls `wait`.
            shared=False,
            # The content goes with the instance: the next one takes the new server version, and clients begin anew.
            durable=False,
            position=self.records.position(),
        )

    @override
    async def close(self) -> None:
        pass

    @override
    async def health(self) -> None:
        pass

    @override
    async def put(self, batches: list[list[Change]], now: int) -> PutResult:
        # Nobody else sets options in this store, so that the host need not be told of a change.
        return PutResult(self.records.server_version, None, self.records.put(batches, now))

    @override
    async def get(self, keys: list[Key]) -> list[Record | None]:
        return [self.records.get(key) for key in keys]

    @override
    async def scan(self, request: ScanRequest) -> ScanPage:
        # `request.hint` is ignored: the host checks every record again, so a hint saves time and changes no answer.
        return self.records.scan(request)

    @override
    async def count(self, type: str | None) -> int:
        return self.records.count(type)

    @override
    async def list_types(self) -> list[str]:
        return self.records.types()

    @override
    async def current(self) -> Position:
        return self.records.position()

    @override
    async def changes(self, request: ChangesRequest) -> ChangesPage:
        return self.records.changes(request)

    @override
    async def wait(self, seen: Observed) -> Observed:
        raise Err(Error_Internal("this store is not shared, so there is nothing to wait for"))

    @override
    async def list_options(self) -> list[TypedOptions]:
        return [TypedOptions(type, options) for type, options in sorted(self.records.options.items(), key=first)]

    @override
    async def set_options(self, type: str, options: Options | None) -> None:
        if options is None:
            self.records.options.pop(type, None)
        else:
            self.records.options[type] = options

    @override
    async def lease(self, requests: list[LeaseRequest], now: int) -> list[bool]:
        return [self.records.lease(request, now) for request in requests]

    @override
    async def get_checkpoint(self) -> Checkpoint:
        return self.records.checkpoint

    @override
    async def set_checkpoint(self, checkpoint: Checkpoint) -> None:
        self.records.checkpoint = checkpoint

    @override
    async def report_services(self, services: list[Service], ttl: int, now: int) -> None:
        self.records.report_services(services, now + ttl)

    @override
    async def list_services(self, now: int) -> list[Service]:
        return self.records.list_services(now)

    @override
    async def prune(self, before: int, max_changes: int) -> Pruned:
        return self.records.prune(before, max_changes)

    @override
    async def evict(self, request: EvictRequest, now: int) -> Evicted:
        return self.records.evict(request, now)

    @override
    async def clear(self, new_server_version: int) -> Position:
        return self.records.clear(new_server_version)

    @override
    async def measure(self) -> Statistics:
        return self.records.measure()


def limit_from(connection_string: str | None) -> int:
    """The store's limit in MiB."""
    text = connection_string or str(DEFAULT_LIMIT_MIB)
    if text.isascii() and text.isdigit() and len(text) <= 4 and 1 <= int(text) <= 2048:
        return int(text)
    # The text of the setting stays out of the error: in other stores it holds a password.
    raise Err(
        Error_Configuration("the connection string must be empty, or the store's limit in MiB, from 1 to 2048")
    )


def first(pair: tuple[str, Options]) -> str:
    return pair[0]
