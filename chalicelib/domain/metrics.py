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
        assert after.finished_at is not None
        measures[after.last_status.value.title().replace("_", "")] = 1
        if after.worked_since is not None:  # where waiting ends; a build that never was at work has neither time
            measures["QueuedSeconds"] = (after.worked_since - after.created_at).total_seconds()
            measures["BuildingSeconds"] = (after.finished_at - after.worked_since).total_seconds()
        if after.stop_requested_at is not None:
            measures["StoppingSeconds"] = (after.finished_at - after.stop_requested_at).total_seconds()
    return measures
