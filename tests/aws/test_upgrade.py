"""An update of a stack that commit 45232c2 made: table and bucket stay, and CloudFormation can do it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

DEPLOYED = json.loads(Path(__file__).with_name("resources-45232c2.json").read_text())
# A change of these makes CloudFormation create another resource, which is empty.
REPLACING = {
    "Table": ("TableName", "KeySchema", "ImportSourceSpecification"),
    "Bucket": ("BucketName", "BucketNamePrefix", "ObjectLockEnabled"),
}


@pytest.mark.parametrize("name", REPLACING)
def test_table_and_bucket_are_not_replaced(name: str, written: Any) -> None:
    resource, deployed = written["Resources"][name], DEPLOYED[name]
    assert (resource["Type"], resource.get("Condition")) == (deployed["Type"], deployed.get("Condition"))
    for each in REPLACING[name]:
        assert resource["Properties"].get(each) == deployed["Properties"].get(each), each
    assert resource["DeletionPolicy"] == "RetainExceptOnCreate"  # an update is no creation
    assert resource["UpdateReplacePolicy"] == "Retain"


def test_attributes_of_keys_have_the_types_they_had(written: Any) -> None:
    def types(table: Any) -> dict[str, str]:
        attributes = table["Properties"]["AttributeDefinitions"]
        return {each["AttributeName"]: each["AttributeType"] for each in attributes}

    assert types(written["Resources"]["Table"]).items() >= types(DEPLOYED["Table"]).items()


def test_at_most_one_index_is_new_and_the_others_are_as_they_were(written: Any) -> None:
    """CloudFormation makes one index in an update, and cannot change the projection of one that is there."""

    def indexes(table: Any) -> dict[str, Any]:
        return {each["IndexName"]: each for each in table["Properties"]["GlobalSecondaryIndexes"]}

    now, before = indexes(written["Resources"]["Table"]), indexes(DEPLOYED["Table"])
    assert {name: now.get(name) for name in before} == before
    assert len(now) <= len(before) + 1
    assert "LocalSecondaryIndexes" not in written["Resources"]["Table"]["Properties"]
