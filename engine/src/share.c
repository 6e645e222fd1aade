/* SPDX-License-Identifier: Apache-2.0 */
/* The sketch and its hash: multiply and fold, keyed by a secret that never leaves the process. */
#include "share.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>

enum { GREED = 3 }; /* times what is free: see the header */

int cv_shares_init(struct cv_shares *shares)
{
	if (getrandom(shares->secret, sizeof(shares->secret), 0) != sizeof(shares->secret))
		return -EIO;
	return 0;
}

static uint64_t fold(uint64_t a, uint64_t b)
{
	unsigned __int128 product = (unsigned __int128)a * b;

	return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static uint64_t mix(const struct cv_shares *shares, uint64_t so_far, uint64_t high, uint64_t low)
{
	return fold(high ^ shares->secret[0] ^ so_far, low ^ shares->secret[1]) + (so_far >> 7);
}

/* Both halves are used as places. */
static uint64_t finish(const struct cv_shares *shares, uint64_t hash)
{
	hash = fold(hash ^ shares->secret[1], 0x9e3779b97f4a7c15u ^ shares->secret[0]);
	return hash ? hash : 1;
}

static bool is_v4(const uint8_t ip[16])
{
	static const uint8_t mapped[12] = {[10] = 0xff, [11] = 0xff};

	return !memcmp(ip, mapped, sizeof(mapped));
}

uint64_t cv_share_of_address(const struct cv_shares *shares, const uint8_t ip[16], bool is_known)
{
	uint64_t high;
	uint64_t low;

	memcpy(&high, ip, sizeof(high));
	memcpy(&low, ip + 8, sizeof(low));
	if (!is_known && !is_v4(ip))
		low = 0;
	return finish(shares, mix(shares, 1, high, low));
}

uint64_t cv_share_of_text(const struct cv_shares *shares, const char *text)
{
	size_t left = strlen(text);
	uint64_t hash = left;

	while (left) {
		uint64_t words[2] = {0};
		size_t n = left < sizeof(words) ? left : sizeof(words);

		memcpy(words, text, n);
		hash = mix(shares, hash, words[0], words[1]);
		text += n;
		left -= n;
	}
	return finish(shares, hash);
}

static atomic_uint *place(const struct cv_shares *shares, int row, uint64_t source)
{
	return (atomic_uint *)&shares->held[row][(source >> (row * 32)) % CV_SHARE_PLACES];
}

void cv_share_take(struct cv_shares *shares, uint64_t source)
{
	for (int row = 0; row < 2; row++)
		atomic_fetch_add(place(shares, row, source), 1);
}

void cv_share_give_back(struct cv_shares *shares, uint64_t source)
{
	for (int row = 0; row < 2; row++)
		atomic_fetch_sub(place(shares, row, source), 1);
}

uint32_t cv_share_held(const struct cv_shares *shares, uint64_t source)
{
	uint32_t first = atomic_load(place(shares, 0, source));
	uint32_t second = atomic_load(place(shares, 1, source));

	return first < second ? first : second;
}

bool cv_share_allows(const struct cv_shares *shares, uint64_t source, uint32_t used, uint32_t bound)
{
	uint64_t left = used < bound ? bound - used : 0;

	return cv_share_held(shares, source) < GREED * left;
}
