"""An algorithm in a file outside the tree: loaded, checked against its own fields, and refused in one sentence."""

from pathlib import Path

import pytest
import torch

from rl.algorithms.base.algorithm import Needs
from rl.algorithms.custom import CustomConfig
from rl.algorithms.grpo import GRPOConfig
from rl.algorithms.registry import make_algorithm
from tests.rl.algorithms.batches import signals, tokens

GUIDE = Path(__file__).parents[3] / "docs" / "guide" / "own-algorithm.md"
BODY = """
from dataclasses import dataclass

from rl.algorithms.base.algorithm import Needs


@dataclass
class Mine:
    weight: float = 1.0
    size: int = 2

    def advantages(self, signals):
        return None

    def loss(self, tokens):
        return None
"""


def make(path: Path, name: str = "Mine", **params):
    config = CustomConfig(path=f"{path}:{name}", params=params)
    return make_algorithm(config, max_tokens=8)


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(BODY)
    return path


@pytest.fixture
def guides_own(tmp_path: Path) -> Path:
    path = tmp_path / "my_algorithm.py"
    path.write_text(GUIDE.read_text().partition("```python\n")[2].partition("```")[0])
    return path


def test_the_guides_baseline_moves_from_batch_to_batch_and_continues_from_its_state(guides_own):
    made = make(guides_own, "MovingBaseline", decay=0.5)
    first = made.advantages(signals([1.0, 0.0], lengths=[1, 2])).advantages_N
    assert first.tolist() == [1.0, 0.0, 0.0]
    second = made.advantages(signals([1.0, 0.0])).advantages_N
    assert second.tolist() == [0.75, -0.25], "the baseline is half of 0.5"
    resumed = make(guides_own, "MovingBaseline", decay=0.5)
    resumed.state.load_state_dict(made.state.state_dict())
    third = resumed.advantages(signals([1.0, 0.0])).advantages_N
    assert third.tolist() == [1 - 0.375, -0.375]


def test_the_guides_loss_is_reinforce_weighted_by_the_ratio(guides_own):
    made = make(guides_own, "MovingBaseline")
    batch = tokens([-1.0, -2.0], [-1.0, -2.0], [1.0, -0.5], [1.0, 0.5])
    made.loss(batch).loss.backward()
    assert batch.logprobs_N.grad.tolist() == [-1.0, 0.25]


def test_parameters_are_fields_of_the_class_with_their_types(mine):
    made = make(mine, weight=3, size="4")
    own = made.advantages.__self__
    assert (own.weight, own.size) == (3.0, 4)
    assert isinstance(own.weight, float)
    assert made.state is None
    assert made.needs == Needs()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"weigth": 2.0},
            r"^unknown config key algorithm\.params\.weigth; did you mean algorithm\.params\.weight\? Mine has weight, size$",
        ),
        (
            {"size": "two"},
            r"^algorithm\.params\.size: Value 'two' .* could not be converted to Int",
        ),
        ({"weight": None}, r"^algorithm\.params\.weight: "),
    ],
)
def test_parameters_that_do_not_fit_are_refused_by_key(mine, params, message):
    with pytest.raises(ValueError, match=message):
        make(mine, **params)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("@dataclass\n", "", "must name a dataclass, got <class"),
        ("    def loss(self, tokens):", "    def loss(self):", r"must have a method loss\(self, tokens\): too many"),
        ("    def advantages", "    def advantage", r"must have a method advantages\(self, signals\): .* no attribute"),
        ("    size: int = 2", "    def state_dict(self):\n        return {}", "both state_dict and load_state_dict, or neither"),
        ("    size: int = 2", "    needs = 3", r"needs must be a Needs of rl\.algorithms\.base\.algorithm"),
        ("    size: int = 2", "    size: int", r"algorithm\.params.*missing mandatory value.*size"),
    ],
)  # fmt: skip
def test_a_class_that_is_no_algorithm_is_refused_with_what_it_lacks(tmp_path, old, new, message):
    path = tmp_path / "wrong.py"
    assert old in BODY
    # a field without a default comes first
    text = BODY.replace("    weight: float = 1.0\n", "") if new == "    size: int" else BODY
    path.write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=message):
        make(path)


def test_a_state_that_no_checkpoint_could_give_back_is_refused_before_the_first_step(tmp_path):
    path = tmp_path / "wrong.py"
    methods = "    def state_dict(self):\n        return {'own': self}\n\n    def load_state_dict(self, state):\n        pass\n"
    path.write_text(BODY + "\n" + methods)
    with pytest.raises(ValueError, match=r"state_dict\(\) must return tensors, numbers, strings"):
        make(path)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("mine", r"algorithm\.path must be `package\.module:class` or `path/to/file\.py:class`, got 'mine'"),
        ("nowhere.py:Mine", r"nowhere\.py cannot be imported: there is no file"),
        ("no_such_package.module:Mine", r"no_such_package\.module cannot be imported"),
    ],
)  # fmt: skip
def test_a_path_that_leads_nowhere_is_refused_by_key(path, message):
    with pytest.raises(ValueError, match=message):
        make_algorithm(CustomConfig(path=path), max_tokens=8)


def test_a_name_that_the_file_lacks_is_refused_with_those_that_it_has(mine):
    with pytest.raises(ValueError, match=r"mine\.py has no 'Mien'; it has Needs, Mine"):
        make(mine, "Mien")


def test_what_it_needs_and_what_a_penalty_needs_come_together(tmp_path):
    path = tmp_path / "needy.py"
    path.write_text(BODY.replace("    size: int = 2", "    needs = Needs(max_resample_batches=3)"))
    config = CustomConfig(path=f"{path}:Mine", kl_coef=0.1)
    needs = make_algorithm(config, max_tokens=8).needs
    assert needs == Needs(max_resample_batches=3, reference=True)


def test_a_subclass_of_another_algorithms_config_is_not_taken_for_it():
    class Tempered(GRPOConfig):
        pass

    with pytest.raises(TypeError, match="no algorithm is registered for Tempered"):
        make_algorithm(Tempered(), max_tokens=8)


def test_advantages_are_computed_in_float64(guides_own):
    made = make(guides_own, "MovingBaseline")
    assert made.advantages(signals([1.0, 0.0])).advantages_N.dtype is torch.float64
