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
#include "share.h"
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
	struct cv_shares
		shares;         /* of what peers have open to all pods; it names the sources for pods and workers too */
	atomic_uint from_peers; /* inbound connections and accepted tunnels of all pods */
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

/*
 * May a source have one more connection to any of the node's pods? Bounds of pods add up to more than there are
 * descriptors, of which a connection has two, so the node's are shared in the same way.
 */
static inline bool cv_engine_allows(const struct cv_engine *engine, uint64_t source)
{
	return cv_share_allows(&engine->shares, source, atomic_load(&engine->from_peers),
			       (uint32_t)engine->descriptor_bound / 2);
}

static inline void cv_engine_take(struct cv_engine *engine, uint64_t source)
{
	atomic_fetch_add(&engine->from_peers, 1);
	cv_share_take(&engine->shares, source);
}

static inline void cv_engine_give_back(struct cv_engine *engine, uint64_t source)
{
	atomic_fetch_sub(&engine->from_peers, 1);
	cv_share_give_back(&engine->shares, source);
}

/* From a draining worker, at the end of a turn: nothing left of connections and tunnels? */
void cv_engine_check_drained(struct cv_worker *worker);

#endif
