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

struct cv_engine {
	struct cv_settings settings;
	struct cv_worker *workers;
	uint32_t worker_count; /* initialised */
	bool draining;
	struct cv_events events;
	struct cv_identities identities;
	struct cv_list pods; /* struct cv_local_pod, Python's thread only */
	atomic_uint workers_draining;
};

/* From a draining worker, at the end of a turn: nothing left of connections and tunnels? */
void cv_engine_check_drained(struct cv_worker *worker);

#endif
