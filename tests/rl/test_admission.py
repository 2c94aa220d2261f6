from rl.trainer.admission import Admission


def test_synchronous_admission_is_one_batch_per_version():
    admission = Admission(num_prompts_per_step=4)
    assert admission.capacity(0) == 4
    admission.begin(4)
    assert admission.capacity(0) == 0
    admission.accept(4)
    assert admission.capacity(0) == 0  # complete, but version 1 is not out yet
    assert admission.capacity(1) == 4


def test_staleness_lets_that_many_batches_run_ahead():
    admission = Admission(num_prompts_per_step=4, max_staleness=2)
    assert admission.capacity(0) == 12


def test_a_resumed_run_does_not_burst():
    admission = Admission(num_prompts_per_step=4)
    admission.accepted = 28  # seven batches
    assert admission.capacity(7) == 4
