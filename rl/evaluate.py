"""Evaluate a model on a task's held-out prompts, without training."""

from rich.console import Console
from rich.progress import Progress

from rl.cli import UserError
from rl.config import EvaluateConfig
from rl.rewards.pool import ScorerPool
from rl.tasks.task import load_task
from rl.tracking.summary import print_summary
from rl.trainer.collect.collector import Collector
from rl.trainer.collect.encoded_prompts import EncodedPrompts
from rl.trainer.collect.evaluation import evaluate
from rl.trainer.metrics.step import sample_rows
from rollout.core import SamplingParams
from rollout.engine.engine import Engine
from rollout.fleet.inline import InlineFleet
from rollout.models.sources import resolve_model

__all__ = ["evaluate_model"]


def evaluate_model(config: EvaluateConfig) -> None:
    """Print accuracy and sample answers of `config.model` on the held-out prompts of `config.task`.

    Raises:
        UserError: a mistake in the config or in what it points to.
    """
    try:
        task = load_task(config.task)
        engine = Engine.from_config(config.model, config.engine)
    except ValueError as error:
        raise UserError(str(error)) from error
    prompts = EncodedPrompts(task.held_out, engine.tokenizer)
    reward = config.reward
    params = SamplingParams.of(config.sampling, seed=config.seed)
    console = Console()
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
            params=params,
            progress=lambda done, total: bar.update(line, completed=done),
        )
    assert evaluation is not None, "nobody can tell it to stop"
    print_summary(
        console,
        before=None,
        after=evaluation.metrics(),
        samples=sample_rows(evaluation.groups[:3], step=0),
        paths={"model": resolve_model(config.model)},
    )
