"""Sums and differences of two numbers with equally many digits, drawn by reasoning-gym's `chain_sum`.

The draws form one endless stream. The first distinct pairs are held out, at most half of the pairs of each number
of digits; what follows is trained on, held-out pairs left out. A pair stands for all ways to ask it: a + b is b + a.
"""

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

from reasoning_gym import create_dataset

from rl.tasks.config import ArithmeticConfig, Operation
from rl.tasks.form import PromptForm
from rl.tasks.prompts import PromptSplit, keyed_permutation, problem_of, split_prompts

__all__ = ["arithmetic_prompts", "canonical_pair", "num_pairs"]


@dataclass(frozen=True, slots=True, order=True)
class Pair:
    """A problem up to the order of a sum's terms."""

    left: int
    operator: str
    right: int
    num_digits: int


def arithmetic_prompts(config: ArithmeticConfig) -> PromptSplit:
    """Questions such as `6 + 3 =`; training questions may repeat.

    Raises:
        ValueError: the digits allow too few pairs.
    """
    quota = {
        num_digits: num_pairs(num_digits, config.operations) // 2
        for num_digits in range(config.min_digits, config.max_digits + 1)
    }
    num_held_out = config.held_out_count(sum(quota.values()))
    if num_held_out > sum(quota.values()):
        total = sum(num_pairs(num_digits, config.operations) for num_digits in quota)
        raise ValueError(
            f"task.num_held_out must be <= {sum(quota.values())}, half of the {total} pairs with "
            f"{config.min_digits} to {config.max_digits} digits, the rest being for training; got "
            f"{num_held_out}: lower it, or raise task.max_digits"
        )
    items = _draw(config)
    held_out: dict[Pair, dict[str, Any]] = {}
    held_out_by_digits: Counter[int] = Counter()
    while len(held_out) < num_held_out:
        pair, row = next(items)
        if pair not in held_out and held_out_by_digits[pair.num_digits] < quota[pair.num_digits]:
            held_out[pair] = row
            held_out_by_digits[pair.num_digits] += 1
    # the quota fills up with one digit first: shuffled, any first part of the held-out prompts speaks for all
    held_out_rows = list(held_out.values())
    order = keyed_permutation(len(held_out_rows), seed=config.seed, epoch=0)
    train_rows = (row for pair, row in items if pair not in held_out)
    return split_prompts(
        train=[problem_of(row) for row in islice(train_rows, config.num_train)],
        held_out=[problem_of(held_out_rows[i]) for i in order],
        form=PromptForm.of(config),
    )


def num_pairs(num_digits: int, operations: Collection[Operation]) -> int:
    """Distinct pairs of terms with `num_digits` digits each, a sum's in either order."""
    num_terms = 10 if num_digits == 1 else 9 * 10 ** (num_digits - 1)
    by_operation = {
        Operation.sum: num_terms * (num_terms + 1) // 2,
        Operation.difference: num_terms**2,
    }
    return sum(by_operation[operation] for operation in set(operations))


def canonical_pair(expression: str, *, num_digits: int) -> Pair:
    """`6 + 3` and `3 + 6` give the same pair, `6 - 3` and `3 - 6` do not."""
    left_text, operator, right_text = expression.split()
    left, right = int(left_text), int(right_text)
    if operator == "+":
        left, right = sorted((left, right))
    return Pair(left=left, operator=operator, right=right, num_digits=num_digits)


def _draw(config: ArithmeticConfig) -> Iterator[tuple[Pair, dict[str, Any]]]:
    dataset = create_dataset(
        "chain_sum",
        min_terms=2,
        max_terms=2,
        min_digits=config.min_digits,
        max_digits=config.max_digits,
        seed=config.seed,
    )
    for index in count():
        item = dataset[index]
        metadata = item["metadata"]
        expression = metadata["expression"]
        pair = canonical_pair(expression, num_digits=metadata["num_digits"])
        if Operation(pair.operator) in config.operations:
            yield pair, {"question": f"{expression} =", "answer": item["answer"]}
