"""The one exception of the project that is meant for people."""


class AnchorEditError(ValueError):
    """Report a mistake in what the user gave us.

    problem  one sentence without its full stop that names the thing, its value and what was expected
    remedy   the sentence that says what to do; "" where the problem says it

    The command line prints both and exits with code 2, a node shows the remedy first. Programming errors are never
    wrapped in it.
    """

    def __init__(self, problem: str, remedy: str = ""):
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem}. {self.remedy}." if self.remedy else self.problem
