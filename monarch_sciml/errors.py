"""One kind of message for everything a person can get wrong: expected, found, remedy."""

__all__ = ["InputError"]


class InputError(ValueError):
    """Data, a file or a setting that cannot be used, said in one line.

    ``InputError("a grid of at least 12 points", "8 points", "lower n_modes to 8")`` reads
    *expected a grid of at least 12 points; found 8 points; lower n_modes to 8*.
    """

    def __init__(self, expected: str, found: str, remedy: str):
        # the three parts are the arguments, so that the error survives its way out of a worker process
        super().__init__(expected, found, remedy)

    def __str__(self) -> str:
        expected, found, remedy = self.args
        return f"expected {expected}; found {found}; {remedy}"
