/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tunnels that we opened, by pod (which is one identity), next hop and who may answer there. One per worker and pod,
 * so nothing is locked. A tunnel serves as many streams as both ends allow and gets its room back when they end.
 */
#ifndef CULVERT_POOL_H
#define CULVERT_POOL_H
#include "conn.h"
#include "pod.h"

struct cv_tunnel;

struct cv_pool {
	struct cv_list link; /* seat->pools */
	struct cv_job job;
	struct cv_seat *seat;
	struct cv_endpoint dial;
	struct cv_list tunnels;
	struct cv_list waiters; /* struct cv_conn */
	uint32_t waiting;
	uint32_t dialling;
	uint32_t streams_allowed; /* on one tunnel, as the next hop last said */
	uint32_t expected_count;
	size_t expected_size;
	char expected[]; /* SPIFFE ids, each terminated */
};

/* Ends in cv_outbound_tunnel or cv_outbound_no_tunnel, at once or later. */
void cv_pool_request(struct cv_conn *conn);
void cv_pool_forget(struct cv_conn *conn); /* it waits no more */
bool cv_pool_expects(const struct cv_pool *pool, const char *identity);
void cv_pool_clear(struct cv_seat *seat);

/* From tunnels. */
void cv_pool_opened(struct cv_tunnel *tunnel);
void cv_pool_room(struct cv_tunnel *tunnel);
void cv_pool_retired(struct cv_tunnel *tunnel);
void cv_pool_gone(struct cv_tunnel *tunnel, bool was_open, enum cv_reason reason, const char *detail);

#endif
