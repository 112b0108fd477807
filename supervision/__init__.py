"""Supervision trees for trio, with OTP's semantics: useful without the rest of Famulus.

A supervisor starts children in order, restarts those that crash as its strategy says, gives up when that
happens too often, and stops them in reverse order. Children are async functions; supervisors are children
too, which makes trees.

    async with open_supervisor(OneForOneSupervisor(max_restarts=3, within=60), name="root") as sup:
        reader = await sup.start(child(read, path, name="reader", restart="transient"))
        node = await sup.start(supervisor(RestForOneSupervisor, child(pump), child(drain), name="pumps"))
        sessions = await sup.start(pool(child(session, restart="temporary"), name="sessions"))
        await sessions.supervisor.start_child(connection)
"""

from .backoff import Backoff
from .core import Supervisor
from .errors import (
    ChildActive,
    DuplicateChild,
    LeakedCancellation,
    StartFailed,
    StrayNursery,
    SupervisionError,
    SupervisorFailed,
    SupervisorStopping,
    UnknownChild,
)
from .handle import ChildHandle, ChildState, current_child, trap_stop
from .monitors import ChildExit, Monitor, monitor
from .opening import open_supervisor
from .plans import ChildView, Plan, exit_verdict, plan
from .runner import StopRequest
from .specs import ChildSpec, PoolSpec, Restart, Spec, SupervisorSpec, child, pool, supervisor
from .strategies import (
    AutoShutdown,
    CrashingSupervisor,
    OneForAllSupervisor,
    OneForOneSupervisor,
    RestForOneSupervisor,
    StrategyLike,
    SupervisorStrategy,
)
from .tree_tables import tree_from_dict, tree_from_toml, tree_to_dict
from .trees import Leaf, Place, TreeError, TreeSpec, leaf, tree
from .view import Counts, TreeNode
from .window import Incident, IncidentWindow

__all__ = [  # noqa: RUF022 - in groups
    # running a tree
    "open_supervisor",
    "Supervisor",
    "ChildHandle",
    "ChildState",
    # inside a child
    "current_child",
    "trap_stop",
    "StopRequest",
    # declaring it
    "child",
    "supervisor",
    "pool",
    "ChildSpec",
    "SupervisorSpec",
    "PoolSpec",
    "Spec",
    "Restart",
    # declaring it by names, as data
    "tree",
    "leaf",
    "TreeSpec",
    "Leaf",
    "Place",
    "tree_from_dict",
    "tree_from_toml",
    "tree_to_dict",
    # strategies
    "SupervisorStrategy",
    "StrategyLike",
    "OneForOneSupervisor",
    "OneForAllSupervisor",
    "RestForOneSupervisor",
    "CrashingSupervisor",
    "AutoShutdown",
    "Backoff",
    # decisions, pure
    "plan",
    "Plan",
    "ChildView",
    "exit_verdict",
    "IncidentWindow",
    # seeing it
    "monitor",
    "Monitor",
    "ChildExit",
    "Incident",
    "TreeNode",
    "Counts",
    # what is raised
    "SupervisionError",
    "SupervisorFailed",
    "StartFailed",
    "SupervisorStopping",
    "TreeError",
    "DuplicateChild",
    "UnknownChild",
    "ChildActive",
    "LeakedCancellation",
    "StrayNursery",
]
