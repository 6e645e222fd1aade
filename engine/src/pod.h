/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Local pods. A `cv_local_pod` is shared by all workers; a `cv_seat` is one worker's part of it: its listeners in that
 * worker's epoll, and the connections, tunnels and pools that the worker has for the pod.
 */
#ifndef CULVERT_POD_H
#define CULVERT_POD_H
#include <stdatomic.h>

#include "border.h"
#include "share.h"
#include "worker.h"

enum cv_listener_kind {
	CV_LISTENER_OUTBOUND4,
	CV_LISTENER_OUTBOUND6,
	CV_LISTENER_INBOUND,
	CV_LISTENER_HBONE,
	CV_LISTENERS,
};

struct cv_local_pod {
	struct cv_list link;
	atomic_uint refs;
	uint32_t number;
	char *workload_uid;
	char *identity;
	int netns;
	int listeners[CV_LISTENERS];
	atomic_uint watchers[CV_LISTENERS]; /* workers that still accept: the last one closes the listener */
	atomic_uint connections[3];         /* by direction */
	atomic_uint tunnels;                /* accepted */
	struct cv_shares inbound_shares;    /* of inbound connections: by identity, or by address without one */
	struct cv_shares tunnel_shares;     /* of accepted tunnels, by address */
	atomic_uint leaving;                /* workers that still have something of a removed pod */
	bool draining;
};

struct cv_listener {
	struct cv_watch watch;
	struct cv_seat *seat;
	enum cv_listener_kind kind;
	struct cv_timer pause; /* armed while descriptors are out */
	uint32_t
		burst; /* accepts beyond the first: more when all of them found one, so that one alone costs one call */
	bool open;
};

struct cv_seat {
	struct cv_list link;
	struct cv_job job;
	struct cv_worker *worker;
	struct cv_local_pod *pod;
	struct cv_listener listeners[CV_LISTENERS];
	struct cv_list conns;
	struct cv_list tunnels;
	struct cv_list pools;
	struct cv_list young; /* accepted tunnels that still shake hands, the oldest first */
	uint32_t young_count;
	bool gone;
};

/* Takes the descriptors of `from` in any case. */
int cv_pod_create(const struct cv_pod_sockets *from, uint32_t workers, struct cv_local_pod **ret);
void cv_pod_release(struct cv_local_pod *pod);

int cv_seat_create(struct cv_worker *worker, struct cv_local_pod *pod);
/* Who an address is in all shares. */
uint64_t cv_seat_share_of(const struct cv_seat *seat, const struct cv_endpoint *peer);
struct cv_seat *cv_seat_find(struct cv_worker *worker, const struct cv_local_pod *pod);
/* Stops accepting. */
void cv_seat_stop(struct cv_seat *seat);
/* Cuts everything of the pod on this worker and frees the seat. */
void cv_seat_leave(struct cv_seat *seat, enum cv_reason reason);

#endif
