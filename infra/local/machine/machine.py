"""What builds need of this machine: an engine, a registry, an image to start from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from infra.local.kept import Kept
from infra.local.machine import registry
from infra.local.machine.engine import Engine, NoEngine
from infra.local.machine.engines import install_missing, logged_in, running_engine
from infra.local.machine.python_image import python_image
from infra.local.machine.registry_proxy import Proxy

STATE = Path(__file__).parents[3] / ".slipway"  # what is worth keeping between runs: base image, layers


@dataclass(frozen=True)
class Machine:
    """`registry` is host:port, `registry_login` user:password, which the engine knows; `base_image` a
    reference with Python in it; `registry_proxy` what stands before the registry, in this process."""

    engine: Engine
    registry: str
    registry_login: str
    base_image: str
    registry_proxy: Proxy | None = None


@contextmanager
def machine(
    state: Path, say: Callable[[str], None], only: str | None = None, kept: Kept | None = None
) -> Iterator[Machine]:
    """An engine that was seen to work and a registry, until the block is left; the registry's images, port and login
    are those that are kept. Raises NoEngine, which says what to install."""
    with (
        running_engine(state, say, only) as found,
        registry.serve(state, found, say, kept) as images,
        logged_in(found, images.host, images.login) as engine,
    ):
        yield Machine(engine, images.host, images.login, python_image(engine, state, say), images.proxy)


@contextmanager
def installed_machine(state: Path, say: Callable[[str], None], kept: Kept | None = None) -> Iterator[Machine]:
    """Like `machine`; what is missing is installed where that is possible."""
    with ExitStack() as closing:
        try:
            ready = closing.enter_context(machine(state, say, kept=kept))
        except NoEngine as missing:
            say(str(missing))
            install_missing(say)
            ready = closing.enter_context(machine(state, say, kept=kept))
        yield ready
