"""Evaluation of a model on a task's held-out prompts, without training."""

from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.text import Text

from rl.cli import RunError, UserError
from rl.config import EvaluateConfig
from rl.rewards.pool import ScorerPool
from rl.runs.directory import run_dir_of
from rl.tasks.task import Task, load_task
from rl.tracking.answers import pair_answers
from rl.tracking.harmless import Harmless
from rl.tracking.summary import print_summary
from rl.trainer.checks import check_context
from rl.trainer.collect.collector import Collector
from rl.trainer.collect.encoded_prompts import EncodedPrompts, leave_out_long
from rl.trainer.collect.evaluation import Evaluation, evaluate
from rl.trainer.collect.scoring import ScoringError, check_scores
from rl.trainer.metrics.rollouts import sample_rows
from rollout.build.engines import load_engine
from rollout.core import SamplingParams
from rollout.engine.engine import Engine
from rollout.fleet.inline import InlineFleet
from rollout.models.sources import resolve_model

__all__ = ["evaluate_model"]


def evaluate_model(config: EvaluateConfig) -> None:
    """Print the accuracy and sample answers of `config.model` on the held-out prompts of `config.task`.

    Raises:
        UserError: the config, or a file that it names, has a mistake.
        RunError: scoring failed for a larger share of completions than `reward.max_error_rate`.
    """
    try:
        task = load_task(config.task, needs_training=False)
        model = resolve_model(config.model)
        engine = load_engine(config.model, config.engine)
        task = leave_out_long(task, config.task, engine.tokenizer)
        prompts = EncodedPrompts(task.held_out, engine.tokenizer)
        check_context(
            prompts,
            len(prompts),
            max_tokens=config.sampling.max_tokens,
            max_context_tokens=engine.max_context_tokens,
            what="held-out",
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    console, harmless = Console(), Harmless()
    with harmless("the plan"):
        _print_plan(console, config, task, model)
    evaluation = _evaluate(console, config, task, engine, prompts)
    try:
        problem = check_scores(evaluation.groups, max_error_rate=config.reward.max_error_rate)
    except ScoringError as error:
        raise RunError(str(error)) from error
    with harmless("the summary"):
        print_summary(
            console,
            before=None,
            after=evaluation.metrics(),
            answers=pair_answers(None, sample_rows(evaluation.groups, step=0)),
            paths={"model": model},
        )
        if problem:
            console.print(Text(f"{problem}; they count as wrong", "yellow"), soft_wrap=True)


def _evaluate(
    console: Console,
    config: EvaluateConfig,
    task: Task,
    engine: Engine,
    prompts: EncodedPrompts,
) -> Evaluation:
    reward = config.reward
    with (
        ScorerPool(
            task.scorer,
            num_workers=reward.num_workers,
            time_limit_seconds=reward.time_limit_seconds,
            memory_limit_gb=reward.memory_limit_gb,
        ) as pool,
        Progress(console=console, transient=True) as bar,
    ):
        line = bar.add_task("evaluation", total=len(prompts))
        evaluation = evaluate(
            Collector(InlineFleet(engine), pool),
            [prompts[i] for i in range(len(prompts))],
            params=SamplingParams.of(config.sampling, seed=config.seed),
            progress=lambda done, total: bar.update(line, completed=done),
        )
    assert evaluation is not None, "an evaluation without `is_stopping` always ends with a result"
    return evaluation


def _print_plan(console: Console, config: EvaluateConfig, task: Task, model: Path) -> None:
    """Print the model, the task and the sampling of an evaluation, and the origin of these settings."""
    sampling = config.sampling
    run_dir = run_dir_of(config.model.path)
    drawn = "greedily" if sampling.temperature == 0 else f"at temperature {sampling.temperature:g}"
    rows = {
        "model": str(model),
        "task": f"{task.name}, {len(task.held_out):,} held-out prompts",
        "answers": f"of at most {sampling.max_tokens} tokens, {drawn}, stops {sampling.stop}",
        "as in": f"{run_dir}/config.yaml" if run_dir else "the command line",
    }
    for name, value in rows.items():
        console.print(Text.assemble((f"{name:<9}", "dim"), value), soft_wrap=True)
