/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How much of a bound each source holds, in constant memory however many sources there are.
 *
 * A count-min sketch: two rows of counters, a source's count is the smaller of its two. It may be too high when others
 * share both of its places, never too low, and what is added and taken away cancels out. Places depend on a secret of
 * this process, so nobody can choose whose counter to share; one sketch has it, and the names that it gives are good
 * for all. Shared by workers: each counter is atomic.
 */
#ifndef CULVERT_SHARE_H
#define CULVERT_SHARE_H
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum { CV_SHARE_PLACES = 512 };

struct cv_shares {
	uint64_t secret[2];
	atomic_uint held[2][CV_SHARE_PLACES];
};

int cv_shares_init(struct cv_shares *shares); /* draws the secret; -errno without randomness */

/* What names a source, never 0. An address with `is_known` false stands for its /64 if it is IPv6: a stranger has at
 * least as many addresses. */
uint64_t cv_share_of_address(const struct cv_shares *shares, const uint8_t ip[16], bool is_known);
uint64_t cv_share_of_text(const struct cv_shares *shares, const char *text);

void cv_share_take(struct cv_shares *shares, uint64_t source);
void cv_share_give_back(struct cv_shares *shares, uint64_t source);
uint32_t cv_share_held(const struct cv_shares *shares, uint64_t source);

/*
 * May the source have one more, when `used` of `bound` are taken? It may hold at most three times what is still free:
 * one greedy source stops at three quarters, n of them leave 1/(3n+1), and whoever holds little always finds room.
 */
bool cv_share_allows(const struct cv_shares *shares, uint64_t source, uint32_t used, uint32_t bound);

#endif
