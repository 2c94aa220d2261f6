import ast
import contextlib
import io
import os
import re
import runpy
import subprocess
import sys
from dataclasses import fields, is_dataclass, replace
from enum import Enum
from pathlib import Path
from typing import get_type_hints
from unittest import mock

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from rl import config as rl_config
from rl.algorithms.base import config as algorithm_config
from rl.algorithms.base.algorithm import Needs
from rl.algorithms.registry import ALGORITHMS, make_algorithm
from rl.composition.convert import to_config
from rl.composition.explain import documented_yaml
from rl.composition.keys import all_keys
from rl.composition.schemas import ROOTS, register_schemas
from rl.config import EvaluateConfig, GenerateConfig, RunMode, TrainConfig
from rl.rewards import config as rewards_config
from rl.tasks import config as tasks_config
from rl.tasks.config import Operation
from rl.tracking import config as tracking_config
from rl.tracking.config import ReportConfig
from rl.trainer import config as trainer_config
from rl.trainer.checks import check_config
from rollout import config as rollout_config
from rollout.config import SMOLLM2_135M, FleetConfig, RayFleetConfig
from scripts.bench import config as bench_config
from scripts.bench.config import SCHEMAS as BENCH_SCHEMAS
from scripts.bench.config import BenchFleetConfig, BenchRolloutConfig, BenchSpeculationConfig

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
SCHEMAS = {**ROOTS, **BENCH_SCHEMAS}
register_schemas(BENCH_SCHEMAS)


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def load(*overrides: str, name: str = "train"):
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return to_config(compose(name, overrides=list(overrides)), SCHEMAS[name])


def fail(*arguments: str) -> str:
    """What scripts/train.py prints before it exits with 2."""
    output = io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["scripts/train.py", *arguments]),
        contextlib.redirect_stderr(output),
        pytest.raises(SystemExit) as exit_info,
    ):
        runpy.run_path(str(ROOT / "scripts" / "train.py"), run_name="__main__")
    assert exit_info.value.code == 2
    assert output.getvalue().startswith("error: ")
    assert "Traceback" not in output.getvalue()
    return output.getvalue().replace("\n", " ")


def experiment(name: str) -> list[str]:
    """What its command line must say."""
    is_taught = name.endswith("distillation")
    return [f"experiment={name}", *["algorithm.teacher_path=x"][: int(is_taught)]]


@pytest.mark.parametrize("name", options("experiment"))
def test_every_experiment_composes_and_its_header_has_its_command_and_what_to_expect(name):
    config = load(*experiment(name))
    assert isinstance(config, TrainConfig)
    algorithm = make_algorithm(config.algorithm, max_tokens=config.sampling.max_tokens)
    check_config(config, algorithm.needs)
    header = (CONF / "experiment" / f"{name}.yaml").read_text().partition("defaults:")[0]
    assert f"python scripts/train.py experiment={name}" in header
    assert "xpect" in header


@pytest.mark.parametrize("name", sorted({*options("algorithm")} - {"custom"}))
def test_every_algorithm_has_its_experiment_on_arithmetic_which_differs_in_little_else(name):
    config, base = load(*experiment(f"arithmetic_{name}")), load("experiment=arithmetic_both")
    teacher = ["algorithm.teacher_path=x"] if name == "distillation" else []
    assert type(config.algorithm) is type(load(f"algorithm={name}", *teacher).algorithm)
    assert (config.model, config.task, config.sampling) == (base.model, base.task, base.sampling)


def test_the_first_experiment_is_the_one_of_both_operations_on_sums_alone():
    sums, both = load("experiment=arithmetic"), load("experiment=arithmetic_both")
    assert sums.task == replace(both.task, operations=[Operation.sum])
    assert replace(sums, task=both.task) == both
    other = load("experiment=arithmetic", "task=reasoning_gym", "task.name=spell_backward")
    assert other.trainer == sums.trainer


@pytest.mark.parametrize("debug", options("debug"))
def test_every_debug_option_composes_with_experiments_of_every_kind_of_task(debug):
    for name in ("arithmetic_ppo", "arithmetic_sft", "gcd"):
        assert isinstance(load(*experiment(name), f"debug={debug}"), TrainConfig)


@pytest.mark.parametrize(
    "overrides",
    [
        ("model=tiny",),
        ("model=hf", "model.path=somewhere"),
        ("task=reasoning_gym", "task.name=number_sorting", "+task.params.max_numbers=4"),
        ("task=dataset", "task.path=x.jsonl"),
    ],
)
def test_every_option_of_every_group_composes(overrides):
    assert isinstance(load(*overrides), TrainConfig)


REQUIRED = {"distillation": {"teacher_path": "x"}, "custom": {"path": "x"}}


@pytest.mark.parametrize("name", options("algorithm"))
def test_every_algorithm_composes_and_its_yaml_repeats_no_default(name):
    required = REQUIRED.get(name, {})
    overrides = [f"algorithm.{key}={value}" for key, value in required.items()]
    algorithm = load(f"algorithm={name}", *overrides).algorithm
    defaults = type(algorithm)(**required)
    content = yaml.safe_load((CONF / "algorithm" / f"{name}.yaml").read_text())
    for key in set(content) - {"defaults"}:
        assert getattr(algorithm, key) != getattr(defaults, key), key


def test_the_other_scripts_compose():
    assert isinstance(load(name="evaluate"), EvaluateConfig)
    assert isinstance(load(name="generate"), GenerateConfig)
    assert isinstance(load(name="bench_rollout"), BenchRolloutConfig)
    assert isinstance(load(name="bench_fleet"), BenchFleetConfig)
    speculation = load("task=reasoning_gym", "task.name=spell_backward", name="bench_speculation")
    assert isinstance(speculation, BenchSpeculationConfig)
    assert isinstance(load(name="bench_train"), TrainConfig)
    assert isinstance(load("runs=[a,b]", name="report"), ReportConfig)


def test_the_command_line_beats_debug_beats_experiment_beats_groups():
    experiment = load("experiment=arithmetic")
    assert experiment.model.path == SMOLLM2_135M
    debugged = load("experiment=arithmetic", "debug=smoke")
    assert debugged.trainer.num_steps != experiment.trainer.num_steps
    assert (
        load("experiment=arithmetic", "debug=smoke", "trainer.num_steps=7").trainer.num_steps == 7
    )
    assert load("debug=train_only").mode is RunMode.train_only


def test_plus_cannot_smuggle_a_key_past_the_schema():
    with pytest.raises(
        ValueError, match=r"unknown config key algorithm\.clip_lo; did you mean algorithm\.clip_low"
    ):
        load("+algorithm.clip_lo=0.1")


def test_an_unknown_key_next_to_free_form_ones_is_still_found():
    with pytest.raises(ValueError, match=r"unknown config key task\.nam; did you mean task\.name"):
        load("task=reasoning_gym", "task.name=x", "+task.params.anything=1", "+task.nam=y")


def test_a_mandatory_value_that_is_missing_is_named():
    with pytest.raises(ValueError, match=r"config keys without a value: task\.name"):
        load("task=reasoning_gym")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("algorithm.clip_low=1.5", r"algorithm\.clip_low must be in \(0, 1\), got 1\.5"),
        ("group_size=1", r"group_size must be > 1 .*, got 1"),
        ("engine.block_size=24", r"engine\.block_size must be a divisor of 64, got 24"),
        ("engine.max_tokens_per_step=8", r"must be >= engine\.max_requests \(256\)"),
        ("sampling.top_p=0", r"sampling\.top_p must be in \(0, 1\], got 0\.0"),
        ("trainer.max_grad_norm=0", r"trainer\.max_grad_norm must be > 0, got 0"),
        ("trainer.ema_decay=1", r"trainer\.ema_decay must be in \[0, 1\), got 1"),
        ("trainer.lora.targets=[q_proj,head]", r"trainer\.lora\.targets must be some of q_proj, "),
        ("trainer.lora.path=x", r"trainer\.lora\.rank must be that of the adapter of .*, got 0"),
        ("reward.max_error_rate=2", r"reward\.max_error_rate must be in \[0, 1\], got 2"),
        ("fleet.start_seconds=0", r"fleet\.start_seconds must be > 0, got 0"),
        ("model.path=''", r"model\.path must be a Hugging Face directory or hub id, got ''"),
        ("seed=-1", r"seed must be >= 0, got -1"),
    ],
)
def test_a_range_error_names_key_rule_and_value(override, message):
    with pytest.raises(ValueError, match=message):
        load(override)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("trainer.learning_rat=1", "unknown config key trainer.learning_rat; did you mean trainer.learning_rate?"),
        ("+trainer.learning_rat=1", "unknown config key trainer.learning_rat; did you mean"),
        ("learning_rate=1", "unknown config key learning_rate; did you mean trainer.learning_rate?"),
        ("algorithm.max_refills=2", "unknown config key algorithm.max_refills; it was renamed to algorithm.max_resample_batches"),
        ("model=llama", "model=llama: model is one of hf, smollm2_135m, tiny"),
        ("algorithm=rlo", "dr_grpo, grpo, gspo, maxrl, ppo, reinforce_pp, reinforce_pp_baseline, rloo, sft; did you mean rloo?"),
        ("tracking.wandb.mode=OFFLINE", "tracking.wandb.mode must be one of offline, online, disabled, got 'OFFLINE'; did you mean offline?"),
        ("task.operations=[SUM]", "task.operations[0] must be one of sum, difference, got 'SUM'; did you mean sum?"),
        ("trainer.num_steps=many", "trainer.num_steps: Value 'many' of type 'str' could not be converted to Integer"),
        ("fleet.num_workers=4", "fleet.num_workers is a key of fleet=ray only"),
        ("algorithm.gamma=0.9", "algorithm.gamma is a key of algorithm=ppo only"),
        ("model=hf", "model.path must be a Hugging Face directory or hub id, got "),
    ],
)  # fmt: skip
def test_a_mistake_on_the_command_line_is_one_sentence(argument, message):
    assert message in fail(argument)


@pytest.mark.parametrize("prefix", ["", "+", "++"])
@pytest.mark.parametrize(
    "params", [(".max_numbers=4", ".min_numbers=3"), ("={max_numbers: 4, min_numbers: 3}",)]
)
def test_another_librarys_parameters_are_given_like_any_key(params, prefix):
    arguments = [f"{prefix}task.params{part}" for part in params]
    printed = subprocess.run(
        [sys.executable, "scripts/train.py", "task=reasoning_gym", "task.name=number_sorting", "model=tiny", *arguments,
         "--cfg", "job", "--package", "task.params"],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert yaml.safe_load(printed) == {"max_numbers": 4, "min_numbers": 3}


def test_a_misspelt_key_in_yaml_is_named_with_a_suggestion():
    wrong = CONF / "experiment" / "misspelt_by_a_test.yaml"
    wrong.write_text("# @package _global_\ntrainer:\n  learning_rat: 1.0\n")
    try:
        message = fail("experiment=misspelt_by_a_test")
    finally:
        wrong.unlink()
    assert "unknown config key trainer.learning_rat; did you mean trainer.learning_rate?" in message


MODULES = (
    rl_config,
    algorithm_config,
    rewards_config,
    rollout_config,
    tasks_config,
    tracking_config,
    trainer_config,
    bench_config,
)
"""Modules with schemas."""


def schemas() -> list[type]:
    found = {
        v for m in MODULES for v in vars(m).values() if isinstance(v, type) and is_dataclass(v)
    }
    found |= {entry.schema for entry in ALGORITHMS.values()}
    return sorted(found, key=lambda schema: schema.__name__)


def test_every_key_has_a_reader():
    sources = [p for folder in ("rl", "rollout", "scripts") for p in (ROOT / folder).rglob("*.py")]
    read: set[str] = set()
    for path in sources:
        tree = ast.parse(path.read_text())
        # `self.x` in a schema's own checks is not a reader
        own = {
            id(node)
            for schema in ast.walk(tree)
            if isinstance(schema, ast.ClassDef) and schema.name.endswith("Config")
            for node in ast.walk(schema)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and id(node) not in own:
                read.add(node.attr)
    unread = [f"{s.__name__}.{f.name}" for s in schemas() for f in fields(s) if f.name not in read]
    assert unread == []


def test_every_key_has_a_docstring_that_names_its_subject():
    unexplained, dangling = set(), set()
    for root in SCHEMAS.values():
        for key in all_keys(root):
            if not key.is_section and not key.doc:
                unexplained.add(key.name)
            if key.doc.startswith(("Of ", "To ", "Whose ", "Where ")):
                dangling.add(key.name)
    assert (unexplained, dangling) == (set(), set())


def test_names_of_enum_members_are_as_a_command_line_has_them():
    found = {
        v for m in MODULES for v in vars(m).values() if isinstance(v, type) and issubclass(v, Enum)
    }
    assert len(found) > 10
    assert [m for kind in found for m in kind.__members__ if m != m.lower()] == []


def test_the_resolved_config_is_fresh():
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        fresh = documented_yaml(compose("train"), TrainConfig)
    is_fresh = (CONF / "_resolved" / "train.yaml").read_text() == fresh
    assert is_fresh, (
        "keys, defaults or docstrings changed: run make resolved, and commit what it wrote"
    )
    assert yaml.safe_load(fresh)["trainer"]["lr_schedule"] == "constant"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.zero_stage=3", "trainer.zero_stage is set, but has no effect without trainer.backend=deepspeed"),
        ("trainer.muon_momentum=0.9", "without trainer.optimizer=muon"),
        ("trainer.threads_per_process=2", "without trainer.num_processes above 1"),
        ("fleet.address=auto", "without fleet=ray or trainer.num_processes above 1"),
        ("trainer.lora.alpha=64", "trainer.lora.rank must be > 0 where trainer.lora.alpha"),
        ("engine.speculation.model_path=x", "engine.speculation.model_path must be empty when engine.speculation.drafter is off"),
    ],
)  # fmt: skip
def test_a_key_that_nothing_would_read_is_refused(override, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_config(load(override), Needs())


def test_yaml_holds_only_departures_from_the_schema():
    for path in sorted(CONF.rglob("*.yaml")):
        if path.parent.name in ("task", "algorithm", "experiment", "debug", "_resolved"):
            continue
        content = yaml.safe_load(path.read_text())
        for key in set(content) - {"defaults"}:
            hints = {k for root in SCHEMAS.values() for k in get_type_hints(root)}
            known = hints | {"path"}
            assert key in known, f"{path}: {key}"


def test_a_path_is_enough_to_choose_a_model():
    assert load("model.path=some/where").model.path == "some/where"


def test_options_of_fleet_have_only_the_keys_that_they_read():
    assert type(load().fleet) is FleetConfig
    assert type(load("fleet=ray", "fleet.num_workers=3").fleet) is RayFleetConfig


def test_the_resolved_config_reads_back_as_it_was():
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg = compose("train", overrides=["model=tiny"])
    again = OmegaConf.create(OmegaConf.to_yaml(cfg))
    assert set(again) == set(get_type_hints(TrainConfig))
