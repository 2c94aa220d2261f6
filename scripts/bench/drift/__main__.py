"""Measures how drafts age: acceptance against policy drift, as a JSON line per pair of versions and a PNG. `python -m scripts.bench.drift run=<run> task.name=...`."""

import json
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from rl.cli import UserError, launch
from scripts.bench.config import BenchDriftConfig
from scripts.bench.drift.measure import measure_drift
from scripts.bench.drift.versions import draw_drift, load_versions


def bench(config: BenchDriftConfig) -> None:
    try:
        with Progress(console=Console(stderr=True)) as bar:
            versions = list(bar.track(load_versions(config), description="versions answer"))
            num_pairs = len(versions) * (len(versions) + 1) // 2
            task = bar.add_task("pairs of versions", total=num_pairs)
            results = []
            for result in measure_drift(
                versions,
                max_draft_tokens=config.engine.speculation.max_draft_tokens,
                progress=lambda: bar.advance(task),
            ):
                results.append(result)
                print(json.dumps(result), flush=True)
        draw_drift(results, Path(config.output), title=Path(config.run).name)
    except ValueError as error:
        raise UserError(str(error)) from error
    print(f"drawn: {config.output}")


if __name__ == "__main__":
    launch(bench, config_name="bench_drift", schema=BenchDriftConfig)
