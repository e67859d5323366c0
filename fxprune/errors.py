"""Everything fxprune refuses, as one family of errors.

Each message is one paragraph that says what is wrong, where, and what to do about it.
"""


class FxPruneError(Exception):
    """Base of all errors that fxprune raises on purpose; ``exit_code`` is what the command line returns for it."""

    exit_code = 1


class InputError(FxPruneError):
    """Something the user gave cannot be used: a model, a shape, an option, a file."""

    exit_code = 2


class CaptureError(InputError):
    """The model cannot be captured as a graph."""


class PlanError(InputError):
    """A plan does not belong to this model, or cannot be carried out on it."""


class BudgetError(FxPruneError):
    """The budget cannot be met by any allowed removal."""


class PreconditionError(FxPruneError):
    """A pass was asked to run on a graph that does not meet its precondition."""

    exit_code = 2


class VerifyError(FxPruneError):
    """A check of numbers failed: the result is not the function it should be."""


class EnvironmentProblem(FxPruneError):
    """The environment cannot do it: a runtime or package is missing."""

    exit_code = 4


class TrainingError(FxPruneError):
    """A training cannot go on: its loss, its gradients or its weights are no numbers any more."""
