"""Generation of completions in the terminal."""

from rich.console import Console
from rich.text import Text

from rl.cli import UserError
from rl.config import GenerateConfig
from rl.tasks.form import PromptForm
from rollout.build.engines import load_engine
from rollout.core import Completion, SamplingParams

__all__ = ["generate"]


def generate(config: GenerateConfig) -> None:
    """Print `num_samples` completions of each prompt, in the prompt form of the config.

    Raises:
        UserError: the config, or a file that it names, has a mistake.
    """
    if not config.prompts:
        raise UserError("prompts must hold at least one prompt, got []; prompts='[\"12 + 35 =\"]'")
    form = PromptForm(
        system_prompt=config.system_prompt,
        user_prompt=config.user_prompt,
        reply_prefix=config.reply_prefix,
    )
    try:
        chats = [form.messages(prompt, {}) for prompt in config.prompts]
        engine = load_engine(config.model, config.engine)
        params = SamplingParams.of(config.sampling, n=config.num_samples, seed=config.seed)
        has_template = bool(engine.tokenizer.chat_template)
        outputs = engine.generate(chats if has_template else config.prompts, params)
    except ValueError as error:
        raise UserError(str(error)) from error
    console = Console()
    for prompt, completions in zip(config.prompts, outputs, strict=True):
        console.print(Text(f"\n{prompt}", "bold"), soft_wrap=True)
        for completion in completions:
            console.print(_line(completion), soft_wrap=True)


def _line(completion: Completion) -> Text:
    text = completion.text.strip() or completion.message
    return Text.assemble((f"{completion.finish_reason:>8}  ", "dim"), text)
