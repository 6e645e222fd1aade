/* SPDX-License-Identifier: Apache-2.0 */
/* Deadlines armed, moved and cancelled at random, from outside and from timers that fire: each fires once, in order. */
#include <stdio.h>
#include <stdlib.h>

#include "list.h"
#include "timer.h"

enum { TIMERS = 200, STEPS = 200000 };

struct deadline {
	struct cv_timer timer;
	uint64_t wanted_ms; /* 0: not armed */
};

static struct deadline deadlines[TIMERS];
static struct cv_timers timers;
static uint64_t now_ms = 1;
static uint64_t last_ms;

static void expect(bool holds, const char *what)
{
	if (holds)
		return;
	printf("%s\n", what);
	exit(1);
}

static struct deadline *any(void)
{
	return &deadlines[rand() % TIMERS];
}

static void arm(struct deadline *deadline)
{
	deadline->wanted_ms = now_ms + 1 + (uint64_t)(rand() % 50);
	cv_timer_arm(&timers, &deadline->timer, deadline->wanted_ms);
}

static void cancel(struct deadline *deadline)
{
	deadline->wanted_ms = 0;
	cv_timer_cancel(&timers, &deadline->timer);
}

static void on_fire(struct cv_timer *timer)
{
	struct deadline *deadline = cv_container(timer, struct deadline, timer);

	expect(deadline->wanted_ms == timer->due_ms, "one fires that was cancelled or moved");
	expect(timer->due_ms >= last_ms && timer->due_ms <= now_ms, "one fires out of order");
	last_ms = timer->due_ms;
	deadline->wanted_ms = 0;
	if (rand() % 2)
		arm(deadline);
	if (rand() % 2)
		cancel(any());
}

static void run(void)
{
	int wait = cv_timers_run(&timers, now_ms);
	uint64_t first_ms = 0;

	last_ms = 0;
	for (int i = 0; i < TIMERS; i++) {
		uint64_t due_ms = deadlines[i].wanted_ms;

		expect(deadlines[i].timer.armed == !!due_ms, "one is armed that should not be, or the reverse");
		expect(!due_ms || due_ms > now_ms, "one that is due has not fired");
		if (due_ms && (!first_ms || due_ms < first_ms))
			first_ms = due_ms;
	}
	expect(wait == (first_ms ? (int)(first_ms - now_ms) : -1), "the next one is another");
}

int main(void)
{
	for (int i = 0; i < TIMERS; i++)
		deadlines[i].timer.fire = on_fire;
	for (int i = 0; i < STEPS; i++) {
		if (rand() % 3)
			arm(any());
		else
			cancel(any());
		if (rand() % 8 == 0) {
			now_ms += (uint64_t)(rand() % 5);
			run();
		}
	}
	for (int i = 0; i < TIMERS; i++)
		cancel(&deadlines[i]);
	run();
	printf("ok\n");
	return 0;
}
