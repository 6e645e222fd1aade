/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How a worker waits for its next events: asleep, or awake for a moment first.
 *
 * To sleep and be woken costs more than to carry a message, most of all on a virtual machine, where a halted processor
 * has to be called back. So a worker polls for up to `spin_us` before it sleeps, but only where that is worth it:
 * - for each kind of turn it remembers how often the next event came within that time;
 * - in between it gives the processor away, and where others took it polling saves nothing (no processor halts) and
 *   is left alone for a while, twice as long each time;
 * - a purse bounds what polling may cost beyond sleeping, whatever the pattern of the traffic.
 */
#ifndef CULVERT_WAIT_H
#define CULVERT_WAIT_H
#include <stdbool.h>
#include <stdint.h>
#include <sys/epoll.h>

#include "stats.h"

/* What a turn served; bits. What comes next depends on it: an answer comes soon, the next request perhaps not. */
enum cv_served {
	CV_SERVED_APPLICATION = 1,
	CV_SERVED_TUNNEL = 2,
	CV_SERVED_KINDS = 4,
};

/* What is known about the wait that follows one kind of turn. */
struct cv_prospect {
	uint16_t hope;  /* how often it was short lately, of 256 */
	uint16_t pause; /* how many waits polling was last left alone for, because the processor was wanted */
	uint16_t left;  /* of them */
};

struct cv_wait {
	uint64_t spin_ns;   /* 0: never */
	int64_t purse_ns;   /* what polling may still cost */
	uint64_t filled_ns; /* when the purse was last filled */
	struct cv_prospect prospects[CV_SERVED_KINDS];
	uint8_t served;            /* enum cv_served bits of the turn that ends */
	_Atomic uint64_t *spun_ns; /* figure: processor time spent polling */
};

void cv_wait_init(struct cv_wait *wait, uint32_t spin_us, _Atomic uint64_t *spun_ns);
/* As epoll_wait. */
int cv_wait_events(struct cv_wait *wait, int epoll, struct epoll_event *events, int most, int timeout_ms);

static inline void cv_wait_served(struct cv_wait *wait, enum cv_served what)
{
	wait->served |= (uint8_t)what;
}

#endif
