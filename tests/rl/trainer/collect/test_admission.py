from rl.trainer.collect.admission import Admission


def test_synchronous_admission_is_one_batch_per_version():
    admission = Admission(num_prompts_per_step=4, num_steps=100)
    assert admission.capacity(0) == 4
    admission.begin(4)
    assert admission.capacity(0) == 0
    admission.accept(4)
    assert admission.capacity(0) == 0  # complete, but version 1 is not out yet
    assert admission.capacity(1) == 4


def test_staleness_lets_that_many_batches_run_ahead():
    admission = Admission(num_prompts_per_step=4, num_steps=100, max_staleness=2)
    assert admission.capacity(0) == 12


def test_a_resumed_run_does_not_burst():
    admission = Admission(num_prompts_per_step=4, num_steps=100, first_version=7, first_accepted=28)
    assert admission.capacity(7) == 4


def test_a_run_may_be_resumed_with_batches_of_another_size():
    for size in (1, 4, 64):  # of batches that were 16 prompts each
        admission = Admission(
            num_prompts_per_step=size, num_steps=41, first_version=40, first_accepted=640
        )
        assert admission.capacity(40) == size
        admission.begin(size)
        admission.accept(size)
        assert admission.capacity(41) == 0


def test_what_no_step_would_train_on_is_never_begun():
    admission = Admission(num_prompts_per_step=4, num_steps=6, max_staleness=3)
    assert admission.capacity(0) == 16
    admission.accepted = 16
    assert admission.capacity(4) == 8, "batches 5 and 6, and no seventh"
    admission.begin(8)
    assert admission.capacity(5) == 0
