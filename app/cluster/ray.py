"""The server as Ray Serve replicas, on one machine or many: `serve run docker/ray/serve.yaml`."""

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

from app.inference.models import open_detectors
from app.routes.admin import LocalAdmin
from app.schemas import ModelList
from app.server import create_app
from app.service import Service
from app.settings import InvalidSettings, Settings, read_settings, warn_of_unknown_variables
from app.telemetry.logs import set_up_logging
from app.telemetry.request_id import HEADER

_NAME = "detection"
_BROADCAST_TIMEOUT_SECONDS = 30  # for the replicas' responses; a reload includes the warm-up of new models

logger = logging.getLogger(__name__)


class Replica:
    """One serving process: its app, and the methods that Ray and other replicas call.

    Raises `InvalidSettings`, and what `Detector` raises.
    """

    def __init__(self) -> None:
        settings = _fit(read_settings([]))
        set_up_logging(settings.log_level, settings.log_format)
        warn_of_unknown_variables()
        self._app = create_app(settings, *open_detectors(settings), admin=_AllReplicas())
        self._app.add_middleware(_DropRequestId)
        self._service: Service = self._app.state.service
        for model in self._service.models:
            model.warm_up()  # Ray sends no requests before the constructor returns

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._app

    def check_health(self) -> None:
        """Raises `NotReady` if inference has ended or hangs; Ray then replaces this replica."""
        self._service.check_live()

    def collect(self) -> list[Metric]:
        """Returns this replica's metrics, with a label `replica`."""
        replica = serve.get_replica_context().replica_tag
        metrics = list(self._service.metrics.registry.collect())
        for metric in metrics:
            metric.samples = [sample._replace(labels=sample.labels | {"replica": replica}) for sample in metric.samples]
        return metrics

    async def reload(self) -> ModelList:
        """Reloads the models of this replica."""
        return await LocalAdmin(self._service).reload()


class _AllReplicas:
    """An `Admin` over all replicas."""

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
    """Merges the metrics of several registries into one."""

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
    """ASGI middleware that removes the request id header: Ray adds the same one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_without_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                del MutableHeaders(scope=message)[HEADER]
            await send(message)

        await self._app(scope, receive, send_without_id)


async def _broadcast(method: str) -> list[Any]:
    """Calls a method on all replicas and returns the results; logs failures, such as of replicas that are stopping."""
    responses = serve.get_deployment_handle(_NAME).broadcast(method)
    results = await responses.results_async(timeout_s=_BROADCAST_TIMEOUT_SECONDS, return_exceptions=True)
    for failure in (result for result in results if isinstance(result, Exception)):
        logger.warning("a replica does not respond: %s", failure)
    return [result for result in results if not isinstance(result, Exception)]


def _fit(settings: Settings) -> Settings:
    """Sets the threads to the CPUs that Ray has assigned, unless they are set; raises `InvalidSettings`."""
    if settings.metrics_port is not None:
        raise InvalidSettings("metrics_port: replicas have no ports; /metrics on Ray's port covers all replicas")
    cpus: float = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)  # type: ignore[no-untyped-call]
    threads = {"threads", "decode_threads"} - settings.model_fields_set
    return settings.model_copy(update=dict.fromkeys(threads, max(1, math.ceil(cpus))))


# above the server's own `max_queue`, so that the server rejects requests itself, with Retry-After
deployment = serve.deployment(name=_NAME, max_ongoing_requests=96)(serve.ingress()(Replica))
app = deployment.bind()
