import pytest

from rollout.config import TINY, Dtype, EngineConfig, ModelConfig, RayFleetConfig
from scripts.bench.fleet.membership import measure_membership

TINY_MODEL = ModelConfig(path=TINY, dtype=Dtype.float32)
ENGINE = EngineConfig(kv_cache_gb=0.01)


@pytest.mark.slow
def test_a_join_and_a_loss_are_timed():
    fleet = RayFleetConfig(num_workers=2)
    result = measure_membership(TINY_MODEL, ENGINE, fleet, repeats=2)
    assert (result["workers"], result["repeats"]) == (2, 2)
    assert 0 < result["join_load_seconds"] <= result["join_seconds"]
    assert 0 < result["noticed_seconds"] <= result["replaced_seconds"]
    assert result["noticed_seconds"] <= result["answered_seconds"]


def test_a_lone_worker_cannot_be_done_without():
    with pytest.raises(ValueError, match=r"fleet\.num_workers must be >= 2 for membership, got 1"):
        measure_membership(TINY_MODEL, ENGINE, RayFleetConfig(num_workers=1), repeats=1)
