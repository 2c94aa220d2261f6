"""A scorer under which siblings differ, whatever they say."""


def score(completion: str, row: dict) -> float:
    return len(set(completion)) % 3 / 2
