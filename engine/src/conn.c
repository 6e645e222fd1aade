/* SPDX-License-Identifier: Apache-2.0 */
/* The life of a connection and what is reported about it. */
#include "conn.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine.h"
#include "note.h"
#include "pool.h"
#include "tcp.h"

static uint64_t clock_us(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

static void copy_text(char *to, size_t size, const char *from)
{
	size_t length = from ? strnlen(from, size - 1) : 0;

	memcpy(to, from ? from : "", length);
	to[length] = 0;
}

void cv_conn_describe(const struct cv_conn *conn, uint8_t kind, enum cv_reason reason, struct cv_event *ret)
{
	memset(ret, 0, sizeof(*ret));
	ret->kind = kind;
	ret->direction = conn->direction;
	ret->path = conn->path;
	ret->reason = (uint8_t)reason;
	ret->opened = conn->opened;
	ret->status = conn->status;
	ret->pod = conn->seat->pod->number;
	ret->source = conn->source;
	ret->destination = conn->target;
	ret->service = conn->route.service;
	ret->policy = conn->policy;
	ret->dry_run_policy = conn->dry_run_policy;
	ret->connection = conn->number;
	ret->time_us = clock_us(CLOCK_REALTIME);
	ret->duration_us = clock_us(CLOCK_MONOTONIC) - conn->accepted_us;
	ret->bytes_sent = cv_relay_sent(&conn->relay, 1);
	ret->bytes_received = cv_relay_sent(&conn->relay, 0);
	ret->downstream = conn->client;
	ret->upstream = conn->destination;
	if (conn->direction == CV_DIR_OUTBOUND) {
		ret->original = conn->destination;
		if (conn->route.authority.port)
			ret->upstream = conn->route.authority;
		else if (conn->route.dial.port)
			ret->upstream = conn->route.dial;
	}
	ret->hbone = conn->hbone;
	copy_text(ret->identity, sizeof(ret->identity), conn->identity ? conn->identity->s : NULL);
	copy_text(ret->detail, sizeof(ret->detail), conn->detail);
}

static void emit(const struct cv_conn *conn, uint8_t kind, enum cv_reason reason)
{
	struct cv_event event;

	cv_conn_describe(conn, kind, reason, &event);
	cv_events_add(&conn->worker->engine->events, &event);
}

void cv_conn_report(struct cv_seat *seat, uint8_t direction, const struct cv_endpoint *client, enum cv_reason reason,
		    const char *detail)
{
	struct cv_event event = {
		.kind = CV_EVENT_CLOSED,
		.direction = direction,
		.reason = (uint8_t)reason,
		.pod = seat->pod->number,
		.time_us = clock_us(CLOCK_REALTIME),
	};

	cv_figure_add(&seat->worker->figures.refused[reason], 1);
	if (client)
		event.downstream = *client;
	copy_text(event.detail, sizeof(event.detail), detail);
	cv_events_add(&seat->worker->engine->events, &event);
}

void cv_conn_want_identity(struct cv_seat *seat, const char *identity)
{
	struct cv_event event = {
		.kind = CV_EVENT_IDENTITY, .pod = seat->pod->number, .time_us = clock_us(CLOCK_REALTIME)};

	copy_text(event.identity, sizeof(event.identity), identity);
	cv_events_add(&seat->worker->engine->events, &event);
}

static void free_conn(struct cv_job *job)
{
	struct cv_conn *conn = cv_container(job, struct cv_conn, job);

	cv_text_release(conn->identity);
	free(conn);
}

static void take_share(struct cv_conn *conn, uint64_t share)
{
	conn->share = share;
	if (!share)
		return;
	cv_share_take(&conn->seat->pod->inbound_shares, share);
	cv_engine_take(conn->worker->engine, share);
}

static void give_share_back(struct cv_conn *conn)
{
	if (!conn->share)
		return;
	cv_share_give_back(&conn->seat->pod->inbound_shares, conn->share);
	cv_engine_give_back(conn->worker->engine, conn->share);
}

static void finish(struct cv_conn *conn, enum cv_reason reason)
{
	struct cv_worker *worker = conn->worker;

	if (conn->over)
		return;
	conn->over = true;
	cv_timer_cancel(&worker->timers, &conn->timer);
	cv_list_remove(&conn->link);
	cv_pool_forget(conn);
	cv_list_remove(&conn->waits);
	if (!conn->opened)
		cv_figure_add(&worker->figures.refused[reason], 1);
	cv_figure_add(&worker->figures.connections_open, -1);
	atomic_fetch_sub(&conn->seat->pod->connections[conn->direction], 1);
	give_share_back(conn);
	emit(conn, CV_EVENT_CLOSED, reason);
	cv_worker_bury(worker, &conn->job, free_conn);
}

static void on_relay_over(struct cv_relay *relay, enum cv_reason reason)
{
	finish(cv_container(relay, struct cv_conn, relay), reason);
}

void cv_conn_end(struct cv_conn *conn, enum cv_reason reason)
{
	struct cv_stream *downstream = conn->downstream;
	struct cv_stream *upstream = conn->upstream;

	if (conn->over)
		return;
	if (conn->relay.ends[0]) {
		cv_relay_cut(&conn->relay, reason);
		return;
	}
	conn->downstream = NULL;
	conn->upstream = NULL;
	if (downstream)
		downstream->ops->abort(downstream);
	if (upstream)
		upstream->ops->abort(upstream);
	finish(conn, reason);
}

static void lost_before_join(struct cv_stream *stream, enum cv_reason reason)
{
	struct cv_conn *conn = stream->owner;

	if (conn->downstream == stream)
		conn->downstream = NULL;
	if (conn->upstream == stream)
		conn->upstream = NULL;
	cv_conn_end(conn, reason);
}

void cv_conn_set_downstream(struct cv_conn *conn, struct cv_stream *stream)
{
	conn->downstream = stream;
	stream->owner = conn;
	stream->lost = lost_before_join;
}

void cv_conn_set_upstream(struct cv_conn *conn, struct cv_stream *stream)
{
	conn->upstream = stream;
	stream->owner = conn;
	stream->lost = lost_before_join;
}

void cv_conn_join(struct cv_conn *conn)
{
	struct cv_stream *downstream = conn->downstream;
	struct cv_stream *upstream = conn->upstream;

	cv_conn_no_deadline(conn);
	conn->downstream = NULL;
	conn->upstream = NULL;
	conn->opened = true;
	cv_relay_join(&conn->relay, downstream, upstream);
}

static void on_deadline(struct cv_timer *timer)
{
	struct cv_conn *conn = cv_container(timer, struct cv_conn, timer);

	if (conn->timed_out)
		conn->timed_out(conn);
	else
		cv_conn_end(conn, conn->timeout_reason);
}

void cv_conn_deadline(struct cv_conn *conn, uint32_t ms, enum cv_reason reason)
{
	conn->timeout_reason = reason;
	cv_timer_arm(&conn->worker->timers, &conn->timer, conn->worker->now_ms + ms);
}

void cv_conn_no_deadline(struct cv_conn *conn)
{
	cv_timer_cancel(&conn->worker->timers, &conn->timer);
}

void cv_conn_wait(struct cv_conn *conn, void (*retry)(struct cv_conn *conn))
{
	conn->retry = retry;
	cv_list_remove(&conn->waits);
	cv_list_append(&conn->worker->waiting, &conn->waits);
}

void cv_conn_retry_waiting(struct cv_worker *worker)
{
	struct cv_list waiting;

	cv_list_take(&waiting, &worker->waiting);
	while (!cv_list_empty(&waiting)) {
		struct cv_conn *conn = cv_container(waiting.next, struct cv_conn, waits);

		cv_list_remove(&conn->waits);
		conn->retry(conn);
	}
}

/* One more of `open` in the pod's bounds? */
static enum cv_reason bound_on(const struct cv_seat *seat, uint64_t share, uint32_t open, const char **detail)
{
	uint32_t bound = seat->worker->engine->settings.max_connections_per_pod;

	if (open >= bound) {
		*detail = "the pod has too many connections";
		return CV_REASON_LIMIT_CONNECTIONS;
	}
	if (share && !cv_share_allows(&seat->pod->inbound_shares, share, open, bound)) {
		*detail = "this peer has its share of the pod's connections: what is left is for others";
		return CV_REASON_LIMIT_SHARE;
	}
	if (share && !cv_engine_allows(seat->worker->engine, share)) {
		*detail = "this peer has its share of the node's descriptors: what is left is for others";
		return CV_REASON_LIMIT_SHARE;
	}
	return CV_REASON_OK;
}

struct cv_conn *cv_conn_create(struct cv_seat *seat, uint8_t direction, const struct cv_endpoint *client,
			       uint64_t share)
{
	struct cv_worker *worker = seat->worker;
	struct cv_engine *engine = worker->engine;
	uint32_t open = atomic_fetch_add(&seat->pod->connections[direction], 1);
	const char *detail = "out of memory";
	enum cv_reason refusal = bound_on(seat, share, open, &detail);
	struct cv_conn *conn = refusal == CV_REASON_OK ? calloc(1, sizeof(*conn)) : NULL;

	if (!conn) {
		atomic_fetch_sub(&seat->pod->connections[direction], 1);
		cv_conn_report(seat, direction, client, refusal == CV_REASON_OK ? CV_REASON_LIMIT_DESCRIPTORS : refusal,
			       detail);
		return NULL;
	}
	conn->worker = worker;
	conn->seat = seat;
	take_share(conn, share);
	conn->direction = direction;
	conn->client = *client;
	conn->accepted_us = clock_us(CLOCK_MONOTONIC);
	conn->number = (worker->sequence += engine->worker_count) + worker->index;
	conn->relay.over = on_relay_over;
	conn->timer.fire = on_deadline;
	cv_list_init(&conn->job.link);
	cv_list_init(&conn->waits);
	cv_list_append(&seat->conns, &conn->link);
	cv_figure_add(&worker->figures.connections_open, 1);
	return conn;
}
