"""The ack ledger against the simplest thing that could be right: a set of the offsets in hand."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from famulus.channels.ledger import PartitionLedger


class NaiveLedger:
    """The law, written down with no thought of speed."""

    def __init__(self, generation: int, position: int) -> None:
        self.generation = generation
        self.newest = position
        self.in_hand: set[int] = set()

    def deliver(self, offsets: Sequence[int], next_offset: int) -> None:
        self.in_hand.update(offsets)
        self.newest = next_offset

    def ack(self, offset: int, generation: int) -> bool:
        if generation != self.generation or offset not in self.in_hand:
            return False
        self.in_hand.remove(offset)
        return True

    @property
    def committable(self) -> int:
        return min(self.in_hand, default=self.newest)


GAPS = st.one_of(st.just(0), st.integers(0, 3), st.integers(60, 70), st.just(1_000_000))


class LedgerAgainstModel(RuleBasedStateMachine):
    """Deliveries with gaps, acks of anything in any order, assignments that change."""

    def __init__(self) -> None:
        super().__init__()
        self.real = PartitionLedger(1, 10)
        self.model = NaiveLedger(1, 10)

    def check_ack(self, offset: int, generation: int) -> None:
        assert self.real.ack(offset, generation) is self.model.ack(offset, generation)

    @rule(lead=GAPS, length=st.integers(1, 400), markers=GAPS)
    def deliver_a_dense_run(self, lead: int, length: int, markers: int) -> None:
        first = self.model.newest + lead
        last = first + length - 1
        self.real.deliver(first, last, last + 1 + markers)
        self.model.deliver(range(first, last + 1), last + 1 + markers)

    @rule(steps=st.lists(GAPS, max_size=30), markers=GAPS)
    def deliver_with_gaps(self, steps: list[int], markers: int) -> None:
        offsets: list[int] = []
        offset = self.model.newest
        for step in steps:
            offset += step
            offsets.append(offset)
            offset += 1
        self.real.deliver_offsets(offsets, offset + markers)
        self.model.deliver(offsets, offset + markers)

    @rule(data=st.data())
    @precondition(lambda self: bool(self.model.in_hand))
    def ack_something_in_hand(self, data: st.DataObject) -> None:
        self.check_ack(data.draw(st.sampled_from(sorted(self.model.in_hand))), self.model.generation)

    @rule(count=st.integers(1, 600))
    def ack_in_order(self, count: int) -> None:
        for offset in sorted(self.model.in_hand)[:count]:
            self.check_ack(offset, self.model.generation)

    @rule(count=st.integers(1, 600), seed=st.integers(0, 99))
    def ack_shuffled(self, count: int, seed: int) -> None:
        offsets = sorted(self.model.in_hand)[:count]
        random.Random(seed).shuffle(offsets)
        for offset in offsets:
            self.check_ack(offset, self.model.generation)

    @rule(count=st.integers(1, 600), step=st.integers(2, 5))
    def ack_every_nth(self, count: int, step: int) -> None:
        for offset in sorted(self.model.in_hand)[:count:step]:
            self.check_ack(offset, self.model.generation)

    @rule(back=st.integers(-5, 200))
    def ack_anything_near(self, back: int) -> None:
        self.check_ack(self.model.committable - 3 + back, self.model.generation)
        self.check_ack(self.model.newest - back, self.model.generation)

    @rule(back=st.integers(1, 3))
    def ack_from_another_generation(self, back: int) -> None:
        self.check_ack(self.model.committable, self.model.generation - back)
        self.check_ack(self.model.committable, self.model.generation + back)

    @rule()
    def redelivery_is_refused(self) -> None:
        if self.model.newest > 10:
            with pytest.raises(ValueError, match="expected"):
                self.real.deliver(self.model.newest - 1, self.model.newest, self.model.newest + 1)

    @rule()
    def a_new_assignment_starts_at_the_commit(self) -> None:
        position, generation = self.model.committable, self.model.generation + 1
        self.real, self.model = PartitionLedger(generation, position), NaiveLedger(generation, position)

    @invariant()
    def they_agree(self) -> None:
        assert self.real.committable == self.model.committable
        assert self.real.newest == self.model.newest
        assert self.real.in_flight == len(self.model.in_hand)
        assert self.real.span == self.model.newest - self.model.committable


TestLedgerAgainstModel = LedgerAgainstModel.TestCase
TestLedgerAgainstModel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@given(st.permutations(range(40)))
def test_the_commit_is_past_everything_once_all_is_acked_in_any_order(order: list[int]) -> None:
    ledger = PartitionLedger(7, 0)
    ledger.deliver(0, 39, 45)
    assert [ledger.ack(offset, 7) for offset in order] == [True] * 40
    assert (ledger.committable, ledger.in_flight, ledger.span) == (45, 0, 0)


def test_gaps_are_no_hole() -> None:
    ledger = PartitionLedger(1, 100)
    ledger.deliver_offsets([103, 104, 110, 5000], 5002)
    assert ledger.committable == 103
    answers = [ledger.ack(offset, 1) for offset in (104, 103, 105, 110, 5001)]
    assert answers == [True, True, False, True, False]
    assert ledger.committable == 5000
    assert ledger.ack(5000, 1)
    assert ledger.committable == ledger.newest == 5002


def test_markers_alone_move_the_commit_only_when_nothing_is_in_hand() -> None:
    ledger = PartitionLedger(1, 0)
    ledger.deliver(0, 0, 1)
    ledger.deliver_offsets([], 9)
    assert (ledger.committable, ledger.newest) == (0, 9)
    ledger.ack(0, 1)
    assert ledger.committable == 9


def test_finished_runs_take_no_memory() -> None:
    ledger = PartitionLedger(1, 0)
    ledger.deliver(0, 0, 1)
    for first in range(1, 100_000, 10):
        ledger.deliver(first, first + 9, first + 10)
        for offset in range(first - 1, first + 9):
            ledger.ack(offset, 1)
    assert len(ledger._firsts) < 200
    assert ledger.in_flight == 1


@pytest.mark.parametrize(
    ("offsets", "next_offset"),
    [([9], 10), ([10, 12, 11, 15], 16), ([10, 10, 13], 14), ([10, 11], 11), ([], 9)],
)
def test_an_impossible_delivery_is_refused_and_changes_nothing(offsets: list[int], next_offset: int) -> None:
    ledger = PartitionLedger(1, 10)
    with pytest.raises(ValueError, match=r"expected|rise"):
        ledger.deliver_offsets(offsets, next_offset)
    assert (ledger.committable, ledger.newest, ledger.in_flight) == (10, 10, 0)
