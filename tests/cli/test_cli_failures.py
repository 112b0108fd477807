"""How the end of a worker is told: the innermost histories and the real causes."""

from famulus.cli.failures import explain_failure, find_exit_request, summarize_failure
from famulus.supervision import CrashingSupervisor, Incident, OneForOneSupervisor, SupervisorFailed


def gave_up(path: str, reason: BaseException | None) -> SupervisorFailed:
    strategy = OneForOneSupervisor(max_restarts=0, within=60) if reason is None else CrashingSupervisor()
    return SupervisorFailed(path, strategy, (Incident(5.0, "child", 1, reason),))


def test_supervisors_above_and_groups_around_are_left_out() -> None:
    cause = ValueError("one\ntwo")
    failure = ExceptionGroup("tree", [gave_up("app", gave_up("app/agents", gave_up("app/agents/tally", cause)))])
    told = explain_failure(failure)
    assert told.startswith("supervisor 'app/agents/tally' gave up at the first incident")
    assert told.endswith("\nValueError: one\ntwo")
    assert "'app/agents'" not in told
    assert summarize_failure(failure) == "ValueError: one two (supervisor app/agents/tally gave up)"


def test_each_of_several_failures_is_told() -> None:
    failure = ExceptionGroup("both", [gave_up("app/tasks", OSError()), KeyError("body")])
    assert summarize_failure(failure) == "OSError (supervisor app/tasks gave up); KeyError: 'body'"
    told = explain_failure(failure)
    assert told.index("supervisor 'app/tasks'") < told.index("OSError") < told.index("KeyError: 'body'")


def test_children_that_only_returned_leave_no_traceback() -> None:
    failure = gave_up("app/agents/tally", None)
    assert "child #1: returned" in explain_failure(failure)
    assert "Traceback" not in explain_failure(failure)
    assert summarize_failure(failure) == "a child returned (supervisor app/agents/tally gave up)"


def test_a_wish_to_exit_among_failures_is_found() -> None:
    wish = SystemExit(4)
    assert find_exit_request(BaseExceptionGroup("both", [ValueError(), BaseExceptionGroup("in", [wish])])) is wish
    assert find_exit_request(ExceptionGroup("one", [ValueError()])) is None
