/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any bytes as what an authenticated peer says on a tunnel, to a server and to a client with requests under way; and
 * then the tunnel ends, with whatever is queued on it.
 *
 * TLS is left out, and dials end in socket pairs. All else runs as it does in a worker, turn by turn, on one that has
 * no thread. The first byte says what happens besides (enum script), the second in pieces of which size the rest
 * comes, one each turn, and where memory is scarce the last byte says which allocation fails.
 */
#include <stdlib.h>
#include <sys/epoll.h>

#include "conn.h"
#include "engine.h"
#include "h2_world.h"
#include "outbound.h"
#include "pod.h"
#include "tunnel.h"
#include "tunnel_io.h"

enum script {
	CLIENT = 1,
	HELD = 2,   /* nothing leaves before the end */
	BUSY = 4,   /* applications connect, write and leave, and time passes */
	LOST = 8,   /* the socket dies, so nobody says goodbye */
	STUCK = 16, /* every other turn the socket takes nothing */
	SCARCE = 32,
};

enum {
	EVENTS = 64,
	TURN_MS = 100,
	FULL = 1 << 20, /* more than may wait for a socket */
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct cv_engine *engine;

static void set_up(void)
{
	struct cv_settings settings = {
		.workers = 1,
		.notes_map = -1,
		.flows_map = -1,
		.max_streams_per_tunnel = 2,
		.pool_idle_ms = 5 * TURN_MS,
		.ping_interval_ms = 20 * TURN_MS,
	};

	engine = cv_engine_create(&settings);
	if (!engine || cv_engine_publish(engine, world_tables()))
		abort();
}

static struct cv_seat *add_pod(void)
{
	struct cv_pod_sockets sockets = {.number = 1,
					 .workload_uid = "w",
					 .identity = "spiffe://td/ns/n/sa/a",
					 .netns = -1,
					 .outbound4 = -1,
					 .outbound6 = -1,
					 .inbound = -1,
					 .hbone = -1};

	if (cv_engine_add_pod(engine, &sockets))
		abort();
	return cv_container(engine->workers[0].seats.next, struct cv_seat, link);
}

/* ---------------------------------------------------------------- tunnels */

/* Its handshake is done. */
static void open_tunnel(struct cv_tunnel *tunnel)
{
	static const struct cv_endpoint here = {.ip = {[10] = 0xff, [11] = 0xff, [12] = 127, [15] = 1}};

	tunnel->local = here;
	tunnel->peer = cv_text_create("spiffe://td/ns/n/sa/b");
	if (tunnel->peer)
		cv_tunnel_opened(tunnel);
	else
		cv_tunnel_fail(tunnel, CV_REASON_TLS_FAILED, NULL);
}

static void accept_tunnel(struct cv_seat *seat)
{
	struct cv_tunnel *tunnel = calloc(1, sizeof(*tunnel));

	if (!tunnel)
		return;
	tunnel->worker = seat->worker;
	tunnel->seat = seat;
	tunnel->role = CV_ROLE_SERVER;
	tunnel->state = CV_TUNNEL_HANDSHAKE;
	tunnel->fd = world_socket();
	cv_tunnel_life_init(tunnel);
	cv_tunnel_io_init(tunnel);
	cv_list_append(&seat->tunnels, &tunnel->link);
	if (cv_worker_watch(seat->worker, tunnel->fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, &tunnel->watch))
		abort();
	open_tunnel(tunnel);
}

static struct cv_tunnel *in_state(const struct cv_seat *seat, enum cv_tunnel_state state)
{
	cv_list_each (entry, &seat->tunnels) {
		struct cv_tunnel *tunnel = cv_container(entry, struct cv_tunnel, link);

		if (tunnel->state == state)
			return tunnel;
	}
	return NULL;
}

/* Before their sockets are heard of: what would follow is TLS. */
static void open_dialled(const struct cv_seat *seat)
{
	struct cv_tunnel *tunnel;

	while ((tunnel = in_state(seat, CV_TUNNEL_CONNECTING)))
		open_tunnel(tunnel);
}

/* ------------------------------------------------------------------ turns */

static void connect_application(struct cv_seat *seat)
{
	int fd = world_socket();

	if (fd >= 0)
		cv_outbound_accept(seat, fd);
}

static void act(struct cv_seat *seat, uint8_t what)
{
	seat->worker->now_ms += TURN_MS;
	(void)cv_timers_run(&seat->worker->timers, seat->worker->now_ms);
	if (what % 4 == 3)
		connect_application(seat);
	else
		world_act(what % 4, what / 4);
}

static void serve_events(struct cv_seat *seat)
{
	struct epoll_event events[EVENTS];
	int n = epoll_wait(seat->worker->epoll, events, EVENTS, 0);

	for (int i = 0; i < n; i++) {
		struct cv_watch *watch = events[i].data.ptr;

		watch->on(watch, events[i].events);
	}
}

static void run_jobs(struct cv_list *list)
{
	struct cv_list jobs;

	cv_list_take(&jobs, list);
	while (!cv_list_empty(&jobs)) {
		struct cv_job *job = cv_container(jobs.next, struct cv_job, link);

		cv_list_remove(&job->link);
		job->run(job);
	}
}

static void end_turn(struct cv_worker *worker, bool flushes)
{
	run_jobs(&worker->ready);
	if (flushes)
		run_jobs(&worker->flush);
	while (!cv_list_empty(&worker->graves))
		run_jobs(&worker->graves);
}

static void converse(struct cv_seat *seat, uint8_t script, const uint8_t *data, size_t size, size_t step)
{
	for (size_t at = 0; at < size; at += step) {
		struct cv_tunnel *tunnel;

		if (script & BUSY)
			act(seat, data[at]);
		open_dialled(seat);
		tunnel = in_state(seat, CV_TUNNEL_OPEN);
		if (!tunnel)
			break;
		tunnel->staged = script & STUCK && at / step % 2 ? FULL : 0;
		world_send(tunnel->fd, data + at, size - at < step ? size - at : step);
		serve_events(seat);
		end_turn(seat->worker, !(script & HELD));
	}
}

/* ------------------------------------------------------------- one input */

static void end_tunnel(struct cv_seat *seat, uint8_t script)
{
	struct cv_tunnel *tunnel = in_state(seat, CV_TUNNEL_OPEN);

	if (script & BUSY)
		connect_application(seat);
	if (tunnel && script & LOST)
		cv_tunnel_lost(tunnel, CV_REASON_TUNNEL_LOST, "the peer reset the tunnel");
	else if (tunnel)
		cv_tunnel_fail(tunnel, CV_REASON_TUNNEL_LOST, "the peer closed the tunnel");
	end_turn(seat->worker, true);
	open_dialled(seat); /* what was lost is tried again */
	serve_events(seat);
	end_turn(seat->worker, true);
}

/* The pod goes, and nothing of it may be left. */
static void clean_up(struct cv_worker *worker)
{
	static struct cv_event events[256];

	if (cv_engine_remove_pod(engine, 1, 0))
		abort();
	end_turn(worker, true);
	if (worker->timers.first || !cv_list_empty(&worker->flush) || !cv_list_empty(&worker->ready) ||
	    !cv_list_empty(&worker->waiting) || cv_figure(&worker->figures.bytes_buffered) ||
	    cv_figure(&worker->figures.connections_open) || cv_figure(&worker->figures.tunnels_open))
		abort();
	if (!world_close())
		abort();
	while (cv_engine_events(engine, events, 256) > 0)
		;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct cv_seat *seat;
	uint8_t script;

	if (size < 3)
		return 0;
	if (!engine)
		set_up();
	script = data[0];
	seat = add_pod();
	if (script & SCARCE)
		world_fail_allocation(data[size - 1]);
	if (script & CLIENT)
		connect_application(seat);
	else
		accept_tunnel(seat);
	converse(seat, script, data + 2, size - 2, data[1] ? data[1] : 65536);
	end_tunnel(seat, script);
	world_fail_allocation(-1);
	clean_up(seat->worker);
	return 0;
}
