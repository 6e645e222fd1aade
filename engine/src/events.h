/* SPDX-License-Identifier: Apache-2.0 */
/* What happened, on its way to Python: a bounded ring. When it is full the newest is dropped and counted. */
#ifndef CULVERT_EVENTS_H
#define CULVERT_EVENTS_H
#include <pthread.h>

#include "border.h"

struct cv_events {
	pthread_mutex_t lock;
	struct cv_event *ring;
	uint32_t first;
	uint32_t count;
	uint64_t dropped;
	int fd; /* eventfd, readable while count is not 0 */
};

int cv_events_init(struct cv_events *events);
void cv_events_deinit(struct cv_events *events);
void cv_events_add(struct cv_events *events, const struct cv_event *event);
int cv_events_take(struct cv_events *events, struct cv_event *ret, uint32_t max);
uint64_t cv_events_dropped(struct cv_events *events);

#endif
