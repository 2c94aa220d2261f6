"""Completions in the terminal. `python scripts/generate.py 'prompts=["12 + 35 ="]' num_samples=4`."""

from rich.console import Console

from rl.cli import UserError, launch
from rl.config import GenerateConfig
from rollout.core import SamplingParams
from rollout.engine.engine import Engine


def generate(config: GenerateConfig) -> None:
    if not config.prompts:
        raise UserError("prompts must hold at least one prompt, got []; prompts='[\"12 + 35 =\"]'")
    try:
        engine = Engine.from_config(config.model, config.engine)
    except ValueError as error:
        raise UserError(str(error)) from error
    system = [{"role": "system", "content": config.system_prompt}] if config.system_prompt else []
    chats = [[*system, {"role": "user", "content": prompt}] for prompt in config.prompts]
    params = SamplingParams.of(config.sampling, n=config.num_samples, seed=config.seed)
    has_template = bool(engine.tokenizer.chat_template)
    console = Console(highlight=False)
    outputs = engine.generate(chats if has_template else config.prompts, params)
    for prompt, completions in zip(config.prompts, outputs, strict=True):
        console.print(f"\n[bold]{prompt}[/]")
        for completion in completions:
            text = completion.text.strip() or completion.message
            console.print(f"[dim]{completion.finish_reason:>8}[/]  ", end="")
            console.print(text, markup=False)


if __name__ == "__main__":
    launch(generate, config_name="generate")
