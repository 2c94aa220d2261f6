"""The measurement of weight updates runs whole: engines in processes, decoding, that take versions and hold them."""

import pytest

from rollout.config import TINY, Dtype, EngineConfig, ModelConfig
from rollout.models.checkpoint import load_decoder, torch_dtype
from rollout.models.sources import resolve_model
from scripts.bench.fleet.updates import measure_updates


@pytest.mark.parametrize("concurrency", [0, 3])
def test_an_update_is_timed_from_publish_to_commit(concurrency):
    model = ModelConfig(path=TINY, dtype=Dtype.float32)
    result = measure_updates(
        model,
        EngineConfig(kv_cache_gb=0.01),
        num_receivers=1,
        concurrency=concurrency,
        num_threads=1,
        repeats=1,
        bucket_mb=0.05,
    )
    decoder = load_decoder(resolve_model(model), dtype=torch_dtype(model.dtype, "cpu"))
    num_bytes = sum(tensor.nbytes for _, tensor in decoder.hf_tensors())
    assert (result["receivers"], result["mb"]) == (1, round(num_bytes / 1e6, 1))
    parts = ("digest_seconds", "stage_seconds", "verify_seconds")
    assert 0 < sum(result[part] for part in parts) <= result["publish_to_commit_seconds"]
    assert ("longest_step_new_ms" in result) == (concurrency > 0), "of engines that decode"
