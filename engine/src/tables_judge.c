/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whether a peer may reach a workload, by the workload's policies in their order:
 *
 *   an enforced DENY matches         refuse
 *   there is no enforced ALLOW       allow
 *   an enforced ALLOW matches        allow
 *   otherwise                        refuse
 *
 * A dry-run policy never changes that. It is reported when enforcing it would refuse: a DENY that matches, or an ALLOW
 * when no ALLOW at all does. A policy number without a policy refuses: tables that lack one are not complete.
 * ztunnel/decide.py is the reference for this file.
 */
#include <errno.h>
#include <stdbool.h>
#include "policy.h"
#include "tables.h"

/* What the policies of one action and mode say: the first that matches, and the first there is. */
struct opinion {
	uint32_t matched;
	uint32_t first;
};

static void note(struct opinion *opinion, const struct cv_policy *policy, const struct cv_policy_input *input)
{
	if (!opinion->first)
		opinion->first = policy->number;
	if (!opinion->matched && cv_policy_matches(policy->program, policy->program_length, input))
		opinion->matched = policy->number;
}

static bool gather(const struct cv_tables *tables, const struct cv_workload *workload,
		   const struct cv_policy_input *input, struct opinion opinions[2][2], uint32_t *missing)
{
	const struct cv_policy *policy;
	uint32_t i;

	for (i = 0; i < workload->policy_count; i++) {
		policy = cv_tables_policy(tables, workload->policies[i]);
		if (!policy) {
			*missing = workload->policies[i];
			return false;
		}
		note(&opinions[!!policy->deny][!!policy->dry_run], policy, input);
	}
	return true;
}

static void conclude(struct opinion opinions[2][2], struct cv_verdict *ret)
{
	const struct opinion *deny = &opinions[1][0], *allow = &opinions[0][0];
	const struct opinion *dry_deny = &opinions[1][1], *dry_allow = &opinions[0][1];

	ret->dry_run_policy = dry_deny->matched;
	if (deny->matched) {
		ret->policy = deny->matched;
		return;
	}
	if (!ret->dry_run_policy && dry_allow->first && !dry_allow->matched && !allow->matched)
		ret->dry_run_policy = dry_allow->first;
	ret->allow = !allow->first || allow->matched;
	ret->policy = allow->matched ? allow->matched : allow->first;
}

int cv_tables_judge(const struct cv_tables *tables, uint32_t workload, const struct cv_peer *peer,
		    const struct cv_endpoint *destination, struct cv_verdict *ret)
{
	const struct cv_workload *judged = cv_tables_workload(tables, workload);
	struct opinion opinions[2][2] = {}; /* [is deny][is dry run] */
	struct cv_policy_input input;
	uint32_t missing;

	*ret = (struct cv_verdict){};
	if (!judged || judged->foreign)
		return -ENOENT;
	cv_policy_input_init(peer, destination, &input);
	if (gather(tables, judged, &input, opinions, &missing))
		conclude(opinions, ret);
	else
		ret->policy = missing;
	return 0;
}
