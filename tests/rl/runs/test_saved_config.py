"""A run's own config: written, read again, and the base of what goes on from it."""

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from rl.cli import CONF
from rl.composition.command_line import read_command_line
from rl.composition.convert import to_config
from rl.composition.schemas import ROOTS, register_schemas
from rl.config import EvaluateConfig, GenerateConfig, TrainConfig
from rl.runs.directory import run_dir_of
from rl.runs.saved_config import base_on_run, changed_keys, read_config, save_config, task_config_of
from rl.trainer.config import LRSchedule

PLAIN = ("experiment=arithmetic_dapo", "trainer.learning_rate=3e-4", "sampling.max_tokens=9")


def config_of(config_name: str, *arguments: str):
    register_schemas()
    root = ROOTS[config_name]
    name, overrides = base_on_run(config_name, read_command_line(arguments))
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return to_config(compose(name, overrides=overrides), root)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run_dir = tmp_path / "run"
    (run_dir / "weights" / "v40").mkdir(parents=True)
    (run_dir / "weights" / "LATEST").write_text("v40\n")
    config: TrainConfig = config_of("train", *PLAIN, f"run_dir={run_dir}", "task.seed=3")
    save_config(config, run_dir / "config.yaml")
    return run_dir


def test_a_run_goes_on_with_its_own_config_in_its_own_directory(run):
    config: TrainConfig = config_of("train", f"resume_from={run}")
    before: TrainConfig = config_of("train", *PLAIN, "task.seed=3")
    assert (config.run_dir, config.resume_from) == (str(run), str(run))
    assert (config.algorithm, config.task) == (before.algorithm, before.task)
    assert config.trainer == before.trainer
    assert config.sampling == before.sampling
    saved = read_config(run)
    assert saved is not None
    assert changed_keys(saved, config) == {}


def test_overrides_are_laid_over_it_and_what_differs_is_known_key_by_key(run):
    config: TrainConfig = config_of(
        "train", f"resume_from={run}", "trainer.num_steps=99", "task.seed=4", "run_dir=elsewhere",
        "trainer.lr_schedule=constant",
    )  # fmt: skip
    assert config.run_dir == "elsewhere"
    assert config.trainer.lr_schedule is LRSchedule.constant
    assert config.trainer.learning_rate == 3e-4
    saved = read_config(run)
    assert saved is not None
    assert changed_keys(saved, config) == {
        "task.seed": (3, 4),
        "trainer.num_steps": (60, 99),
        "trainer.lr_schedule": ("linear", "constant"),
    }


def test_a_group_is_replaced_whole_and_an_experiment_is_laid_over_all(run):
    config: TrainConfig = config_of("train", f"resume_from={run}", "algorithm=ppo")
    assert config.algorithm == config_of("train", "algorithm=ppo").algorithm
    assert config.task.seed == 3
    saved = read_config(run)
    assert saved is not None
    assert changed_keys(saved, config) == {"algorithm": ("dapo", "ppo")}
    config = config_of("train", f"resume_from={run}", "experiment=arithmetic_rloo")
    assert config.trainer.adam_beta2 == 0.95
    assert config.task.seed == 0, "the experiment names the task, which replaces that group"


@pytest.mark.parametrize("end", ["", "weights", "weights/LATEST", "weights/v40", "weights/v40/ema"])
def test_it_is_evaluated_with_its_own_task_prompt_and_sampling_from_any_path_into_it(run, end):
    path = str(run / end)
    assert run_dir_of(path) == run
    config: EvaluateConfig = config_of("evaluate", "model=hf", f"model.path={path}")
    assert config.task == config_of("train", *PLAIN, "task.seed=3").task
    assert (config.sampling.max_tokens, config.sampling.temperature) == (9, 0.0)
    assert config.sampling.stop == [".", ",", "\n"]
    assert config.model.path == path
    config = config_of("evaluate", f"model.path={path}", "sampling.max_tokens=30", "task.seed=5")
    assert (config.sampling.max_tokens, config.task.seed) == (30, 5)


def test_it_answers_prompts_as_it_was_trained_to(run):
    config: GenerateConfig = config_of("generate", "model=hf", f"model.path={run}", "num_samples=2")
    assert (config.system_prompt, config.user_prompt) == ("Calculate.", "{question}")
    assert config.reply_prefix == "{question}"
    assert (config.sampling.max_tokens, config.sampling.temperature) == (9, 1.0)


def test_published_weights_that_have_left_their_run_are_asked_as_their_files_say(tmp_path):
    prompt = {
        "system_prompt": "Add.", "user_prompt": "What is {question}?", "reply_prefix": "", "stop": ["."],
        "chat_template_kwargs": {"enable_thinking": False}, "example": {},
    }  # fmt: skip
    (tmp_path / "prompt.json").write_text(json.dumps(prompt))
    generation = {
        "do_sample": True,
        "temperature": 0.7,
        "max_new_tokens": 11,
        "top_k": 0,
        "top_p": 1.0,
    }
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    config: GenerateConfig = config_of("generate", f"model.path={tmp_path}")
    assert (config.system_prompt, config.user_prompt) == ("Add.", "What is {question}?")
    sampling = config.sampling
    assert (sampling.temperature, sampling.max_tokens, sampling.stop) == (0.7, 11, ["."])
    assert config.model.chat_template_kwargs == {"enable_thinking": False}
    generation["do_sample"] = False
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert config_of("generate", f"model.path={tmp_path}").sampling.temperature == 0


@pytest.mark.parametrize(
    "text", ["costs ${5}", "${", "a \\ b", "\\${x}", "\\\\${x} and ${y}", "[b] {c} $d", "${seed}"]
)
def test_a_text_is_the_same_when_its_run_is_resumed_whatever_is_in_it(run, text):
    config: TrainConfig = config_of("train", *PLAIN)
    config.task.system_prompt = text
    save_config(config, run / "config.yaml")
    again: TrainConfig = config_of("train", f"resume_from={run}")
    assert again.task.system_prompt == text
    saved = read_config(run)
    assert saved is not None
    assert changed_keys(saved, again) == {}
    assert task_config_of(saved).system_prompt == text


def test_a_path_that_is_no_run_changes_nothing(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "LATEST").write_text("v1\n")
    for path in ("", "some/hub-id", str(tmp_path / "elsewhere")):
        assert run_dir_of(path) is None
    # of an earlier version, whose config.yaml names no schemas
    assert base_on_run("train", read_command_line([f"resume_from={tmp_path}"]))[0] == "train"
    assert base_on_run("report", read_command_line(["runs=[a]"])) == ("report", ["runs=[a]"])


def test_the_config_can_be_composed_again_by_hydra_itself(run):
    register_schemas()
    with initialize_config_dir(version_base="1.3", config_dir=str(run)):
        searched = f"hydra.searchpath=[file://{CONF}]"
        again = to_config(compose("config", overrides=[searched]), TrainConfig)
    assert again == config_of("train", *PLAIN, f"run_dir={run}", "task.seed=3")


def test_the_task_of_a_saved_config_is_itself_again(run):
    saved = read_config(run)
    assert saved is not None
    assert task_config_of(saved) == config_of("train", *PLAIN, "task.seed=3").task


def test_a_config_names_its_options_and_the_version_that_wrote_it(run):
    first, second = (run / "config.yaml").read_text().splitlines()[:2]
    assert first.startswith("# algorithm=dapo, fleet=inline, task=arithmetic; paceline ")
    assert second == "defaults:"
