/* SPDX-License-Identifier: Apache-2.0 */
/* When polling is worth it, and what it may cost. Figures: docs/adr/0007.
 */
#include "wait.h"

#include <sched.h>
#include <time.h>

enum {
	SLEEP_COST_NS = 40000, /* processor time of sleeping and being woken, which a poll that finds something saves */
	PURSE_SHARE = 10,      /* polling costs at most one part in so many of a processor beyond sleeping */
	PURSE_NS = 2000000,    /* saved up at most */
	SPIN_MAX_US = 1000,    /* what one poll may overdraw the purse */
	PAUSE_MAX = 4096,
	CERTAIN = 256,
	WORTH_IT = CERTAIN / 2,
	RISE = 8, /* one short wait takes so much of what is missing */
};

static uint64_t clock_ns(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void cv_wait_init(struct cv_wait *wait, uint32_t spin_us, _Atomic uint64_t *spun_ns)
{
	*wait = (struct cv_wait){
		.spin_ns = spin_us < SPIN_MAX_US ? (uint64_t)spin_us * 1000 : SPIN_MAX_US * 1000,
		.purse_ns = PURSE_NS,
		.filled_ns = clock_ns(CLOCK_MONOTONIC),
		.spun_ns = spun_ns,
	};
}

static void fill_purse(struct cv_wait *wait, uint64_t now_ns)
{
	uint64_t earned = (now_ns - wait->filled_ns) / PURSE_SHARE;

	wait->filled_ns = now_ns;
	wait->purse_ns = earned > PURSE_NS || wait->purse_ns + (int64_t)earned > PURSE_NS
				 ? PURSE_NS
				 : wait->purse_ns + (int64_t)earned;
}

/* Falls fast and rises slowly: polling goes on only where four of five waits are short. */
static void remember(struct cv_prospect *prospect, bool was_short)
{
	if (was_short)
		prospect->hope = (uint16_t)(prospect->hope + (CERTAIN - prospect->hope + RISE - 1) / RISE);
	else
		prospect->hope /= 2;
}

static void leave_alone(struct cv_prospect *prospect)
{
	prospect->pause = prospect->pause ? 2 * prospect->pause : RISE;
	if (prospect->pause > PAUSE_MAX)
		prospect->pause = PAUSE_MAX;
	prospect->left = prospect->pause;
}

static bool is_worth_it(const struct cv_wait *wait, struct cv_prospect *prospect)
{
	if (prospect->left) {
		prospect->left--;
		return false;
	}
	return prospect->hope >= WORTH_IT && wait->purse_ns > 0;
}

/* Processor time is charged, not time: while somebody else ran, nothing was spent. */
static int poll_a_while(struct cv_wait *wait, struct cv_prospect *prospect, int epoll, struct epoll_event *events,
			int most)
{
	uint64_t start_ns = clock_ns(CLOCK_MONOTONIC);
	uint64_t used_ns = clock_ns(CLOCK_THREAD_CPUTIME_ID);
	uint64_t took_ns;
	int n;

	do {
		sched_yield();
		n = epoll_wait(epoll, events, most, 0);
		took_ns = clock_ns(CLOCK_MONOTONIC) - start_ns;
	} while (!n && took_ns < wait->spin_ns);
	used_ns = clock_ns(CLOCK_THREAD_CPUTIME_ID) - used_ns;
	wait->purse_ns += (n > 0 ? SLEEP_COST_NS : 0) - (int64_t)used_ns;
	cv_figure_add(wait->spun_ns, (int64_t)used_ns);
	if (!n || used_ns < took_ns - took_ns / 4)
		leave_alone(prospect);
	else
		prospect->pause /= 2;
	return n;
}

int cv_wait_events(struct cv_wait *wait, int epoll, struct epoll_event *events, int most, int timeout_ms)
{
	struct cv_prospect *prospect = &wait->prospects[wait->served];
	uint64_t start_ns;
	uint64_t waited_ns;
	bool polls;
	int n;

	if (!wait->spin_ns || !timeout_ms)
		return epoll_wait(epoll, events, most, timeout_ms);
	wait->served = 0;
	polls = is_worth_it(wait, prospect);
	start_ns = clock_ns(CLOCK_MONOTONIC);
	n = epoll_wait(epoll, events, most, polls ? 0 : timeout_ms);
	if (!n && polls)
		n = poll_a_while(wait, prospect, epoll, events, most);
	if (!n && polls)
		n = epoll_wait(epoll, events, most, timeout_ms);
	waited_ns = clock_ns(CLOCK_MONOTONIC) - start_ns;
	/* Whoever slept knows only a bound: being woken took a part of it, here and at the other end. */
	remember(prospect, n > 0 && waited_ns < (polls ? wait->spin_ns : 2 * wait->spin_ns));
	fill_purse(wait, start_ns + waited_ns);
	return n;
}
