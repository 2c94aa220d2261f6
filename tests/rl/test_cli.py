"""Command lines end with the right word and code; a mistake is told before any run begins."""

import sys
from pathlib import Path

import pytest

from rl.cli import RunError, UserError, launch
from rl.config import TrainConfig

TINY = ("model=tiny",)


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Runs a command line with a task that notes its configs; returns the exit code, the configs and what was printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rl.cli._PATIENCE_SECONDS", 0.0)

    def run(*arguments: str, outcome=lambda config: 0):
        configs: list[TrainConfig] = []

        def task(config: TrainConfig) -> int:
            configs.append(config)
            return outcome(config)

        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        with pytest.raises(SystemExit) as exit_info:
            launch(task, config_name="train")
        printed = capsys.readouterr()
        return exit_info.value.code, configs, printed.out, printed.err

    return run


def test_flags_and_overrides_may_come_in_any_order(command):
    code, configs, _, _ = command("seed=3", "--run", *TINY, "group_size=5")
    assert (code, configs[0].seed, configs[0].group_size) == (0, 3, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--config_dir=x",), "unknown flag --config_dir; did you mean --config-dir?"),
        (("--seed=1",), "unknown flag --seed; "),
        (("--trainer.num_steps=1",), "write config keys without dashes: trainer.num_steps=1"),
        (("--cfg", "everything"), "argument --cfg/-c: invalid choice: 'everything'"),
        (("--config-dir",), "argument --config-dir/-cd: expected one argument"),
        (("--config-dir=nowhere",), "--config-dir must name a directory, got nowhere"),
        (("--config-name=mine",), "Cannot find primary config 'mine'"),
        (("mine",), "overrides must be key=value or group=option, got 'mine'"),
        (("-m", "trainer.learning_rat=1e-3,2e-3"), "did you mean trainer.learning_rate?"),
        (("-m", "seed=0,-1"), "seed must be >= 0, got -1"),
        (("seed=9223372036854775808",), "seed must be < 2**63"),
        (("trainer.learning_rate=inf",), "trainer.learning_rate must be a finite number, got inf"),
        (("-m", "run_dir=glob(nothing*)"), "the sweep has no runs"),
        (("run_dir=/x/a=b",), """run_dir=/x/a=b cannot be read: mismatched input '=' expecting <EOF>; a value with"""),
        (("run_dir=run[1]",), """quotes within those of the shell: 'run_dir="run[1]"'"""),
        (("-m", "seed=0,1", "run_dir=one"), "2 of 2 runs of the sweep have the same directory, one;"),
        (("-m", "model=tiny,big"), "model=big: model is one of hf, smollm2_135m, tiny"),
        (('task.user_prompt="[INST] {questoin} [/INST]"',), "[INST] {questoin} [/INST]"),
        (("model.source=tiny",), "unknown config key model.source; it was renamed to model.path"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence_and_nothing_runs(command, arguments, message):
    code, configs, out, err = command(*arguments)
    assert (code, configs, out) == (2, [], "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


def test_a_newline_on_the_command_line_is_a_newline(command):
    _, configs, _, _ = command(*TINY, r'sampling.stop=["\n", "."]')
    assert configs[0].sampling.stop == ["\n", "."]


def test_own_directories_are_searched_before_ours(command, tmp_path):
    for folder, steps in (("a", 7), ("b", 9)):
        path = tmp_path / folder / "experiment" / "arithmetic.yaml"
        path.parent.mkdir(parents=True)
        path.write_text(f"# @package _global_\ntrainer:\n  num_steps: {steps}\n")
    (tmp_path / "a" / "flavour").mkdir()
    (tmp_path / "a" / "flavour" / "hot.yaml").write_text("# @package _global_\nseed: 5\n")
    flags = ("--config-dir", "a", "--config-dir=b")
    _, configs, _, _ = command(*TINY, *flags, "experiment=arithmetic", "+flavour=hot")
    assert (configs[0].trainer.num_steps, configs[0].seed) == (7, 5)
    _, configs, _, _ = command(*TINY, "experiment=arithmetic")
    assert configs[0].trainer.num_steps == 40


def test_a_primary_config_of_ones_own_builds_on_train(command, tmp_path):
    (tmp_path / "own.yaml").write_text("defaults:\n  - train\n  - _self_\nseed: 11\n")
    _, configs, _, _ = command(*TINY, "--config-dir=.", "--config-name=own.yaml")
    assert configs[0].seed == 11
    (tmp_path / "bare.yaml").write_text("seed: 11\n")
    code, _, _, err = command("--config-dir=.", "--config-name=bare")
    assert code == 2
    assert "must begin its list of defaults with a schema" in err


def test_keys_help_and_config_explain_and_run_nothing(command):
    for flag in (["--help"], ["--keys", "learning_rate"], ["--cfg", "job"], ["--version"]):
        code, configs, out, _ = command(*flag)
        assert (code, configs) == (0, [])
        assert "_schema" not in out
        assert "learning_rate" in out or flag == ["--version"]


def test_runs_of_a_sweep_have_directories_named_after_what_differs(command, tmp_path):
    code, configs, _, _ = command("-m", *TINY, "seed=0,1", "algorithm=grpo,rloo")
    assert code == 0
    names = [Path(config.run_dir).name for config in configs]
    assert names == ["seed=0,algorithm=grpo", "seed=0,algorithm=rloo", "seed=1,algorithm=grpo", "seed=1,algorithm=rloo"]  # fmt: skip
    assert [config.tracking.wandb.group for config in configs[:2]] == ["algorithm=grpo", "algorithm=rloo"]  # fmt: skip
    assert Path(configs[0].run_dir).parts[:2] == ("outputs", "sweeps")


def test_runs_of_a_sweep_go_where_they_are_told(command, tmp_path):
    _, configs, _, _ = command("-m", *TINY, "seed=0,1", f"run_dir={tmp_path}/s/sweep_${{seed}}")
    assert [config.run_dir for config in configs] == [f"{tmp_path}/s/sweep_{n}" for n in (0, 1)]
    assert not (tmp_path / "outputs").exists()


def test_a_run_that_fails_does_not_end_a_sweep_and_a_stopped_one_does(command):
    def fail_first(config: TrainConfig) -> int:
        if config.seed == 0:
            raise RunError("the disk is [full]")
        if config.seed == 1:
            raise UserError("no such file")
        return 0

    code, configs, _, err = command("-m", *TINY, "seed=0,1,2", outcome=fail_first)
    assert (code, len(configs)) == (2, 3)
    assert "error: run 1 of 3, seed=0: the disk is [full]" in err
    assert "error: run 2 of 3, seed=1: no such file" in err
    code, configs, _, _ = command("-m", *TINY, "seed=0,1,2", outcome=lambda config: 130)
    assert (code, len(configs)) == (130, 1)


def test_half_an_environment_of_torchrun_is_named_with_any_other_mistake(command, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    code, configs, _, err = command(*TINY)
    assert (code, configs) == (2, [])
    assert "error: RANK=1 is set in the environment without WORLD_SIZE, MASTER_ADDR" in err
    _, _, _, err = command(*TINY, "trainer.num_steps=-1")
    assert "trainer.num_steps must be >= 0, got -1; and RANK=1 is set" in err


def test_text_that_a_stream_cannot_show_is_plain_and_no_error():
    import io

    from rl.plain_output import allow_any_text

    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    before, sys.stdout = sys.stdout, stream
    try:
        allow_any_text()
        print("\u2713 \u2717 3 \u00d7 4 \u4e2d")  # noqa: T201
        stream.flush()
    finally:
        sys.stdout = before
    assert stream.buffer.getvalue() == b"+ x 3 x 4 ?\n"
