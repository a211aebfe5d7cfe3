"""Informs other programs about builds, after the changes are stored."""

from collections.abc import Callable
from contextlib import suppress

from chalicelib.domain.build import DONE, Build, StatusEntry
from chalicelib.errors import NotFound
from chalicelib.ports import Announcement, Delivery, Services


def announce(
    services: Services, before: Build | None, build: Build, message: Callable[[Build, StatusEntry], Announcement]
) -> None:
    """Announces the statuses that a change has added; `before` is None for a new build. Raises Unavailable unless all
    were sent: then the change must be handled again, and what was sent is sent twice."""
    for entry in build.history[len(before.history) if before else 0 :]:
        announcement = message(build, entry)
        if services.settings.event_bus:
            services.event_bus.put(announcement)
        if build.reply_to and build.reply_about and (entry.id == 1 or entry.status in DONE):
            with suppress(NotFound):  # the queue was deleted
                services.replies.send(build.reply_to, build.reply_about, announcement)
        if entry.status in DONE:
            project = services.projects.get(build.key.owner, build.key.project)
            for hook in project.hooks if project else ():
                if not hook.is_disabled:
                    services.hook_queue.send(Delivery(build.key.project_key, hook.id, announcement))
