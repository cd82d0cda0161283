from collections import Counter
from itertools import chain, pairwise

import pytest

from scumble.data.buckets import BatchPlan, bucket_sizes, nearest_bucket
from scumble.errors import UserError

A, B, C = (48, 80), (64, 64), (80, 48)


class TestSizes:
    @pytest.mark.parametrize(
        ("resolution", "step"),
        [(32, 4), (64, 4), (64, 8), (64, 16), (512, 8), (512, 64), (1024, 64)],
    )
    def test_equal_area_multiples_within_the_aspect(self, resolution, step):
        sizes = bucket_sizes(resolution, step)
        assert (resolution, resolution) in sizes
        assert len(sizes) >= 3
        for height, width in sizes:
            assert height % step == 0
            assert width % step == 0
            assert 0.93 * resolution**2 <= height * width <= resolution**2
            assert max(height, width) <= 2 * min(height, width)
            assert (width, height) in sizes
        assert len(set(sizes)) == len(sizes)

    def test_by_hand(self):
        assert bucket_sizes(64, 16) == [A, B, C]
        assert bucket_sizes(512, 64) == [(384, 640), (448, 576), (512, 512), (576, 448), (640, 384)]

    def test_a_wider_aspect_adds_sizes(self):
        assert set(bucket_sizes(64, 16)) < set(bucket_sizes(64, 16, max_aspect=4.0))
        assert (32, 128) in bucket_sizes(64, 16, max_aspect=4.0)
        assert bucket_sizes(512, 64, max_aspect=1.0) == [(512, 512)]

    def test_a_resolution_between_steps_keeps_the_largest_square(self):
        assert (64, 64) in bucket_sizes(100, 64)

    def test_a_resolution_under_one_step(self):
        with pytest.raises(UserError, match=r"resolution 32 is too small.*steps of 64"):
            bucket_sizes(32, 64)


class TestNearest:
    @pytest.mark.parametrize(
        ("width", "height", "bucket"),
        [(100, 100, B), (1000, 600, A), (6, 10, C), (5000, 10, A), (1, 1000, C), (110, 100, B)],
    )
    def test_by_aspect(self, width, height, bucket):
        assert nearest_bucket(width, height, [A, B, C]) == bucket

    def test_wide_and_tall_are_measured_alike(self):
        # 3:2 is nearer to 2:1 than to 1:1 by ratio (1.33 against 1.5), not by difference.
        assert nearest_bucket(300, 200, [(64, 64), (32, 64)]) == (32, 64)
        assert nearest_bucket(200, 300, [(64, 64), (64, 32)]) == (64, 32)


BUCKETS = [A] * 11 + [B] * 23 + [C] * 2


class TestPlan:
    @pytest.mark.parametrize(("batch", "accumulation"), [(1, 1), (2, 4), (3, 2), (50, 1)])
    def test_every_example_once_per_epoch_from_one_bucket_per_step(self, batch, accumulation):
        plan = BatchPlan(BUCKETS, batch, accumulation, seed=1)
        for epoch in range(2):
            indices = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
            steps = [plan.step(index) for index in indices]
            assert Counter(chain.from_iterable(step.examples for step in steps)) == Counter(
                range(36)
            )
            for index, step in zip(indices, steps, strict=True):
                assert (step.index, step.epoch) == (index, epoch)
                assert len({BUCKETS[example] for example in step.examples}) == 1
                assert len(step.micro_batches) <= accumulation
                assert all(1 <= len(micro) <= batch for micro in step.micro_batches)

    def test_any_step_can_be_asked_for_alone(self):
        plan = BatchPlan(BUCKETS, 2, 2, seed=3)
        in_order = [plan.step(index) for index in range(3 * plan.steps_per_epoch)]
        backwards = [plan.step(index) for index in reversed(range(3 * plan.steps_per_epoch))]
        assert backwards[::-1] == in_order
        for index in (0, 7, plan.steps_per_epoch, 2 * plan.steps_per_epoch + 1):
            assert BatchPlan(BUCKETS, 2, 2, seed=3).step(index) == in_order[index]

    def test_how_a_step_is_split_never_changes_what_it_sees(self):
        plans = [BatchPlan(BUCKETS, batch, 8 // batch, seed=5) for batch in (8, 4, 2, 1)]
        for index in range(2 * plans[0].steps_per_epoch):
            assert len({plan.step(index).examples for plan in plans}) == 1
        assert {len(plan.step(0).micro_batches) for plan in plans} != {1}

    def test_epochs_and_seeds_differ_and_buckets_mix(self):
        def order(seed, epoch):
            plan = BatchPlan(BUCKETS, 1, 1, seed)
            return [plan.step(epoch * 36 + index).examples[0] for index in range(36)]

        first = order(seed=0, epoch=0)
        assert first == order(seed=0, epoch=0)
        assert len({tuple(first), tuple(order(0, 1)), tuple(order(1, 0))}) == 3
        changes = sum(BUCKETS[a] != BUCKETS[b] for a, b in pairwise(first))
        assert changes > 5
        in_b = [example for example in first if BUCKETS[example] == B]
        assert in_b != sorted(in_b)

    def test_each_epoch_puts_other_examples_together(self):
        plan = BatchPlan([B] * 40, 4, 1, seed=0)
        epochs = [{frozenset(plan.step(10 * e + i).examples) for i in range(10)} for e in (0, 1)]
        assert not epochs[0] & epochs[1]

    def test_step_count_and_nominal_size(self):
        plan = BatchPlan(BUCKETS, 2, 2, seed=0)
        assert (plan.steps_per_epoch, plan.nominal) == (3 + 6 + 1, 4)
        sizes = Counter(len(plan.step(index).examples) for index in range(10))
        assert sizes == {4: 7, 3: 2, 2: 1}

    def test_nominal_is_what_the_largest_bucket_can_give(self):
        assert BatchPlan([A, A, B], 8, 4, seed=0).nominal == 2

    def test_nothing_to_plan(self):
        with pytest.raises(UserError, match="no examples"):
            BatchPlan([], 1, 1, seed=0)
        with pytest.raises(UserError, match="0 x 1"):
            BatchPlan([A], 0, 1, seed=0)
