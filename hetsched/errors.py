"""The errors and warnings a person sees: what is wrong, where, and what to do."""


class HetschedError(Exception):
    """The input is wrong: `message` says what and where, `hint` what to do. The CLI exits with `exit_code`."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class InfeasibleError(HetschedError):
    """The input is right, but no plan satisfies it: which limit, on which device, by how much."""

    exit_code = 3


class HetschedWarning(UserWarning):
    """Something was assumed or passed over that the reader of the result should know."""
