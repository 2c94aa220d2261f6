import pytest
import torch

from rollout.weights.manifest import Manifest
from rollout.weights.staging import HeldWeights, ReceiverState, WeightReceiver
from rollout.weights.update import WeightUpdate, make_update
from tests.rollout.weights.tensor_set import TensorSet


class FusedModel:
    """As an engine holds them: q and k are row ranges of one parameter, up a column range of another."""

    def __init__(self) -> None:
        live = {"qk": torch.zeros(6, 4), "mlp": torch.zeros(3, 8, dtype=torch.bfloat16)}
        self.spare = {name: torch.full_like(tensor, 99) for name, tensor in live.items()}
        self.receiver = WeightReceiver(
            TensorSet(self.views(live)), TensorSet(self.views(self.spare)), version=0
        )

    @staticmethod
    def views(fused: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"q": fused["qk"][:4], "k": fused["qk"][4:], "up": fused["mlp"][:, 2:7]}

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: view.clone() for name, view in self.receiver.live.tensors.items()}


def weights(fill: float) -> dict[str, torch.Tensor]:
    return {
        "q": torch.arange(16.0).view(4, 4) + fill,
        "k": torch.arange(8.0).view(2, 4) - fill,
        "up": (torch.arange(15.0).view(3, 5) * fill).bfloat16(),
    }


def update(version: int, fill: float | None = None) -> WeightUpdate:
    return make_update(version, weights(version if fill is None else fill).items())


def assert_same(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name in got:
        assert torch.equal(got[name], expected[name]), name


def test_versions_replace_one_another_through_the_same_two_buffers():
    model = FusedModel()
    for version in (1, 2, 5):
        model.receiver.stage(update(version))
        model.receiver.verify()
        model.receiver.commit()
        assert_same(model.weights(), weights(version))
        assert model.receiver.version == version
        assert model.receiver.digest() == update(version).manifest.digest


def test_nothing_live_changes_before_the_commit():
    model = FusedModel()
    before, digest = model.weights(), model.receiver.digest()
    model.receiver.stage(update(1))
    model.receiver.verify()
    assert_same(model.weights(), before)
    assert (model.receiver.version, model.receiver.digest()) == (0, digest)


def test_columns_between_the_views_are_left_alone():
    model = FusedModel()
    model.receiver.stage(update(1))
    assert (model.spare["mlp"][:, [0, 1, 7]] == 99).all()


def test_what_was_staged_is_a_copy():
    model, handed_over = FusedModel(), update(1)
    model.receiver.stage(handed_over)
    for tensor in handed_over.tensors.values():
        tensor.zero_()  # the trainer goes on
    model.receiver.verify()
    model.receiver.commit()
    assert_same(model.weights(), weights(1))


@pytest.mark.parametrize("name", ["q", "k", "up"])
def test_one_wrong_element_leaves_the_old_version_in_force(name):
    model = FusedModel()
    before = model.weights()
    torn = update(1)
    torn.tensors[name][-1, -1] += 64  # after the digest was taken
    model.receiver.stage(torn)
    with pytest.raises(
        RuntimeError, match=rf"version 1 differ .* 1 of 3 tensors: {name}; version 0 stays"
    ):
        model.receiver.verify()
    assert model.receiver.state is ReceiverState.IDLE
    assert model.receiver.version == 0
    assert_same(model.weights(), before)

    model.receiver.stage(update(1))  # the same version, sent again
    model.receiver.verify()
    model.receiver.commit()
    assert_same(model.weights(), weights(1))


def test_a_rollback_drops_what_was_staged_or_verified():
    model = FusedModel()
    before = model.weights()
    model.receiver.stage(update(1))
    model.receiver.rollback()
    model.receiver.stage(update(1))
    model.receiver.verify()
    model.receiver.rollback()
    with pytest.raises(
        RuntimeError, match="commit is not allowed while the weight receiver is IDLE"
    ):
        model.receiver.commit()
    assert_same(model.weights(), before)
    assert model.receiver.version == 0


def test_staging_that_fails_leaves_the_old_version_in_force_and_room_for_the_next():
    model = FusedModel()
    before, held = model.weights(), model.receiver.held()

    def fill_half() -> None:
        with model.receiver.staging(update(1).manifest) as shadows:
            shadows["q"].fill_(5)
            assert model.receiver.state is ReceiverState.STAGING
            for call in ("verify", "commit", "rollback", "stage"):
                with pytest.raises(
                    RuntimeError, match=r"STAGING .*allowed now: none before it ends"
                ):
                    getattr(model.receiver, call)(*([update(1)] if call == "stage" else []))
            raise ConnectionError("the sender is gone")

    with pytest.raises(ConnectionError):
        fill_half()
    assert model.receiver.state is ReceiverState.IDLE
    assert_same(model.weights(), before)
    assert model.receiver.held() == held == HeldWeights(version=0, digest=model.receiver.digest())
    model.receiver.stage(update(1))
    model.receiver.verify()
    model.receiver.commit()
    assert model.receiver.held() == HeldWeights(version=1, digest=update(1).manifest.digest)
    assert model.receiver.digest() == update(1).manifest.digest


ORDER = {
    ReceiverState.IDLE: ({"stage"}, "stage"),
    ReceiverState.STAGED: ({"verify", "rollback"}, "verify or rollback"),
    ReceiverState.VERIFIED: ({"commit", "rollback"}, "commit or rollback"),
}


@pytest.mark.parametrize("state", ORDER, ids=lambda state: state.name)
@pytest.mark.parametrize("call", ["stage", "verify", "commit", "rollback"])
def test_a_call_out_of_order_says_the_state_and_what_is_allowed(state, call):
    receiver = FusedModel().receiver
    if state is not ReceiverState.IDLE:
        receiver.stage(update(1))
    if state is ReceiverState.VERIFIED:
        receiver.verify()
    arguments = [update(2)] if call == "stage" else []
    allowed, described = ORDER[state]
    if call in allowed:
        getattr(receiver, call)(*arguments)
        return
    with pytest.raises(RuntimeError, match=rf"{call} .* {state.name} .*allowed now: {described}$"):
        getattr(receiver, call)(*arguments)
    assert receiver.state is state


@pytest.mark.parametrize("version", [-1, 0, 3])
def test_an_old_version_is_refused(version):
    model = FusedModel()
    model.receiver.stage(update(3))
    model.receiver.verify()
    model.receiver.commit()
    with pytest.raises(ValueError, match=rf"newer than version 3, got {version}"):
        model.receiver.stage(update(version))
    assert model.receiver.state is ReceiverState.IDLE


def test_missing_extra_and_mismatched_tensors_are_named_and_counted():
    sent = weights(1) | {"bias": torch.zeros(1), "up": torch.zeros(3, 5)}
    del sent["q"]
    receiver = FusedModel().receiver
    with pytest.raises(
        ValueError,
        match=r"match the 3 live tensors, got 1 missing: q; 1 extra: bias; "
        r"1 mismatched: up is float32\[3, 5\], not bfloat16\[3, 5\]",
    ):
        receiver.stage(make_update(1, sent.items()))
    assert receiver.state is ReceiverState.IDLE


def test_a_long_list_of_names_is_cut_but_counted():
    extra = {f"layer{i}": torch.zeros(1) for i in range(10)}
    with pytest.raises(ValueError, match="10 extra: layer0, layer1, layer2 and 7 more"):
        FusedModel().receiver.stage(make_update(1, (weights(1) | extra).items()))


@pytest.mark.parametrize("shape", [(1, 4), (4,), (4, 1), (16,), (2, 8)])
def test_no_tensor_is_broadcast_or_reshaped_into_place(shape):
    sent = weights(1) | {"q": torch.zeros(shape)}
    with pytest.raises(ValueError, match=r"1 mismatched: q is float32.*, not float32\[4, 4\]"):
        FusedModel().receiver.stage(make_update(1, sent.items()))


def test_a_payload_that_is_not_what_its_manifest_says_is_refused():
    manifest = update(1).manifest
    for payload in (weights(1) | {"q": torch.zeros(1, 4)}, {"q": weights(1)["q"]}):
        with pytest.raises(ValueError, match="the update must match"):
            FusedModel().receiver.stage(WeightUpdate(version=1, manifest=manifest, tensors=payload))


def test_shadows_of_another_layout_are_refused_at_construction():
    with pytest.raises(
        ValueError, match="the shadows must match the 3 live tensors, got 1 mismatched: k"
    ):
        WeightReceiver(
            TensorSet(weights(0)), TensorSet(weights(0) | {"k": torch.zeros(2, 3)}), version=0
        )


def test_a_commit_exchanges_the_two_sets_as_they_are():
    live, shadow = TensorSet(weights(0)), TensorSet(weights(9))
    receiver = WeightReceiver(live, shadow, version=0)
    receiver.stage(update(1))
    receiver.verify()
    assert receiver.live is live
    receiver.commit()
    assert receiver.live is shadow
    assert receiver.shadow is live
    assert_same(dict(live.tensors), weights(0))


def test_what_is_verified_is_prepared_and_what_is_wrong_is_not():
    prepared = []
    shadows = weights(9)
    shadow = TensorSet(
        shadows, prepare=lambda: prepared.append((receiver.state, shadows["q"].clone()))
    )
    receiver = WeightReceiver(TensorSet(weights(0)), shadow, version=0)
    torn = update(1)
    torn.tensors["k"][0, 0] += 1
    receiver.stage(torn)
    with pytest.raises(RuntimeError, match="differ from their manifest"):
        receiver.verify()
    assert prepared == []
    receiver.stage(update(1))
    receiver.verify()
    ((state, q),) = prepared
    assert state is ReceiverState.STAGED
    assert torch.equal(q, weights(1)["q"])


def test_what_cannot_be_prepared_leaves_the_old_version_in_force():
    def prepare() -> None:
        raise MemoryError("no room")

    receiver = WeightReceiver(TensorSet(weights(0)), TensorSet(weights(9), prepare), version=0)
    receiver.stage(update(1))
    with pytest.raises(MemoryError):
        receiver.verify()
    assert (receiver.version, receiver.state) == (0, ReceiverState.IDLE)


def test_parameters_with_gradients_can_be_sent_and_received():
    live = {"w": torch.nn.Parameter(torch.zeros(3))}
    shadow = {"w": torch.nn.Parameter(torch.zeros(3))}
    receiver = WeightReceiver(TensorSet(live), TensorSet(shadow), version=0)
    receiver.stage(make_update(1, [("w", torch.nn.Parameter(torch.ones(3)))]))
    receiver.verify()
    receiver.commit()
    assert shadow["w"].tolist() == [1.0, 1.0, 1.0]
    assert live["w"].tolist() == [0.0, 0.0, 0.0]


def test_a_name_twice_in_an_update_is_refused():
    with pytest.raises(ValueError, match=r"got twice: \['w'\]"):
        make_update(1, [("w", torch.zeros(1)), ("w", torch.ones(1))])


def test_an_update_and_its_manifest_have_one_version():
    with pytest.raises(ValueError, match="version 2 of the update must be its manifest's, 1"):
        WeightUpdate(version=2, manifest=Manifest(version=1, tensors=()), tensors={})
