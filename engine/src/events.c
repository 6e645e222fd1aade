/* SPDX-License-Identifier: Apache-2.0 */
/* The event ring. DRAINED and POD_REMOVED find room even when connections filled it: a quarter is kept for them. */
#include "events.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum {
	RING = 4096, /* events; about a second of a busy node */
	RESERVE = RING / 4,
};

int cv_events_init(struct cv_events *events)
{
	pthread_mutex_init(&events->lock, NULL);
	events->ring = calloc(RING, sizeof(*events->ring));
	if (!events->ring)
		return -ENOMEM;
	events->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	return events->fd < 0 ? -errno : 0;
}

void cv_events_deinit(struct cv_events *events)
{
	if (events->ring && events->fd >= 0)
		close(events->fd);
	free(events->ring);
	pthread_mutex_destroy(&events->lock);
}

static void signal_readers(int fd)
{
	uint64_t one = 1;

	while (write(fd, &one, sizeof(one)) < 0 && errno == EINTR)
		;
}

void cv_events_add(struct cv_events *events, const struct cv_event *event)
{
	bool is_connection = event->kind <= CV_EVENT_IDENTITY;
	bool was_empty;

	pthread_mutex_lock(&events->lock);
	if (events->count >= (is_connection ? RING - RESERVE : RING)) {
		events->dropped++;
		pthread_mutex_unlock(&events->lock);
		return;
	}
	was_empty = !events->count;
	/* From the start again whenever it ran empty, so that a quiet engine touches few of its pages. */
	if (was_empty)
		events->first = 0;
	events->ring[(events->first + events->count) % RING] = *event;
	events->count++;
	if (was_empty)
		signal_readers(events->fd);
	pthread_mutex_unlock(&events->lock);
}

int cv_events_take(struct cv_events *events, struct cv_event *ret, uint32_t max)
{
	uint32_t n = 0;
	uint64_t count;

	pthread_mutex_lock(&events->lock);
	while (n < max && events->count) {
		ret[n++] = events->ring[events->first];
		events->first = (events->first + 1) % RING;
		events->count--;
	}
	if (!events->count)
		while (read(events->fd, &count, sizeof(count)) < 0 && errno == EINTR)
			;
	pthread_mutex_unlock(&events->lock);
	return (int)n;
}

uint64_t cv_events_dropped(struct cv_events *events)
{
	uint64_t dropped;

	pthread_mutex_lock(&events->lock);
	dropped = events->dropped;
	pthread_mutex_unlock(&events->lock);
	return dropped;
}
