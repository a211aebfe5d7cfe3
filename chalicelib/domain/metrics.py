"""What can be measured when the record of a build changes, by the names that metrics have."""

from chalicelib.domain.build import Build


def of_change(before: Build, after: Build) -> dict[str, float]:
    """Numbers by name: `…Seconds` are times, others counts; None for what is no step in a build's life."""
    measures: dict[str, float] = {}
    if after.handle is not None and before.handle is None:
        measures["Submissions"] = 1
    if after.attempt > max(before.attempt, 1):
        measures["Retries"] = 1
    if after.is_done and not before.is_done:
        measures |= _of_end(after)
    return measures


def _of_end(build: Build) -> dict[str, float]:
    """Waiting ends where the executor begins to work; a build that never did has neither time."""
    measures: dict[str, float] = {build.last_status.value.title().replace("_", ""): 1}
    assert build.finished_at is not None
    if build.worked_since is not None:
        measures["QueuedSeconds"] = (build.worked_since - build.created_at).total_seconds()
        measures["BuildingSeconds"] = (build.finished_at - build.worked_since).total_seconds()
    if build.stop_requested_at is not None:
        measures["StoppingSeconds"] = (build.finished_at - build.stop_requested_at).total_seconds()
    return measures
