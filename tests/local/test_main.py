"""How `python -m infra.local` ends when it is interrupted."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from infra.local import __main__ as program


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in program.INTERRUPTS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@contextmanager
def interrupted(number: int) -> Iterator[Any]:
    """A machine that does not end well."""
    try:
        signal.raise_signal(number)
        yield None
    finally:
        raise RuntimeError("the engine took too long")


@pytest.mark.parametrize("number", program.INTERRUPTS)
@pytest.mark.parametrize(("command", "status"), [("up", 0), ("demo", 130)])
def test_an_interruption_decides_the_status_whatever_else_goes_wrong(
    number: int,
    command: str,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["infra.local", command])
    monkeypatch.setattr(program, "installed_machine", lambda *_: interrupted(number))

    assert program.main() == status
    said = capsys.readouterr().err.splitlines()
    assert said[-2:] == ["While the stack stopped: the engine took too long", "Stopped."]


def test_an_error_without_an_interruption_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def broken(*_: Any) -> Iterator[Any]:
        raise RuntimeError("a bug")
        yield

    monkeypatch.setattr(sys, "argv", ["infra.local", "up"])
    monkeypatch.setattr(program, "installed_machine", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        program.main()
