/* SPDX-License-Identifier: Apache-2.0 */
/* A binary heap of deadlines. Room is reserved in steps, so arming fails only when memory is out. */
#include "timer.h"

#include <limits.h>
#include <stdlib.h>

static void place(struct cv_timers *timers, struct cv_timer *timer, uint32_t at)
{
	timers->heap[at] = timer;
	timer->slot = at + 1;
}

static void sift_up(struct cv_timers *timers, struct cv_timer *timer, uint32_t at)
{
	while (at) {
		uint32_t parent = (at - 1) / 2;

		if (timers->heap[parent]->due_ms <= timer->due_ms)
			break;
		place(timers, timers->heap[parent], at);
		at = parent;
	}
	place(timers, timer, at);
}

static void sift_down(struct cv_timers *timers, struct cv_timer *timer, uint32_t at)
{
	for (;;) {
		uint32_t child = 2 * at + 1;

		if (child >= timers->count)
			break;
		if (child + 1 < timers->count && timers->heap[child + 1]->due_ms < timers->heap[child]->due_ms)
			child++;
		if (timer->due_ms <= timers->heap[child]->due_ms)
			break;
		place(timers, timers->heap[child], at);
		at = child;
	}
	place(timers, timer, at);
}

void cv_timers_deinit(struct cv_timers *timers)
{
	free(timers->heap);
	*timers = (struct cv_timers){0};
}

void cv_timer_cancel(struct cv_timers *timers, struct cv_timer *timer)
{
	uint32_t at = timer->slot;
	struct cv_timer *last;

	if (!at)
		return;
	timer->slot = 0;
	at--;
	last = timers->heap[--timers->count];
	if (last == timer)
		return;
	if (at && timers->heap[(at - 1) / 2]->due_ms > last->due_ms)
		sift_up(timers, last, at);
	else
		sift_down(timers, last, at);
}

void cv_timer_arm(struct cv_timers *timers, struct cv_timer *timer, uint64_t due_ms)
{
	cv_timer_cancel(timers, timer);
	if (timers->count == timers->capacity) {
		uint32_t capacity = timers->capacity ? timers->capacity * 2 : 64;
		struct cv_timer **heap = realloc(timers->heap, capacity * sizeof(*heap));

		if (!heap) {
			timer->fire(timer);
			return;
		}
		timers->heap = heap;
		timers->capacity = capacity;
	}
	timer->due_ms = due_ms;
	sift_up(timers, timer, timers->count++);
}

int cv_timers_run(struct cv_timers *timers, uint64_t now_ms)
{
	uint64_t wait;

	while (timers->count && timers->heap[0]->due_ms <= now_ms) {
		struct cv_timer *timer = timers->heap[0];

		cv_timer_cancel(timers, timer);
		timer->fire(timer);
	}
	if (!timers->count)
		return -1;
	wait = timers->heap[0]->due_ms - now_ms;
	return wait > INT_MAX ? INT_MAX : (int)wait;
}
