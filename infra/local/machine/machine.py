"""What builds need of this machine: an engine, a registry, an image to start from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from infra.local.machine import registry
from infra.local.machine.engine import Engine, NoEngine
from infra.local.machine.engines import install_missing, logged_in, running_engine
from infra.local.machine.python_image import python_image
from infra.local.machine.registry_proxy import Proxy
from infra.local.storage import Storage

STATE = Path(__file__).parents[3] / ".slipway"  # base image and layers, for later runs


@dataclass(frozen=True)
class Machine:
    """`registry` is host:port, `registry_login` user:password, which the engine has; `base_image` the reference of an
    image with Python; `registry_proxy` the proxy before the registry, if it runs in this process."""

    engine: Engine
    registry: str
    registry_login: str
    base_image: str
    registry_proxy: Proxy | None = None


@contextmanager
def machine(
    state: Path, say: Callable[[str], None], only: str | None = None, storage: Storage | None = None
) -> Iterator[Machine]:
    """An engine that has built something and a registry, until the block is left. With `storage`, the registry has the
    images, port and login of the start before. Raises NoEngine, which says what to install."""
    with (
        running_engine(state, say, only) as found,
        registry.serve(state, found, say, storage) as images,
        logged_in(found, images.host, images.login) as engine,
    ):
        yield Machine(engine, images.host, images.login, python_image(engine, state, say), images.proxy)


@contextmanager
def installed_machine(state: Path, say: Callable[[str], None], storage: Storage | None = None) -> Iterator[Machine]:
    """Like `machine`, but first installs what is missing, if it can. Raises NoEngine."""
    with ExitStack() as closing:
        try:
            ready = closing.enter_context(machine(state, say, storage=storage))
        except NoEngine as missing:
            say(str(missing))
            install_missing(say)
            ready = closing.enter_context(machine(state, say, storage=storage))
        yield ready
