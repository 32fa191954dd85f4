"""Keys: names, globs, modules mounted under two names."""

import pytest
from exact_models import assert_is_input_times_gradient, both_formulations, inputs, linear
from support import Fn, fingerprint, mlp

from lxt_compose import Composite, Epsilon, MatchError, where


def test_names_are_keys_and_one_that_matches_nothing_raises():
    """Exact names and globs are keys; a name that matches nothing raises, and tells the closest."""
    model = mlp()
    for key, bound in (("fc1", ["fc1"]), ("fc?", ["fc1", "fc2"]), ("f*", ["fc1", "fc2"]), ("", [""])):
        with Composite({key: Epsilon()}).register(model) as registration:
            assert [row.path for row in registration.report().rows] == bound
    before = fingerprint(model)
    with pytest.raises(MatchError, match=r"no module matches 'fc3' in Sequential; closest: 'fc[12]'"):
        Composite({"fc3": Epsilon()}).register(model)
    assert fingerprint(model) == before


@both_formulations
def test_a_module_mounted_under_two_names_is_found_by_both(formulation):
    """``named_modules()`` hides the second name: here both match, and both are listed."""
    layer = linear()
    model = Fn(lambda self, x: self.second(self.first(x)), first=layer, second=layer)
    for key in ("first", "second", "s*"):
        with Composite({key: Epsilon()}, formulation=formulation).register(model) as registration:
            (row,) = registration.report().rows
            assert (row.path, *row.aliases) == ("first", "second")
    assert_is_input_times_gradient(model, inputs(4, 6), formulation, {"second": Epsilon(1e-12)}.items())


def test_a_predicate_is_shown_by_its_name():
    def wide(name, module):
        return True

    assert repr(Composite({where(wide): Epsilon()})).count("where(wide)") == 1
