"""What the API says about what goes when."""

from __future__ import annotations

from tests.api.conftest import Api


def test_an_archived_build_says_when_it_goes(api: Api) -> None:
    api.ok("POST", "/ada/vision/builds", {"is_managed": False})
    assert api.ok("GET", "/ada/vision/builds/1")["purge_at"] is None
    api.ok("POST", "/ada/vision/builds/1/archive")
    (row,) = api.ok("GET", "/archives/ada/builds")["results"]
    assert (row["updated_at"], row["purge_at"]) == ("2024-03-01T12:00:00Z", "2024-03-08T12:00:00Z")


def test_the_preview_names_what_goes_with_the_time_and_the_reason(api: Api) -> None:
    api.ok("POST", "/ada/vision/archive")
    api.ok("DELETE", "/ada/secret")

    found = api.ok("GET", "/cleanup", as_="root")

    assert found["next"] == [
        {"name": "ada/secret", "because": "deleted", "purge_at": "2024-03-01T13:00:00Z"},
        {"name": "ada/vision", "because": "archived", "purge_at": "2024-03-08T12:00:00Z"},
    ]
    assert found["rules"][0] == {
        "what": "builds",
        "goes": "7 days after archiving, once stopped",
        "by": "clean_up",
        "metric": "BuildsPurged",
        "setting": "purge_after_days",
    }
