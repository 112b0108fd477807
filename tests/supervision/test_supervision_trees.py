"""Trees as data: in Python, as a table, as TOML, and what is said of a table that is none."""

import tomllib
from math import inf
from typing import Any

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from famulus.supervision import (
    Backoff,
    ChildSpec,
    CrashingSupervisor,
    Leaf,
    OneForAllSupervisor,
    OneForOneSupervisor,
    Place,
    Restart,
    RestForOneSupervisor,
    TreeError,
    TreeSpec,
    child,
    leaf,
    open_supervisor,
    tree,
    tree_from_dict,
    tree_from_toml,
    tree_to_dict,
)

TOML = """
[tool.famulus.tree]
strategy = "one-for-one"
max_restarts = 5
within = 60
children = ["billing", "ingest", {name = "report", restart = "transient", shutdown = inf}]

[tool.famulus.tree.backoff]
max = 5

[tool.famulus.tree.supervisors.ingest]
strategy = "rest-for-one"
shutdown = 30
children = ["prices", {name = "trades", shutdown = 0}]

[tool.famulus.tree.supervisors.ingest.supervisors.feeds]
stop = "together"
children = ["tokyo", "london"]
"""

SAME = tree(
    "billing",
    tree(
        "prices",
        leaf("trades", shutdown=0),
        tree("tokyo", "london", name="feeds", stop="together"),
        name="ingest",
        strategy=RestForOneSupervisor,
        shutdown=30,
    ),
    leaf("report", restart="transient", shutdown=inf),
    strategy=OneForOneSupervisor(max_restarts=5, within=60, backoff=Backoff(max=5)),
)


def test_a_tree_reads_the_same_from_python_and_from_toml() -> None:
    assert tree_from_toml(TOML) == SAME


def test_a_table_holds_what_is_not_the_default() -> None:
    assert tree_to_dict(SAME) == {
        "strategy": "one-for-one",
        "max_restarts": 5,
        "within": 60,
        "backoff": {"min": 0.1, "max": 5, "factor": 2.0, "jitter": 0.1, "reset_after": 60.0},
        "children": ["billing", "ingest", {"name": "report", "restart": "transient", "shutdown": inf}],
        "supervisors": {
            "ingest": {
                "strategy": "rest-for-one",
                "shutdown": 30,
                "children": ["prices", {"name": "trades", "shutdown": 0}, "feeds"],
                "supervisors": {"feeds": {"stop": "together", "children": ["tokyo", "london"]}},
            }
        },
    }


def test_supervisors_that_the_list_does_not_name_start_after_it_in_the_order_of_their_tables() -> None:
    declared = tree_from_dict({"children": ["b", "y"], "supervisors": {"x": {}, "y": {}, "z": {}}})
    assert [node.name for node in declared.children] == ["b", "y", "x", "z"]


def test_a_document_without_the_table_declares_no_tree_and_a_whole_document_may_be_one() -> None:
    assert tree_from_toml("[tool.other]\n") is None
    assert tree_from_toml('children = ["tally"]', table="", source="tree.toml") == tree("tally")
    with pytest.raises(TreeError, match=r"^tree\.toml\.childen: there is no such key; did you mean children\?"):
        tree_from_toml('childen = ["tally"]', table="", source="tree.toml")
    with pytest.raises(TreeError, match=r"^pyproject\.toml: no TOML: Expected '\]'"):
        tree_from_toml("[tool")


def test_each_leaf_has_its_place() -> None:
    assert SAME.place("billing") == Place((), leaf("billing"))
    assert SAME.place("london") == Place(("ingest", "feeds"), leaf("london"))
    assert SAME.place("elsewhere") is None
    assert list(SAME.places()) == ["billing", "prices", "trades", "tokyo", "london", "report"]
    assert list(SAME.supervisors()) == [("ingest",), ("ingest", "feeds")]
    assert SAME.supervisors()["ingest", "feeds"].stop == "together"


FAULTS = [
    ({"max_restart": 3}, "tree.max_restart", "there is no such key; did you mean max_restarts?"),
    ({"max-restarts": 3}, "tree.max-restarts", "there is no such key; did you mean max_restarts?"),
    (
        {"supervisors": {"ingest": {"max_restart": 3}}},
        "tree.supervisors.ingest.max_restart",
        "there is no such key; did you mean max_restarts?",
    ),
    ({"restart": "transient"}, "tree.restart", "there is no such key; did you mean max_restarts?"),
    ({"max_restarts": "3"}, "tree.max_restarts", "expected a whole number from 0, or inf, got '3'"),
    ({"max_restarts": True}, "tree.max_restarts", "expected a whole number from 0, or inf, got True"),
    ({"max_restarts": 1.5}, "tree.max_restarts", "expected a whole number from 0, or inf, got 1.5"),
    ({"within": 0}, "tree.within", "expected seconds, more than 0, got 0"),
    (
        {"strategy": "one_for_all"},
        "tree.strategy",
        "expected one of one-for-one, one-for-all, rest-for-one, crashing, got 'one_for_all'; did you mean one-for-all?",
    ),
    (
        {"strategy": "crashing", "max_restarts": 3},
        "tree.max_restarts",
        "a crashing supervisor restarts nothing: leave this key out",
    ),
    ({"backoff": {"minimum": 1}}, "tree.backoff.minimum", "there is no such key; did you mean min?"),
    ({"backoff": {"min": -1}}, "tree.backoff", "Backoff(min=-1): expected seconds, 0 or more and finite"),
    ({"backoff": 3}, "tree.backoff", "expected a table with any of min, max, factor, jitter, reset_after, got 3"),
    ({"children": "tally"}, "tree.children", "expected a list of names and tables, got 'tally'"),
    ({"children": [3]}, "tree.children[0]", "expected a name or a table with the key name, got 3"),
    ({"children": [{"restart": "transient"}]}, "tree.children[0]", "a child given as a table needs the key name"),
    (
        {"children": ["a", {"name": "b", "restart": "transitent"}]},
        "tree.children[1].restart",
        "expected one of permanent, transient, temporary, got 'transitent'; did you mean transient?",
    ),
    (
        {"children": ["a"], "supervisors": {"x": {"children": ["a"]}}},
        "tree.supervisors.x.children[0]",
        "the name 'a' is used already at tree.children[0], and a name has one place",
    ),
    ({"children": ["x", "x"], "supervisors": {"x": {}}}, "tree.children[1]", "the supervisor 'x' is listed twice"),
    (
        {"supervisors": {"x": {"supervisors": {"x": {}}}}},
        "tree.supervisors.x.supervisors.x",
        "the name 'x' is used already at tree.supervisors.x, and a name has one place",
    ),
    (
        {"children": [{"name": "x"}], "supervisors": {"x": {}}},
        "tree.children[0]",
        "'x' is a supervisor, whose options stand in tree.supervisors",
    ),
    ({"supervisors": {"the feeds": 3}}, 'tree.supervisors."the feeds"', "expected a table, got 3"),
    (
        {"children": [{"name": "a", "significant": True}]},
        "tree.children[0]",
        "leaf 'a': a significant child needs restart transient or temporary",
    ),
    (
        {"children": [{"name": "a", "significant": True, "restart": "transient"}]},
        "tree",
        "the root of the tree: child 'a' is significant, which means nothing under auto_shutdown='never': "
        "use any_significant or all_significant",
    ),
]


@pytest.mark.parametrize(("data", "path", "problem"), FAULTS)
def test_a_fault_is_named_with_its_path_and_what_was_expected(data: dict[str, Any], path: str, problem: str) -> None:
    with pytest.raises(TreeError) as info:
        tree_from_dict(data)
    assert (info.value.path, str(info.value)) == (path, f"{path}: {problem}")


def test_the_path_begins_with_the_tables_own_place() -> None:
    with pytest.raises(
        TreeError, match=r"^tool\.famulus\.tree\.supervisors\.ingest\.max_restart: there is no such key"
    ):
        tree_from_toml("[tool.famulus.tree.supervisors.ingest]\nmax_restart = 3")


def test_a_limit_that_cannot_be_reached_is_refused_with_its_place() -> None:
    with pytest.raises(TreeError, match=r"^tree\.supervisors\.x: OneForOneSupervisor.* can never give up") as info:
        tree_from_dict({"supervisors": {"x": {"max_restarts": 50, "within": 60}}})
    assert "max_restarts=inf to never give up" in str(info.value)


def test_python_trees_are_checked_where_they_are_made() -> None:
    with pytest.raises(ValueError, match="supervisor 'x': the name 'a' is used twice below it"):
        tree("a", tree("a", name="y"), name="x")
    with pytest.raises(ValueError, match=r"the root of the tree: a tree inside another one needs a name"):
        tree(tree("a"))
    with pytest.raises(ValueError, match="leaf 'a': shutdown=-1: expected seconds from 0"):
        leaf("a", shutdown=-1)
    with pytest.raises(ValueError, match="supervisor 'x': stop='random'"):
        tree(name="x", stop="random")  # type: ignore[arg-type]  # what is tested
    with pytest.raises(ValueError, match="'x' is significant and permanent"):
        tree(name="x", significant=True)
    with pytest.raises(TypeError, match=r"expected names, leaf\(\.\.\.\) or tree\(\.\.\.\) as children, got 3"):
        tree(3)  # type: ignore[arg-type]  # what is tested
    with pytest.raises(ValueError, match="the name '': expected a text"):
        tree("")


def test_a_leaf_that_names_nothing_is_refused_with_its_place_and_a_near_miss() -> None:
    declared = tree_from_toml(TOML.replace("tokyo", "tokio"))
    assert declared is not None
    with pytest.raises(TreeError) as info:
        declared.refuse_unknown(["billing", "prices", "trades", "tokyo", "london", "report"])
    assert str(info.value) == (
        "tool.famulus.tree.supervisors.ingest.supervisors.feeds.children[0]: "
        "there is nothing named 'tokio' to place here; did you mean tokyo?"
    )


def test_a_strategy_of_ones_own_class_has_no_name_in_a_table() -> None:
    @attrs.frozen(kw_only=True)
    class Mine(OneForOneSupervisor):
        pass

    with pytest.raises(TypeError, match="Mine has no name in a table: expected one of one-for-one"):
        tree_to_dict(tree(strategy=Mine))


async def test_a_declared_tree_becomes_specs_of_children_and_runs() -> None:
    names = ["billing", "prices", "trades", "tokyo", "london", "report"]
    children = {name: child(trio.sleep_forever, name=f"shop.{name}") for name in names}
    specs = SAME.specs(children)
    report = specs[2]
    assert isinstance(report, ChildSpec)
    assert (report.restart, report.shutdown) == ("transient", inf)
    async with open_supervisor(SAME.strategy or OneForOneSupervisor, *specs, name="shop") as sup:
        await trio.sleep(1)
        assert [node.name for node in sup.tree().walk()] == [
            "shop", "shop.billing", "ingest", "shop.prices", "shop.trades", "feeds", "shop.tokyo", "shop.london", "shop.report",
        ]  # fmt: skip
        ingest = sup.children["ingest"].supervisor
        assert (ingest.strategy, ingest.children["feeds"].supervisor.stops_together) == (RestForOneSupervisor(), True)
        assert ingest.children["shop.trades"].spec.shutdown == 0


# Round trips.

backoffs = st.builds(
    Backoff,
    min=st.floats(0, 1),
    max=st.floats(1, 60),
    factor=st.floats(1, 4),
    jitter=st.floats(0, 0.5),
    reset_after=st.floats(1, 100),
)
plain_strategies = st.builds(
    lambda kind, backoff, auto: kind(max_restarts=inf, backoff=backoff, auto_shutdown=auto),
    st.sampled_from([OneForOneSupervisor, OneForAllSupervisor, RestForOneSupervisor]),
    backoffs,
    st.sampled_from(["any_significant", "all_significant"]),
)
strategies = st.one_of(
    plain_strategies,
    st.sampled_from(
        [CrashingSupervisor(auto_shutdown="any_significant"), OneForAllSupervisor(auto_shutdown="all_significant")]
    ),
)
restarts: st.SearchStrategy[Restart] = st.sampled_from(["permanent", "transient", "temporary"])
shutdowns = st.one_of(st.none(), st.floats(0, 100), st.just(inf))


@st.composite
def trees(draw: st.DrawFn) -> TreeSpec:
    names = iter(draw(st.lists(st.text(min_size=1, max_size=6), min_size=12, max_size=12, unique=True)))

    def make_leaf() -> Leaf:
        restart = draw(st.one_of(st.none(), restarts))
        significant = restart in ("transient", "temporary") and draw(st.booleans())
        return leaf(next(names), restart=restart, shutdown=draw(shutdowns), significant=significant)

    def make(depth: int, name: str | None) -> TreeSpec:
        children: list[Leaf | TreeSpec] = [make_leaf() for _ in range(draw(st.integers(0, 2)))]
        if depth:
            children += [make(depth - 1, next(names)) for _ in range(draw(st.integers(0, 2)))]
        children = draw(st.permutations(children))
        strategy = draw(strategies)
        if name is None:
            return tree(*children, strategy=strategy)
        return tree(
            *children,
            name=name,
            strategy=strategy,
            restart=draw(restarts),
            shutdown=draw(st.one_of(st.floats(0, 100), st.just(inf))),
            stop="together" if draw(st.booleans()) else "reverse",
        )

    return make(1, None)


@given(trees())
def test_a_tree_comes_back_from_its_table_as_it_was(declared: TreeSpec) -> None:
    assert tree_from_dict(tree_to_dict(declared)) == declared
    assert set(declared.places()) == {node.name for node in declared.walk() if isinstance(node, Leaf)}


values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                ["strategy", "children", "supervisors", "max_restarts", "within", "backoff", "name", "restart", "x"]
            ),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["strategy", "children", "supervisors", "within", "backoff", "x"]), values))
def test_any_table_is_a_tree_or_gets_an_answer_that_names_a_place(data: dict[str, Any]) -> None:
    declared, error = None, None
    try:
        declared = tree_from_dict(data)
    except TreeError as refusal:
        error = refusal
    if declared is not None:
        assert tree_from_dict(tree_to_dict(declared)) == declared
    else:
        assert str(error).startswith("tree")


def test_toml_reads_what_the_table_of_a_tree_says() -> None:
    assert tree_from_dict(tomllib.loads(TOML)["tool"]["famulus"]["tree"]) == SAME
