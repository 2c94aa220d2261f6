import pytest

from rl.rewards.arithmetic import score_arithmetic
from rl.tasks.arithmetic import arithmetic_prompts, canonical_pair, num_pairs
from rl.tasks.config import ArithmeticConfig, Operation
from rl.tasks.prompts import Prompt


def asked(prompts: list[Prompt]) -> list[tuple[str, int, int]]:
    """(operator, left, right), a sum's terms sorted; written apart from the code under test."""
    problems = []
    for prompt in prompts:
        left, operator, right, equals = prompt.row["question"].split(" ")
        assert equals == "="
        terms = [int(left), int(right)]
        problems.append((operator, *(sorted(terms) if operator == "+" else terms)))
    return problems


@pytest.fixture(scope="module")
def split():
    return arithmetic_prompts(ArithmeticConfig(num_held_out=1000, num_train=8000))


def test_both_sets_have_the_size_asked_for(split):
    assert (len(split.train), len(split.held_out)) == (8000, 1000)
    assert [prompt.prompt_id for prompt in (*split.train, *split.held_out)] == list(range(9000))


def test_held_out_problems_are_distinct_and_never_trained_on_in_either_order(split):
    held_out, train = set(asked(split.held_out)), set(asked(split.train))
    assert len(held_out) == 1000
    assert not held_out & train


def test_the_split_is_by_problem_and_not_by_text():
    # of 55 sums with one digit half are held out, so that any slip about the order of terms shows
    split = arithmetic_prompts(ArithmeticConfig(max_digits=1, num_held_out=77, num_train=5000))
    held_out, train = set(asked(split.held_out)), set(asked(split.train))
    assert len(held_out) == 77
    assert held_out | train == {
        *(("+", left, right) for left in range(10) for right in range(left, 10)),
        *(("-", left, right) for left in range(10) for right in range(10)),
    }
    assert not held_out & train


def test_every_number_of_digits_is_left_to_train_on(split):
    assert len({problem for problem in asked(split.train) if max(problem[1:]) < 10}) >= 77
    assert len({problem for problem in asked(split.train) if max(problem[1:]) >= 10}) > 1000


def test_answers_are_right_and_score(split):
    for prompt in (*split.train[:500], *split.held_out[:500]):
        left, operator, right, _ = prompt.row["question"].split()
        value = int(left) + int(right) if operator == "+" else int(left) - int(right)
        assert prompt.row["answer"] == str(value)
        assert score_arithmetic(str(value), prompt.row) == 1.0
        assert score_arithmetic(str(value + 1), prompt.row) == 0.0


def test_the_same_seed_gives_the_same_prompts_and_another_seed_others(split):
    again = arithmetic_prompts(ArithmeticConfig(num_held_out=1000, num_train=8000))
    other = arithmetic_prompts(ArithmeticConfig(num_held_out=1000, num_train=8000, seed=1))
    assert again == split
    assert asked(other.held_out) != asked(split.held_out)


def test_held_out_problems_do_not_depend_on_how_many_are_trained_on(split):
    few = arithmetic_prompts(ArithmeticConfig(num_held_out=1000, num_train=10))
    assert asked(few.held_out) == asked(split.held_out)


def test_a_sum_is_the_same_problem_in_either_order_but_a_difference_is_not():
    def pair(expression):
        return canonical_pair(expression, num_digits=1)

    assert pair("6 + 3") == pair("3 + 6")
    assert pair("6 - 3") != pair("3 - 6")
    assert pair("6 - 3") != pair("6 + 3")


def test_pairs_are_counted_by_hand():
    assert num_pairs(1, list(Operation)) == 55 + 100
    assert num_pairs(2, list(Operation)) == 90 * 91 // 2 + 90 * 90
    assert num_pairs(1, [Operation.sum]) == 55
    assert num_pairs(2, [Operation.difference, Operation.difference]) == 90 * 90


@pytest.mark.parametrize(("operation", "most"), [(Operation.sum, 27), (Operation.difference, 50)])
def test_one_operation_alone_is_asked_and_held_out(operation, most):
    config = ArithmeticConfig(
        operations=[operation], max_digits=1, num_held_out=most, num_train=500
    )
    split = arithmetic_prompts(config)
    problems = asked([*split.train, *split.held_out])
    assert {sign for sign, _, _ in problems} == {operation.value}
    assert len(set(problems)) == num_pairs(1, [operation])
    with pytest.raises(
        ValueError, match=f"<= {most}, half of the {num_pairs(1, [operation])} pairs"
    ):
        arithmetic_prompts(
            ArithmeticConfig(operations=[operation], max_digits=1, num_held_out=most + 1)
        )


def test_no_operation_is_an_error_that_names_both():
    with pytest.raises(
        ValueError, match=r"task.operations must be \[sum\], \[difference\] or both"
    ):
        ArithmeticConfig(operations=[])


def test_too_few_pairs_is_an_error_with_the_counts_and_the_cure():
    with pytest.raises(ValueError, match=r"<= 77, half of the 155 pairs .* got 78: .*max_digits"):
        arithmetic_prompts(ArithmeticConfig(max_digits=1, num_held_out=78))
