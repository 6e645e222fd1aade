/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any bytes as a policy program: what does not check is refused, what checks can be evaluated, and evaluation of the
 * same program in a block of exactly its size reads nothing beyond it (the sanitizer's part).
 *
 * The first byte chooses the connection that is judged; the rest is the program.
 *   clang -g -fsanitize=fuzzer,address,undefined -Iengine/include -Iengine/src engine/fuzz/fuzz_policy.c \
 *         engine/src/policy.c -o fuzz_policy && ./fuzz_policy -max_total_time=60
 */
#include <stdlib.h>
#include <string.h>
#include "policy.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const IDENTITIES[] = {
	NULL, "", "spiffe://td/ns/shop/sa/alice", "spiffe://td/ns/shop/sa/alice/", "spiffe://", "spiffe://td/ns//sa/",
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct cv_endpoint destination = {.port = 80};
	struct cv_policy_input input;
	struct cv_peer peer = {};
	uint8_t choice, *program;
	bool matches;

	if (!size)
		return 0;
	choice = data[0];
	peer.identity = IDENTITIES[choice % (sizeof(IDENTITIES) / sizeof(IDENTITIES[0]))];
	if (choice & 0x80)
		peer.ip[10] = peer.ip[11] = destination.ip[10] = destination.ip[11] = 0xff;
	program = malloc(size);
	memcpy(program, data + 1, size - 1);
	program = realloc(program, size - 1 ? size - 1 : 1);
	cv_policy_input_init(&peer, &destination, &input);
	/* Evaluation bounds itself too, so it must survive a program that does not check. */
	matches = cv_policy_matches(program, size - 1, &input);
	if (size == 1 && (matches || cv_policy_check(program, 0)))
		abort(); /* the empty program is a policy without rules: valid, and never matches */
	cv_policy_check(program, size - 1);
	free(program);
	return 0;
}
