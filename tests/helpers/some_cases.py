"""Which cases of a test `--cases` runs."""

from zlib import crc32


def chosen(cases, most):
    """As many of the cases of a test, always the same; of one marked `every_case`, those that the mark names."""
    mark = cases[0].get_closest_marker("every_case")
    if mark is not None:
        wanted = mark.kwargs.items()
        return [case for case in cases if all(case.callspec.params[name] in values for name, values in wanted)]
    first, most = crc32(cases[0].nodeid.partition("[")[0].encode()), min(most, len(cases))
    return [cases[(first + step * len(cases) // most) % len(cases)] for step in range(most)]
