"""How the steps of lost workers are counted, without Ray around it."""

from __future__ import annotations

from jobs._redone import Account, Tally, total


def test_a_student_that_starts_over_redoes_what_was_told_of_it_and_no_other_does() -> None:
    tally = Tally()
    assert tally.begin("real-a") == Account(starts=1)
    tally.reach("real-a", 7)
    tally.begin("real-b")
    tally.reach("real-b", 3)
    assert tally.begin("real-a").costs() == {"num_restarts": 1, "steps_redone": 7}
    tally.reach("real-a", 2)  # it was lost again, earlier
    again = tally.begin("real-a")
    assert again.costs() == {"num_restarts": 2, "steps_redone": 9}
    assert total(again.costs(), tally.begin("real-b").costs()) == {"num_restarts": 3, "steps_redone": 12}


def test_a_tally_that_was_started_anew_counts_on_from_what_it_hears() -> None:
    anew = Tally()
    anew.reach("real-a", 5)  # its worker never noticed
    assert anew.begin("real-a").costs() == {"num_restarts": 1, "steps_redone": 5}


def test_records_from_before_costs_were_counted_have_none() -> None:
    assert total({"steps": 4}, {"steps": 4, "num_restarts": 1, "steps_redone": 2}) == {
        "num_restarts": 1,
        "steps_redone": 2,
    }
