"""What a running server is made of, handed to whoever needs it."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

from app.metrics import Metrics
from app.models import Models
from app.settings import Settings


@dataclasses.dataclass(frozen=True)
class Service:
    """The parts that one app's requests share."""

    settings: Settings
    models: Models
    decoders: ThreadPoolExecutor
    metrics: Metrics

    def check_live(self) -> None:
        """Raises `NotReady` where a model's inference has ended."""
        for model in self.models:
            model.check_live()

    async def check_ready(self) -> None:
        """Raises `NotReady` where a model computes nothing yet, or any more."""
        for model in self.models:
            await model.check_ready()
