/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The engine behind the border: settings, workers, pods, publishing and drain. All calls come from Python's thread;
 * what concerns a worker's objects is posted to that worker and runs there.
 */
#include "engine.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "conn.h"
#include "inbound.h"
#include "pod.h"
#include "proof.h"
#include "tables.h"
#include "tunnel.h"

enum {
	MAX_WORKERS = 64,
	DESCRIPTORS_KEPT = 16, /* one in so many */
};

static void set_default(uint32_t *setting, uint32_t value)
{
	if (!*setting)
		*setting = value;
}

/* Bounds that may not be absent. Zero switches off only where zero has a meaning: PING, pool idle, keepalive. */
static void complete(struct cv_settings *settings)
{
	set_default(&settings->workers, 2);
	set_default(&settings->connect_timeout_ms, 10000);
	set_default(&settings->handshake_timeout_ms, 10000);
	set_default(&settings->request_timeout_ms, 20000);
	set_default(&settings->source_wait_ms, 5000);
	set_default(&settings->ping_timeout_ms, 20000);
	set_default(&settings->max_connections_per_pod, 16384);
	set_default(&settings->max_handshakes, 1024);
	set_default(&settings->max_streams_per_tunnel, 100);
	set_default(&settings->stream_buffer_bytes, 256 * 1024);
	set_default(&settings->tunnel_buffer_bytes, 16 * 1024 * 1024);
	set_default(&settings->worker_buffer_bytes, 256 * 1024 * 1024);
}

/* Strangers may take every descriptor but these, with which the process is configured, watched and renews its keys. */
static int descriptor_bound(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_cur > INT_MAX)
		return INT_MAX;
	return (int)(limit.rlim_cur - limit.rlim_cur / DESCRIPTORS_KEPT);
}

struct cv_engine *cv_engine_create(const struct cv_settings *settings)
{
	struct cv_engine *engine = calloc(1, sizeof(*engine));
	int error = 0;

	if (!engine)
		return NULL;
	engine->settings = *settings;
	complete(&engine->settings);
	if (engine->settings.workers > MAX_WORKERS)
		engine->settings.workers = MAX_WORKERS;
	engine->descriptor_bound = descriptor_bound();
	cv_list_init(&engine->pods);
	cv_identities_init(&engine->identities);
	engine->events.fd = -1;
	error = cv_events_init(&engine->events);
	if (!error)
		error = cv_shares_init(&engine->shares);
	engine->workers = calloc(engine->settings.workers, sizeof(*engine->workers));
	if (!engine->workers)
		error = -ENOMEM;
	for (uint32_t i = 0; !error && i < engine->settings.workers; i++) {
		error = cv_worker_init(&engine->workers[i], engine, i);
		engine->worker_count++;
	}
	if (error) {
		cv_engine_destroy(engine);
		errno = -error;
		return NULL;
	}
	return engine;
}

int cv_engine_start(struct cv_engine *engine)
{
	int error = 0;

	for (uint32_t i = 0; !error && i < engine->worker_count; i++)
		if (!engine->workers[i].started)
			error = cv_worker_start(&engine->workers[i]);
	return error;
}

static int leave_all(struct cv_worker *worker, void *unused)
{
	(void)unused;
	cv_list_each_safe (entry, &worker->seats)
		cv_seat_leave(cv_container(entry, struct cv_seat, link), CV_REASON_DRAINED);
	cv_timer_cancel(&worker->timers, &worker->drain_timer);
	return 0;
}

void cv_engine_destroy(struct cv_engine *engine)
{
	if (!engine)
		return;
	for (uint32_t i = 0; i < engine->worker_count; i++) {
		cv_worker_call(&engine->workers[i], leave_all, NULL);
		cv_worker_join(&engine->workers[i]);
		cv_worker_deinit(&engine->workers[i]);
		if (engine->workers[i].tables)
			cv_tables_release((struct cv_tables *)engine->workers[i].tables);
	}
	cv_list_each_safe (entry, &engine->pods) {
		cv_list_remove(entry);
		cv_pod_release(cv_container(entry, struct cv_local_pod, link));
	}
	cv_identities_deinit(&engine->identities);
	cv_events_deinit(&engine->events);
	free(engine->workers);
	free(engine);
}

/* --------------------------------------------------------------- publish */

static void judge_all(struct cv_worker *worker)
{
	cv_list_each (entry, &worker->seats) {
		struct cv_seat *seat = cv_container(entry, struct cv_seat, link);

		cv_list_each_safe (conn, &seat->conns)
			cv_inbound_judge_again(cv_container(conn, struct cv_conn, link));
	}
}

static void adopt(struct cv_worker *worker, struct cv_task *task)
{
	struct cv_tables *published = atomic_exchange(&worker->published, NULL);
	const struct cv_tables *old = worker->tables;

	(void)task;
	worker->tables = published;
	judge_all(worker);
	cv_conn_retry_waiting(worker);
	if (old)
		cv_tables_release((struct cv_tables *)old);
}

/* A worker that has not come to the last one skips it: however fast snapshots come, at most one waits per worker. */
int cv_engine_publish(struct cv_engine *engine, struct cv_tables *tables)
{
	for (uint32_t i = 0; i < engine->worker_count; i++) {
		struct cv_worker *worker = &engine->workers[i];
		struct cv_tables *skipped = atomic_exchange(&worker->published, cv_tables_acquire(tables));

		if (skipped) {
			cv_tables_release(skipped); /* and its task is still on the way */
			continue;
		}
		worker->adopt.run = adopt;
		cv_worker_post(worker, &worker->adopt);
	}
	cv_tables_release(tables);
	return 0;
}

/* ------------------------------------------------------------ identities */

static int retry_identities(struct cv_worker *worker, void *unused)
{
	(void)unused;
	cv_list_each (entry, &worker->seats) {
		struct cv_seat *seat = cv_container(entry, struct cv_seat, link);

		cv_list_each_safe (link, &seat->tunnels) {
			struct cv_tunnel *tunnel = cv_container(link, struct cv_tunnel, link);

			cv_tunnel_retry_identity(tunnel);
			cv_proof_renew(tunnel);
		}
	}
	cv_conn_retry_waiting(worker);
	return 0;
}

int cv_engine_put_identity(struct cv_engine *engine, const char *identity, const char *chain_pem, const char *key_pem,
			   const char *roots_pem)
{
	int error = cv_identities_put(&engine->identities, identity, chain_pem, key_pem, roots_pem);

	for (uint32_t i = 0; !error && i < engine->worker_count; i++)
		cv_worker_call(&engine->workers[i], retry_identities, NULL);
	return error;
}

int cv_engine_remove_identity(struct cv_engine *engine, const char *identity)
{
	return cv_identities_remove(&engine->identities, identity);
}

/* ------------------------------------------------------------------ pods */

static int take_seat(struct cv_worker *worker, void *pod)
{
	return cv_seat_create(worker, pod);
}

/* Nothing new for the pod: no listener, and peers are told to open no more streams on the tunnels they have. */
static void drain_seat(struct cv_seat *seat)
{
	cv_seat_stop(seat);
	cv_list_each_safe (tunnel, &seat->tunnels)
		cv_tunnel_drain(cv_container(tunnel, struct cv_tunnel, link));
}

static int drain_pod(struct cv_worker *worker, void *pod)
{
	struct cv_seat *seat = cv_seat_find(worker, pod);

	if (seat)
		drain_seat(seat);
	return 0;
}

static void emit_plain(struct cv_engine *engine, enum cv_event_kind kind, uint32_t pod)
{
	struct timespec now;
	struct cv_event event = {.kind = (uint8_t)kind, .pod = pod};

	clock_gettime(CLOCK_REALTIME, &now);
	event.time_us = (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
	cv_events_add(&engine->events, &event);
}

static int leave(struct cv_worker *worker, void *argument)
{
	struct cv_local_pod *pod = argument;
	struct cv_seat *seat = cv_seat_find(worker, pod);

	if (seat)
		cv_seat_leave(seat, CV_REASON_POD_GONE);
	if (atomic_fetch_sub(&pod->leaving, 1) == 1)
		emit_plain(worker->engine, CV_EVENT_POD_REMOVED, pod->number);
	return 0;
}

static struct cv_local_pod *find_pod(struct cv_engine *engine, uint32_t number)
{
	cv_list_each (entry, &engine->pods) {
		struct cv_local_pod *pod = cv_container(entry, struct cv_local_pod, link);

		if (pod->number == number)
			return pod;
	}
	return NULL;
}

static int call_all(struct cv_engine *engine, int (*run)(struct cv_worker *worker, void *argument), void *argument)
{
	int error = 0;

	for (uint32_t i = 0; i < engine->worker_count && !error; i++)
		error = cv_worker_call(&engine->workers[i], run, argument);
	return error;
}

static int leave_quietly(struct cv_worker *worker, void *pod)
{
	struct cv_seat *seat = cv_seat_find(worker, pod);

	if (seat)
		cv_seat_leave(seat, CV_REASON_INTERNAL);
	return 0;
}

int cv_engine_add_pod(struct cv_engine *engine, const struct cv_pod_sockets *from)
{
	bool is_known = !from->number || find_pod(engine, from->number);
	struct cv_local_pod *pod;
	int error = cv_pod_create(from, engine->worker_count, &pod);

	if (error)
		return error;
	if (is_known || engine->draining) {
		cv_pod_release(pod);
		return is_known ? -EEXIST : -ESHUTDOWN;
	}
	error = call_all(engine, take_seat, pod);
	if (error) {
		call_all(engine, leave_quietly, pod);
		cv_pod_release(pod);
		return error;
	}
	cv_list_append(&engine->pods, &pod->link);
	return 0;
}

int cv_engine_remove_pod(struct cv_engine *engine, uint32_t number, uint8_t drain)
{
	struct cv_local_pod *pod = find_pod(engine, number);

	if (!pod)
		return -ENOENT;
	if (drain)
		return call_all(engine, drain_pod, pod);
	cv_list_remove(&pod->link);
	call_all(engine, leave, pod);
	cv_pod_release(pod);
	return 0;
}

/* ----------------------------------------------------------------- drain */

static void cut_all(struct cv_timer *timer)
{
	struct cv_worker *worker = cv_container(timer, struct cv_worker, drain_timer);

	cv_list_each (entry, &worker->seats) {
		struct cv_seat *seat = cv_container(entry, struct cv_seat, link);

		cv_list_each_safe (conn, &seat->conns)
			cv_conn_end(cv_container(conn, struct cv_conn, link), CV_REASON_DRAINED);
		cv_list_each_safe (tunnel, &seat->tunnels)
			cv_tunnel_cut(cv_container(tunnel, struct cv_tunnel, link), CV_REASON_DRAINED);
	}
}

static int start_drain(struct cv_worker *worker, void *argument)
{
	const uint32_t *deadline_ms = argument;

	worker->draining = true;
	cv_list_each (entry, &worker->seats)
		drain_seat(cv_container(entry, struct cv_seat, link));
	worker->drain_timer.fire = cut_all;
	cv_timer_arm(&worker->timers, &worker->drain_timer, worker->now_ms + *deadline_ms);
	return 0;
}

int cv_engine_drain(struct cv_engine *engine, uint32_t deadline_ms)
{
	if (engine->draining)
		return -EALREADY;
	engine->draining = true;
	atomic_store(&engine->workers_draining, engine->worker_count);
	return call_all(engine, start_drain, &deadline_ms);
}

void cv_engine_check_drained(struct cv_worker *worker)
{
	if (worker->drained)
		return;
	cv_list_each (entry, &worker->seats) {
		struct cv_seat *seat = cv_container(entry, struct cv_seat, link);

		if (!cv_list_empty(&seat->conns) || !cv_list_empty(&seat->tunnels))
			return;
	}
	worker->drained = true;
	cv_timer_cancel(&worker->timers, &worker->drain_timer);
	if (atomic_fetch_sub(&worker->engine->workers_draining, 1) == 1)
		emit_plain(worker->engine, CV_EVENT_DRAINED, 0);
}
