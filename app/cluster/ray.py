"""The server behind Ray Serve, as replicas on one machine or many: `serve run docker/ray/serve.yaml`."""

import logging
import math
from collections.abc import Iterable, Iterator
from typing import Any

import ray
from fastapi import FastAPI
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.registry import Collector
from ray import serve
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.logs import set_up_logging
from app.models import open_detector
from app.request_id import HEADER
from app.routes.admin import LocalAdmin
from app.schemas import ModelList
from app.server import create_app
from app.service import Service
from app.settings import InvalidSettings, Settings, read_settings

_NAME = "detection"
_ANSWER_SECONDS = 30  # longest that a replica may take to answer another; a new model is warmed up meanwhile

logger = logging.getLogger(__name__)


class Replica:
    """One process that serves: its app, and what Ray and the other replicas ask it.

    Raises `InvalidSettings`, and what `Detector` raises.
    """

    def __init__(self) -> None:
        settings = _fit(read_settings([]))
        set_up_logging(settings.log_level, settings.log_format)
        detectors = [open_detector(path, settings) for path in settings.find_models()]
        self._app = create_app(settings, *detectors, admin=_AllReplicas())
        self._app.add_middleware(_DropRequestId)
        self._service: Service = self._app.state.service
        for model in self._service.models:
            model.warm_up()  # a replica gets no requests before it is built

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._app

    def check_health(self) -> None:
        """Raises `NotReady` where inference has ended or hangs; Ray then puts another replica in this one's place."""
        self._service.check_live()

    def collect(self) -> list[Metric]:
        """Returns this replica's figures, its name among their labels."""
        replica = serve.get_replica_context().replica_tag
        metrics = list(self._service.metrics.registry.collect())
        for metric in metrics:
            metric.samples = [sample._replace(labels=sample.labels | {"replica": replica}) for sample in metric.samples]
        return metrics

    async def reload(self) -> ModelList:
        """Loads what has changed, here."""
        return await LocalAdmin(self._service).reload()


class _AllReplicas:
    """Asks every replica what `Admin` asks one."""

    async def expose(self) -> bytes:
        registry = CollectorRegistry()
        registry.register(_Merged(await _broadcast(Replica.collect.__name__)))
        return generate_latest(registry)

    async def reload(self) -> ModelList:
        lists: list[ModelList] = await _broadcast(Replica.reload.__name__)
        models = {model.name: model for each in lists for model in each.models}
        refused = {(refusal.file, refusal.reason): refusal for each in lists for refusal in each.refused}
        return ModelList(models=list(models.values()), refused=list(refused.values()))


class _Merged(Collector):
    """The same metrics of several registries as those of one."""

    def __init__(self, registries: Iterable[Iterable[Metric]]) -> None:
        self._registries = registries

    def collect(self) -> Iterator[Metric]:
        merged: dict[str, Metric] = {}
        for metric in (metric for registry in self._registries for metric in registry):
            if metric.name in merged:
                merged[metric.name].samples += metric.samples
            else:
                merged[metric.name] = metric
        yield from merged.values()


class _DropRequestId:
    """ASGI middleware that leaves the header with the request's id to Ray, which sends the same."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def leave(message: Message) -> None:
            if message["type"] == "http.response.start":
                del MutableHeaders(scope=message)[HEADER]
            await send(message)

        await self._app(scope, receive, leave)


async def _broadcast(method: str) -> list[Any]:
    """Returns what the replicas answer; one that is just ending need not."""
    asked = serve.get_deployment_handle(_NAME).broadcast(method)
    answers = await asked.results_async(timeout_s=_ANSWER_SECONDS, return_exceptions=True)
    for failure in (answer for answer in answers if isinstance(answer, Exception)):
        logger.warning("a replica does not answer: %s", failure)
    return [answer for answer in answers if not isinstance(answer, Exception)]


def _fit(settings: Settings) -> Settings:
    """Gives a replica as many threads as Ray has given it CPUs, unless they are set; raises `InvalidSettings`."""
    if settings.metrics_port is not None:
        raise InvalidSettings("metrics_port: replicas have no ports of their own; /metrics at Ray's has those of all")
    cpus: float = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)  # type: ignore[no-untyped-call]
    threads = {"threads", "decode_threads"} - settings.model_fields_set
    return settings.model_copy(update=dict.fromkeys(threads, max(1, math.ceil(cpus))))


# more requests in hand than the server's own `max_queue`: a refusal is then its own, and says when to come again
deployment = serve.deployment(name=_NAME, max_ongoing_requests=96)(serve.ingress()(Replica))
app = deployment.bind()
