"""A scorer that is broken."""


def score(completion: str, row: dict) -> float:
    raise KeyError("answer")
