"""The function behind the API."""


def handler(event: object, context: object) -> dict[str, object]:
    """Greet."""
    return {"statusCode": 200, "body": "hello"}
