/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Deadlines of one worker: a pairing heap of timers that live inside their owners, so arming one cannot fail and
 * nothing fires but from cv_timers_run.
 */
#ifndef CULVERT_TIMER_H
#define CULVERT_TIMER_H
#include <stdbool.h>
#include <stdint.h>

struct cv_timer {
	void (*fire)(struct cv_timer *timer);
	uint64_t due_ms;
	struct cv_timer *child; /* the first of those below it */
	struct cv_timer *next;  /* sibling */
	struct cv_timer *prev;  /* sibling; of the first: the one above */
	bool armed;
};

struct cv_timers {
	struct cv_timer *first; /* to be due */
};

void cv_timer_arm(struct cv_timers *timers, struct cv_timer *timer, uint64_t due_ms); /* or arms anew */
void cv_timer_cancel(struct cv_timers *timers, struct cv_timer *timer);

/* Fires what is due at `now_ms`; returns milliseconds to the next one, -1 when there is none. */
int cv_timers_run(struct cv_timers *timers, uint64_t now_ms);

#endif
