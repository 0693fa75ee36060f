"""What a promotion and a rollback make of the history of an alias, and which words are aliases."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.alias import checked_alias, promoted, rolled_back
from engines.base import RegistryError


def test_a_word_that_is_no_alias_is_refused_and_those_there_are_named():
    assert checked_alias("canary") == "canary"
    with pytest.raises(RegistryError, match="no alias 'latest'; there are production, canary, shadow"):
        checked_alias("latest")


@given(st.lists(st.one_of(st.sampled_from("abc"), st.none()), max_size=30))
def test_the_alias_is_a_stack_of_promotes_whose_rollbacks_are_remembered(steps):
    history, stack = [], []
    for version in steps:
        if version is None and len(stack) < 2:
            with pytest.raises(RegistryError):
                rolled_back(history, "", "", "")
            continue
        if version is None:
            stack.pop()
            history.append(rolled_back(history, "", "", ""))
        elif not stack or stack[-1] != version:
            stack.append(version)
            history.append(promoted(history, "production", version, "", "", ""))
        else:
            assert promoted(history, "production", version, "", "", "") is history[-1]
        assert history[-1].version == stack[-1]
        assert [move.number for move in history] == list(range(1, len(history) + 1))
