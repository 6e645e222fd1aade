/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One application connection: from accept until both ends are gone. It owns the relay, or before that the streams
 * that will be joined, and it is what events and figures count.
 */
#ifndef CULVERT_CONN_H
#define CULVERT_CONN_H
#include "border.h"
#include "pod.h"
#include "stream.h"
#include "text.h"
#include "worker.h"

struct cv_pool;

struct cv_conn {
	struct cv_list link;  /* seat->conns */
	struct cv_list waits; /* worker->waiting, or the waiters of a pool */
	struct cv_job job;
	struct cv_worker *worker;
	struct cv_seat *seat;
	struct cv_relay relay;
	struct cv_stream *downstream; /* until joined */
	struct cv_stream *upstream;
	struct cv_timer timer;
	void (*retry)(struct cv_conn *conn);     /* while waiting: tables or identities have changed */
	void (*timed_out)(struct cv_conn *conn); /* NULL: ends with `timeout_reason` */
	enum cv_reason timeout_reason;
	uint64_t number;
	uint64_t share;                 /* whose it is in the pod's shares; 0: nobody's, it is the pod's own */
	uint64_t accepted_us;           /* monotonic */
	struct cv_endpoint client;      /* who connected, as reported */
	struct cv_endpoint destination; /* what was asked for */
	struct cv_endpoint hbone;
	struct cv_text *identity;
	struct cv_pool *pool;  /* while waiting for a tunnel of it */
	struct cv_route route; /* outbound */
	const char *detail;
	uint32_t source;
	uint32_t target; /* workload number */
	uint32_t policy;
	uint32_t dry_run_policy;
	uint16_t status;
	uint8_t direction;
	uint8_t path;
	bool opened;
	bool retried;
	bool over;
};

/* `share` names the source in the pod's inbound shares, 0 for what the pod itself opens. NULL: memory is out, or a
 * bound of the pod; that is counted and reported. */
struct cv_conn *cv_conn_create(struct cv_seat *seat, uint8_t direction, const struct cv_endpoint *client,
			       uint64_t share);
/* From any state; resets whatever is open. */
void cv_conn_end(struct cv_conn *conn, enum cv_reason reason);
void cv_conn_set_downstream(struct cv_conn *conn, struct cv_stream *stream);
void cv_conn_set_upstream(struct cv_conn *conn, struct cv_stream *stream);
/* Both streams are there: bytes flow. */
void cv_conn_join(struct cv_conn *conn);

/* Ends with `reason` unless something happens within `ms`. */
void cv_conn_deadline(struct cv_conn *conn, uint32_t ms, enum cv_reason reason);
void cv_conn_no_deadline(struct cv_conn *conn);
/* Waits for tables or identities to change; `retry` is called then. The deadline is not touched. */
void cv_conn_wait(struct cv_conn *conn, void (*retry)(struct cv_conn *conn));
void cv_conn_retry_waiting(struct cv_worker *worker);

void cv_conn_describe(const struct cv_conn *conn, uint8_t kind, enum cv_reason reason, struct cv_event *ret);
/* A refusal of something that never became a connection: counted and reported. */
void cv_conn_report(struct cv_seat *seat, uint8_t direction, const struct cv_endpoint *client, enum cv_reason reason,
		    const char *detail);
/* Asks Python for the pod's certificate. */
void cv_conn_want_identity(struct cv_seat *seat, const char *identity);

#endif
