"""`asterism diagnose LIBRARY`."""

from __future__ import annotations

from asterism.cli.options import LIBRARY, Given, command
from asterism.cli.places import open_both


@command()
def app(library: LIBRARY, *, given: Given):
    """Say whether the library can be composed, and why.

    Collinearity of the domains before and after orthogonalisation, what Gram-Schmidt leaves of each, how far results
    hang on the order of the domains, how often the index finds a probe's own domain, and the advice that follows: by what was
    measured, where the index has been calibrated, else by geometry.
    """
    constellation = open_both(library, given)[1]
    from asterism.constellation.diagnosis import diagnose

    found = diagnose(constellation).to_dict()

    def show() -> None:
        from asterism.cli.output import diagnosis_tables

        diagnosis_tables(found)

    return found, show
