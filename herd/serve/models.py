"""The models on offer, each with an engine that is opened when it is first asked for."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from herd.base.errors import ConfigError
from herd.engine.engine import Engine
from herd.serve.errors import ApiError
from herd.serve.worker import Worker
from herd.tokenizer.codec import DialogCodec


@dataclass(frozen=True)
class Offer:
    """A model by its id. `base`: it continues text and holds no conversations. created: Unix seconds.

    context: positions that prompt and answer may have together. `open` loads it; it may take minutes.
    """

    id: str
    codec: DialogCodec
    base: bool
    context: int
    created: int
    open: Callable[[], Engine]

    def facts(self, guard: str | None) -> dict[str, Any]:
        """Return its entry in the list of models; `herd` holds what the API has no field for."""
        own = {"guard": guard, "context": self.context, "base": self.base}
        return {"id": self.id, "object": "model", "created": self.created, "owned_by": "herd", "herd": own}


class Models:
    """Offers by id, the first one being the default; an engine stays once it is open."""

    def __init__(self, offers: Sequence[Offer], *, most_open: int) -> None:
        if not offers:
            raise ConfigError("no model to serve")
        self.offers = {offer.id: offer for offer in offers}
        self._most_open = most_open
        self._workers: dict[str, Worker] = {}
        self._locks = {offer.id: asyncio.Lock() for offer in offers}

    @property
    def default(self) -> Offer:
        """The model that is opened when the server starts."""
        return next(iter(self.offers.values()))

    def offer(self, name: str) -> Offer:
        """Return the offer of this id. Raises ApiError."""
        if name not in self.offers:
            there = ", ".join(self.offers)
            raise ApiError(
                f"no model {name!r:.80} here; there are {there}", status=404, code="model_not_found", param="model"
            )
        return self.offers[name]

    def open(self, offer: Offer) -> Worker:
        """Open an engine now. Raises HerdError when it can't be."""
        worker = Worker(offer.open(), name=offer.id, most_open=self._most_open)
        self._workers[offer.id] = worker
        return worker

    async def worker(self, offer: Offer) -> Worker:
        """Return the offer's worker, opened once however many ask. Raises ApiError when it can't be."""
        if offer.id not in self._workers:
            async with self._locks[offer.id]:
                if offer.id not in self._workers:
                    try:
                        return await asyncio.to_thread(self.open, offer)
                    except Exception as error:
                        # why not may name paths of this machine: that is for the log
                        raise ApiError(f"{offer.id} can't be opened; the log says why", status=503) from error
        return self._workers[offer.id]

    def workers(self) -> Iterator[Worker]:
        """Yield the engines that are open."""
        yield from list(self._workers.values())

    def stop(self) -> None:
        """End all engines' threads."""
        for worker in self.workers():
            worker.stop()
