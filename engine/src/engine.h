/* SPDX-License-Identifier: Apache-2.0 */
/* The engine as its parts see it: settings, workers, identities, the event ring and the pods. */
#ifndef CULVERT_ENGINE_H
#define CULVERT_ENGINE_H
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "border.h"
#include "events.h"
#include "identity.h"
#include "list.h"
#include "worker.h"

enum { /* what is left to each while a worker is short of its buffers */
       CV_ENGINE_LEAST_READ = 16 * 1024,
       CV_ENGINE_LEAST_CREDIT = 1024 * 1024,
};

struct cv_engine {
	struct cv_settings settings;
	struct cv_worker *workers;
	uint32_t worker_count; /* initialised */
	bool draining;
	int descriptor_bound; /* accepted connections end below it: the rest is the process's own */
	struct cv_events events;
	struct cv_identities identities;
	struct cv_list pods; /* struct cv_local_pod, Python's thread only */
	atomic_uint workers_draining;
};

/*
 * Streams have bounds of their own, but a pod may have thousands. A worker that holds too much of what nobody takes
 * gives every stream the least that keeps it moving, until others have taken theirs.
 */
static inline bool cv_engine_is_short(const struct cv_worker *worker)
{
	return cv_figure(&worker->figures.bytes_buffered) >= worker->engine->settings.worker_buffer_bytes;
}

/* From a draining worker, at the end of a turn: nothing left of connections and tunnels? */
void cv_engine_check_drained(struct cv_worker *worker);

#endif
