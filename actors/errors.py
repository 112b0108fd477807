"""Errors of agents."""

from __future__ import annotations

from ..channels.errors import FamulusError

__all__ = ["AgentError", "AskDeadlock", "YieldInsideNursery"]


class AgentError(FamulusError):
    """An agent did not answer a request: it failed on it, gave none, or ended. Raised at whoever asked.

    Its text is one line. Where it is shown with its traceback, that of the agent stands below, as a note.

    Attributes:
        agent: its name.
        reason: why there is no answer. Where agents have asked agents, it goes down to the one that failed first.
        remote_type: the qualified name of what the agent raised, or "" when it raised nothing.
        remote_message: the text of that.
        remote_traceback: the traceback as text, since the failure happened in another task or process.
    """

    def __init__(
        self, agent: str, reason: str, *, remote_type: str = "", remote_message: str = "", remote_traceback: str = ""
    ) -> None:
        super().__init__(agent, reason)
        self.agent = agent
        self.reason = reason
        self.remote_type = remote_type
        self.remote_message = remote_message
        self.remote_traceback = remote_traceback
        if remote_traceback:
            self.add_note(f"\nThe traceback of agent {agent}:\n{remote_traceback.rstrip()}\n")

    def __str__(self) -> str:
        return f"agent {self.agent}: {self.reason}"


class AskDeadlock(FamulusError, RuntimeError):
    """An agent asked in a circle: all who could answer wait, in the end, for the one who asks.

    Give the agent a `concurrency` that is higher than the requests that wait for each other, `cast` what needs no answer, or
    ask from a task that the agent does not wait for.
    """


class YieldInsideNursery(FamulusError, RuntimeError):
    """An agent yielded an answer while a nursery of its own was open (PEP 789).

    A failure in that nursery could then cancel whatever happens to run while the agent is suspended. Yield outside
    of the nursery; flake8-async's rule ASYNC119 finds such code.
    """
