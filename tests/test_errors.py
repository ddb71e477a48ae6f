"""Errors reach the parent process of a study whole."""

from __future__ import annotations

import pickle

import pytest

from agrikd import errors
from agrikd.errors import AgriKDError, InputError, MissingExtraError, Problem

ALL = [
    InputError([Problem("a.csv:3", "is wrong", "mend it"), Problem("b", "is too")]),
    MissingExtraError("torch", "train"),
    errors.GateError("refused"),
    errors.ParityError("differs"),
    errors.TrainingError("stopped"),
    errors.StorageError("full"),
    errors.DeviceError("no libcudart.so"),
    errors.TrustError("unsigned"),
    errors.RolledBackError("too slow"),
]


@pytest.mark.parametrize("error", ALL, ids=lambda error: type(error).__name__)
def test_an_error_survives_the_way_between_processes(error: AgriKDError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error) and str(again) == str(error) and again.exit_code == error.exit_code


def test_each_error_has_an_exit_code_of_its_own() -> None:
    codes = {type(error).exit_code for error in ALL}
    own = [one for one in AgriKDError.__subclasses__() if one.__module__ == errors.__name__]
    assert len(ALL) == len(codes) == len(own) == 9


def test_many_problems_are_cut_to_a_screen() -> None:
    text = str(InputError(Problem(f"row {n}", "is wrong") for n in range(100)))
    assert text.count("\n") == InputError.most_shown and "88 more" in text
