from hypothesis import given
from hypothesis import strategies as st

from cli.trial.rebuild import policy
from mesh.addresses import to_bytes16
from ztunnel.admin.dump import _policy as dumped
from ztunnel.model import AccountMatch, How, Match, Policy, PolicyScope, Prefix, StringMatch

TEXTS = st.builds(StringMatch, st.sampled_from([How.EXACT, How.PREFIX, How.SUFFIX]), st.sampled_from(["a", "b/c"]))
STRINGS = st.lists(TEXTS | st.just(StringMatch(How.PRESENCE)), max_size=2).map(tuple)
PREFIXES = st.lists(
    st.sampled_from(
        [Prefix(to_bytes16("10.0.0.0"), 104), Prefix(to_bytes16("fd00::"), 64), Prefix(to_bytes16("10.1.2.3"), 128)]
    ),
    max_size=2,
).map(tuple)
PORTS = st.lists(st.integers(1, 65535), max_size=2).map(tuple)
ACCOUNTS = st.lists(st.builds(AccountMatch, st.just("ns"), st.just("sa")), max_size=1).map(tuple)
MATCHES = st.builds(
    Match, STRINGS, STRINGS, STRINGS, STRINGS, PREFIXES, PREFIXES, PREFIXES, PREFIXES, PORTS, PORTS, ACCOUNTS, ACCOUNTS
)
CLAUSES = st.lists(MATCHES, max_size=2).map(tuple)
RULES = st.lists(st.lists(CLAUSES, max_size=2).map(tuple), max_size=2).map(tuple)


@given(st.sampled_from(list(PolicyScope)), st.booleans(), st.booleans(), RULES)
def test_a_policy_comes_back_from_a_dump_as_it_was(scope, deny, dry_run, rules):
    written = Policy("p", "ns", scope, deny, dry_run, rules)
    assert policy(dumped(written)) == written
