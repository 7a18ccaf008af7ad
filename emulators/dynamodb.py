"""A DynamoDB table in memory, behind the part of boto3's client that `Table` uses.

It takes the conditions that `Table` writes, and no others.
"""

import copy
from types import SimpleNamespace
from typing import Any, Final

from botocore.exceptions import ClientError

#: https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/transaction-apis.html
MOST_ITEMS: Final = 100
#: Pages of one Scan; DynamoDB gives back a megabyte of them.
#: https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Scan.html#Scan.Pagination
MOST_SCANNED: Final = 50


class DynamoDb:
    """One table, whatever its name; `items` are its pages by their `pk`, in DynamoDB's own notation."""

    def __init__(self, region: str = "eu-west-1") -> None:
        self.items: dict[str, dict[str, Any]] = {}
        self.meta = SimpleNamespace(region_name=region)
        self._tokens: set[str] = set()

    def transact_get_items(self, *, TransactItems: list[dict[str, Any]]) -> dict[str, Any]:
        """Read pages; an empty object stands for one that is not there."""
        assert 1 <= len(TransactItems) <= MOST_ITEMS
        found = [self.items.get(get["Get"]["Key"]["pk"]["S"]) for get in TransactItems]
        return {"Responses": [{"Item": copy.deepcopy(item)} if item else {} for item in found]}

    def transact_write_items(
        self, *, TransactItems: list[dict[str, Any]], ClientRequestToken: str
    ) -> dict[str, Any]:
        """Write all pages, or none if a condition fails."""
        if ClientRequestToken in self._tokens:  # DynamoDB takes it once within ten minutes.
            return {}
        changes = [next(iter(item.items())) for item in TransactItems]
        pks = [(change.get("Item") or change["Key"])["pk"]["S"] for _, change in changes]
        assert len({*pks}) == len(pks) <= MOST_ITEMS
        holds = [self._holds(pk, change) for pk, (_, change) in zip(pks, changes, strict=True)]
        if not all(holds):
            reasons = [{"Code": "None" if one else "ConditionalCheckFailed"} for one in holds]
            response: Any = {
                "Error": {"Code": "TransactionCanceledException"},
                "CancellationReasons": reasons,
            }
            raise ClientError(response, "TransactWriteItems")
        items = dict(self.items)  # Nobody changes a page in place, so an earlier one stays as it was.
        for pk, (verb, change) in zip(pks, changes, strict=True):
            if verb == "Put":
                items[pk] = change["Item"]
            elif verb == "Delete":
                items.pop(pk, None)
        self.items = items
        self._tokens.add(ClientRequestToken)
        return {}

    def _holds(self, pk: str, change: dict[str, Any]) -> bool:
        found, version = self.items.get(pk), change.get("ExpressionAttributeValues", {}).get(":version")
        if version is None:
            assert change["ConditionExpression"] == "attribute_not_exists(pk)"
            return found is None
        assert change["ConditionExpression"] == "version = :version"
        return found is not None and found["version"] == version

    def scan(
        self, *, TableName: str, ConsistentRead: bool, ProjectionExpression: str = "", **more: Any
    ) -> dict[str, Any]:
        """Read some pages, or their names only, from behind `ExclusiveStartKey`."""
        assert TableName
        assert ConsistentRead, "a page of a moment ago may be missing"
        pks = [*self.items]
        start = pks.index(more["ExclusiveStartKey"]["pk"]["S"]) + 1 if more else 0
        end = start + MOST_SCANNED
        items = [copy.deepcopy(self.items[pk]) for pk in pks[start:end]]
        shown = [{"pk": item["pk"]} for item in items] if ProjectionExpression == "pk" else items
        last = {"LastEvaluatedKey": {"pk": items[-1]["pk"]}} if end < len(pks) else {}
        return {"Items": shown, **last}
