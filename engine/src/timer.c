/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A pairing heap: no timer is due before the one above it. Most timers are cancelled long before they are due, and most
 * of these have nothing below them, so both ends of such a life cost a few pointers.
 */
#include "timer.h"

#include <limits.h>
#include <stddef.h>

/* Of two heaps (or none) one. */
static struct cv_timer *meld(struct cv_timer *a, struct cv_timer *b)
{
	struct cv_timer *above = !b || (a && a->due_ms <= b->due_ms) ? a : b;
	struct cv_timer *below = above == a ? b : a;

	if (!below)
		return above;
	below->prev = above;
	below->next = above->child;
	if (above->child)
		above->child->prev = below;
	above->child = below;
	return above;
}

static struct cv_timer *take_first(struct cv_timer **list)
{
	struct cv_timer *first = *list;

	if (first) {
		*list = first->next;
		first->next = NULL;
		first->prev = NULL;
	}
	return first;
}

/* Of siblings one heap: in pairs first, which is what keeps heaps flat. */
static struct cv_timer *meld_all(struct cv_timer *siblings)
{
	struct cv_timer *pairs = NULL;
	struct cv_timer *heap = NULL;

	while (siblings) {
		struct cv_timer *one = take_first(&siblings);
		struct cv_timer *pair = meld(one, take_first(&siblings));

		pair->next = pairs;
		pairs = pair;
	}
	while (pairs)
		heap = meld(heap, take_first(&pairs));
	return heap;
}

static void unlink_sibling(struct cv_timer *timer)
{
	if (timer->prev->child == timer)
		timer->prev->child = timer->next;
	else
		timer->prev->next = timer->next;
	if (timer->next)
		timer->next->prev = timer->prev;
	timer->next = NULL;
	timer->prev = NULL;
}

void cv_timer_cancel(struct cv_timers *timers, struct cv_timer *timer)
{
	struct cv_timer *below = timer->child;

	if (!timer->armed)
		return;
	timer->armed = false;
	timer->child = NULL;
	if (timer == timers->first) {
		timers->first = meld_all(below);
	} else {
		unlink_sibling(timer);
		timers->first = meld(timers->first, meld_all(below));
	}
}

void cv_timer_arm(struct cv_timers *timers, struct cv_timer *timer, uint64_t due_ms)
{
	cv_timer_cancel(timers, timer);
	timer->armed = true;
	timer->due_ms = due_ms;
	timers->first = meld(timers->first, timer);
}

int cv_timers_run(struct cv_timers *timers, uint64_t now_ms)
{
	struct cv_timer *first;
	uint64_t wait;

	while ((first = timers->first) && first->due_ms <= now_ms) {
		cv_timer_cancel(timers, first);
		first->fire(first);
	}
	if (!first)
		return -1;
	wait = first->due_ms - now_ms;
	return wait > INT_MAX ? INT_MAX : (int)wait;
}
