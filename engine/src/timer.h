/* SPDX-License-Identifier: Apache-2.0 */
/* Deadlines of one worker: a binary heap of timers that live inside their owners. */
#ifndef CULVERT_TIMER_H
#define CULVERT_TIMER_H
#include <stdint.h>

struct cv_timer {
	void (*fire)(struct cv_timer *timer);
	uint64_t due_ms;
	uint32_t slot; /* index in the heap plus one; 0: not armed */
};

struct cv_timers {
	struct cv_timer **heap;
	uint32_t count;
	uint32_t capacity;
};

void cv_timers_deinit(struct cv_timers *timers);

/* (Re)arms. When memory is out the timer fires at once: a deadline that cannot be kept has passed. */
void cv_timer_arm(struct cv_timers *timers, struct cv_timer *timer, uint64_t due_ms);
void cv_timer_cancel(struct cv_timers *timers, struct cv_timer *timer);

/* Fires what is due at `now_ms`; returns milliseconds to the next one, -1 when there is none. */
int cv_timers_run(struct cv_timers *timers, uint64_t now_ms);

#endif
