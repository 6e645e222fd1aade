/* SPDX-License-Identifier: Apache-2.0 */
/* The pool of client tunnels: who waits, who is being dialled, who has room. */
#include "pool.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "dial.h"
#include "endpoint.h"
#include "engine.h"
#include "outbound.h"
#include "tables.h"
#include "tunnel.h"

enum { EXPECTED = 64 }; /* ids that a next hop may show; a service with more is refused the rest */

static void free_pool(struct cv_job *job)
{
	free(cv_container(job, struct cv_pool, job));
}

static void drop_if_empty(struct cv_pool *pool)
{
	if (!cv_list_empty(&pool->tunnels) || !cv_list_empty(&pool->waiters) || pool->dialling)
		return;
	cv_list_remove(&pool->link);
	cv_worker_bury(pool->seat->worker, &pool->job, free_pool);
}

static size_t expected_size(const char **expected, size_t count)
{
	size_t size = 0;

	for (size_t i = 0; i < count; i++)
		size += strlen(expected[i]) + 1;
	return size;
}

static void pack(char *to, const char **expected, size_t count)
{
	for (size_t i = 0; i < count; i++)
		to = stpcpy(to, expected[i]) + 1;
}

static bool is_for(const struct cv_pool *pool, const struct cv_endpoint *dial, const char **expected, size_t count,
		   size_t size)
{
	const char *at = pool->expected;

	if (!cv_endpoint_same(&pool->dial, dial) || pool->expected_count != count || pool->expected_size != size)
		return false;
	for (size_t i = 0; i < count; i++) {
		if (strcmp(at, expected[i]))
			return false;
		at += strlen(at) + 1;
	}
	return true;
}

static struct cv_pool *create(struct cv_seat *seat, const struct cv_endpoint *dial, const char **expected, size_t count,
			      size_t size)
{
	struct cv_pool *pool = calloc(1, sizeof(*pool) + size);

	if (!pool)
		return NULL;
	pool->seat = seat;
	pool->dial = *dial;
	pool->streams_allowed = UINT32_MAX;
	pool->expected_count = (uint32_t)count;
	pool->expected_size = size;
	pack(pool->expected, expected, count);
	cv_list_init(&pool->job.link);
	cv_list_init(&pool->tunnels);
	cv_list_init(&pool->waiters);
	cv_list_append(&seat->pools, &pool->link);
	return pool;
}

static struct cv_pool *find_or_create(struct cv_conn *conn)
{
	const char *expected[EXPECTED];
	size_t count = cv_tables_expected(conn->worker->tables, &conn->route, expected, EXPECTED);
	size_t size;

	if (count > EXPECTED)
		count = EXPECTED;
	size = expected_size(expected, count);
	cv_list_each (entry, &conn->seat->pools) {
		struct cv_pool *pool = cv_container(entry, struct cv_pool, link);

		if (is_for(pool, &conn->route.dial, expected, count, size))
			return pool;
	}
	return create(conn->seat, &conn->route.dial, expected, count, size);
}

bool cv_pool_expects(const struct cv_pool *pool, const char *identity)
{
	const char *at = pool->expected;

	for (uint32_t i = 0; i < pool->expected_count; i++) {
		if (!strcmp(at, identity))
			return true;
		at += strlen(at) + 1;
	}
	return false;
}

/* The first with room: others run empty and go idle, and frames of many streams share records. */
static struct cv_tunnel *pick(struct cv_pool *pool)
{
	cv_list_each (entry, &pool->tunnels) {
		struct cv_tunnel *tunnel = cv_container(entry, struct cv_tunnel, pooled);

		if (tunnel->identity && atomic_load(&tunnel->identity->replaced)) /* none yet while it connects */
			cv_tunnel_retire(tunnel);
		if (cv_tunnel_has_room(tunnel))
			return tunnel;
	}
	return NULL;
}

static int dial(struct cv_pool *pool, const struct cv_conn *conn)
{
	int error = 0;
	struct cv_tunnel *tunnel =
		cv_tunnel_connect(pool->seat, pool, &pool->dial, conn->source, conn->route.next_hop, &error);

	if (!tunnel)
		return error;
	pool->dialling++;
	cv_list_append(&pool->tunnels, &tunnel->pooled);
	return 0;
}

static bool has_open_tunnel(const struct cv_pool *pool)
{
	cv_list_each (entry, &pool->tunnels)
		if (!cv_container(entry, struct cv_tunnel, pooled)->retired)
			return true;
	return false;
}

/* One at a time, until more wait than it can serve. A next hop that allows no streams at present is not asked for more
 * tunnels: it says on those that are open when it does. */
static bool wants_dial(const struct cv_pool *pool)
{
	uint64_t each = pool->seat->worker->engine->settings.max_streams_per_tunnel;

	if (each > pool->streams_allowed)
		each = pool->streams_allowed;
	return each ? pool->waiting > pool->dialling * each : !has_open_tunnel(pool);
}

void cv_pool_request(struct cv_conn *conn)
{
	struct cv_pool *pool = find_or_create(conn);
	struct cv_tunnel *tunnel = pool ? pick(pool) : NULL;
	int error = 0;

	if (!pool) {
		cv_outbound_no_tunnel(conn, CV_REASON_LIMIT_DESCRIPTORS, "out of memory");
		return;
	}
	if (tunnel) {
		cv_figure_add(&conn->worker->figures.pool_hits, 1);
		cv_outbound_tunnel(conn, tunnel);
		return;
	}
	cv_figure_add(&conn->worker->figures.pool_misses, 1);
	conn->pool = pool;
	cv_list_append(&pool->waiters, &conn->waits);
	pool->waiting++;
	if (wants_dial(pool))
		error = dial(pool, conn);
	if (error && !pool->dialling) {
		cv_pool_forget(conn);
		cv_outbound_no_tunnel(conn, cv_dial_reason(error), NULL);
	}
}

void cv_pool_forget(struct cv_conn *conn)
{
	struct cv_pool *pool = conn->pool;

	if (!pool)
		return;
	conn->pool = NULL;
	cv_list_remove(&conn->waits);
	pool->waiting--;
	drop_if_empty(pool);
}

static struct cv_conn *first_waiter(struct cv_pool *pool)
{
	return cv_list_empty(&pool->waiters) ? NULL : cv_container(pool->waiters.next, struct cv_conn, waits);
}

static void serve_waiters(struct cv_pool *pool, struct cv_tunnel *tunnel)
{
	struct cv_conn *conn;

	while (cv_tunnel_has_room(tunnel) && (conn = first_waiter(pool))) {
		cv_pool_forget(conn);
		cv_outbound_tunnel(conn, tunnel);
	}
}

void cv_pool_opened(struct cv_tunnel *tunnel)
{
	struct cv_pool *pool = tunnel->pool;
	struct cv_conn *conn;

	pool->dialling--;
	serve_waiters(pool, tunnel);
	conn = first_waiter(pool);
	if (conn && wants_dial(pool))
		(void)dial(pool, conn); /* should it fail: those that wait get the room of streams that end */
}

void cv_pool_room(struct cv_tunnel *tunnel)
{
	if (tunnel->pool)
		serve_waiters(tunnel->pool, tunnel);
}

static void fail_waiters(struct cv_pool *pool, enum cv_reason reason, const char *detail)
{
	struct cv_list waiters;

	cv_list_take(&waiters, &pool->waiters);
	while (!cv_list_empty(&waiters)) {
		struct cv_conn *conn = cv_container(waiters.next, struct cv_conn, waits);

		conn->pool = NULL;
		cv_list_remove(&conn->waits);
		pool->waiting--;
		cv_outbound_no_tunnel(conn, reason, detail);
	}
}

/*
 * `tunnel` serves no more of those who wait. A dial that failed speaks for all of them, unless another tunnel may still
 * serve them, and so does one to a next hop that took nobody; one that was full does not: dial for those who waited.
 */
static void replace(struct cv_pool *pool, const struct cv_tunnel *tunnel, enum cv_reason reason, const char *detail)
{
	struct cv_conn *conn = first_waiter(pool);
	int error;

	if (!conn || pool->dialling || has_open_tunnel(pool))
		return;
	if (!tunnel->proven || !pool->streams_allowed) {
		fail_waiters(pool, reason == CV_REASON_OK ? CV_REASON_TUNNEL_LOST : reason, detail);
		return;
	}
	error = dial(pool, conn);
	if (error)
		fail_waiters(pool, cv_dial_reason(error), NULL);
}

void cv_pool_retired(struct cv_tunnel *tunnel)
{
	if (tunnel->pool)
		replace(tunnel->pool, tunnel, CV_REASON_TUNNEL_LOST, NULL);
}

void cv_pool_gone(struct cv_tunnel *tunnel, bool was_open, enum cv_reason reason, const char *detail)
{
	struct cv_pool *pool = tunnel->pool;

	if (!pool)
		return;
	tunnel->pool = NULL;
	cv_list_remove(&tunnel->pooled);
	if (!was_open)
		pool->dialling--;
	replace(pool, tunnel, reason, detail);
	drop_if_empty(pool);
}

void cv_pool_clear(struct cv_seat *seat)
{
	cv_list_each_safe (entry, &seat->pools)
		drop_if_empty(cv_container(entry, struct cv_pool, link));
}
