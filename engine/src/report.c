/* SPDX-License-Identifier: Apache-2.0 */
/* What Python reads: events, open connections, flow figures and counters. */
#include <errno.h>
#include <string.h>

#include "conn.h"
#include "engine.h"
#include "note.h"
#include "tcp.h"
#include "tunnel.h"

int cv_engine_event_fd(struct cv_engine *engine)
{
	return engine->events.fd;
}

int cv_engine_events(struct cv_engine *engine, struct cv_event *ret, uint32_t max)
{
	return cv_events_take(&engine->events, ret, max);
}

struct connections {
	struct cv_event *ret;
	uint32_t max;
	uint32_t count;
};

static int list_connections(struct cv_worker *worker, void *argument)
{
	struct connections *into = argument;

	cv_list_each (entry, &worker->seats) {
		struct cv_seat *seat = cv_container(entry, struct cv_seat, link);

		cv_list_each (link, &seat->conns) {
			const struct cv_conn *conn = cv_container(link, struct cv_conn, link);

			if (!conn->opened)
				continue;
			if (into->count < into->max)
				cv_conn_describe(conn, CV_EVENT_OPENED, CV_REASON_OK, &into->ret[into->count]);
			into->count++;
		}
	}
	return 0;
}

int cv_engine_connections(struct cv_engine *engine, struct cv_event *ret, uint32_t max)
{
	struct connections into = {.ret = ret, .max = max};

	for (uint32_t i = 0; i < engine->worker_count; i++)
		cv_worker_call(&engine->workers[i], list_connections, &into);
	return (int)into.count;
}

struct flows {
	struct cv_flow_delta *ret;
	uint32_t max;
	uint32_t count;
	int map;
};

static void add_flow(struct flows *into, int fd, uint32_t source, uint32_t destination, enum cv_direction direction)
{
	struct cv_flow_delta delta = {.source = source, .destination = destination, .direction = direction};

	if (fd < 0 || cv_note_flow(into->map, fd, &delta))
		return;
	if (into->count < into->max)
		into->ret[into->count] = delta;
	into->count++;
}

/* The end of an open connection that is a local socket: downstream when outbound, upstream when inbound. */
static void add_conn(struct flows *into, const struct cv_conn *conn)
{
	bool is_inbound = conn->direction == CV_DIR_INBOUND;
	const struct cv_stream *stream = conn->relay.ends[is_inbound];

	if (!stream)
		return;
	add_flow(into, cv_container(stream, struct cv_tcp, stream)->fd, conn->source, conn->target, conn->direction);
}

static int list_flows(struct cv_worker *worker, void *argument)
{
	struct flows *into = argument;

	cv_list_each (entry, &worker->seats) {
		struct cv_seat *seat = cv_container(entry, struct cv_seat, link);

		cv_list_each (link, &seat->conns)
			add_conn(into, cv_container(link, struct cv_conn, link));
		cv_list_each (link, &seat->tunnels) {
			const struct cv_tunnel *tunnel = cv_container(link, struct cv_tunnel, link);

			if (tunnel->role == CV_ROLE_CLIENT && tunnel->state == CV_TUNNEL_OPEN)
				add_flow(into, tunnel->fd, tunnel->source, tunnel->destination, CV_DIR_TUNNEL);
		}
	}
	return 0;
}

int cv_engine_flows(struct cv_engine *engine, struct cv_flow_delta *ret, uint32_t max)
{
	struct flows into = {.ret = ret, .max = max, .map = engine->settings.flows_map};

	if (into.map < 0)
		return 0;
	for (uint32_t i = 0; i < engine->worker_count; i++)
		cv_worker_call(&engine->workers[i], list_flows, &into);
	return (int)into.count;
}

static void add_figures(const struct cv_figures *figures, struct cv_stats *ret)
{
	ret->accepted += cv_figure(&figures->accepted);
	for (int i = 0; i < 64; i++)
		ret->refused[i] += cv_figure(&figures->refused[i]);
	for (int role = 0; role < 2; role++) {
		ret->tunnels_opened[role] += cv_figure(&figures->tunnels_opened[role]);
		ret->tunnels_closed[role] += cv_figure(&figures->tunnels_closed[role]);
		ret->handshakes_failed[role] += cv_figure(&figures->handshakes_failed[role]);
	}
	ret->pool_hits += cv_figure(&figures->pool_hits);
	ret->pool_misses += cv_figure(&figures->pool_misses);
	ret->bytes_buffered += cv_figure(&figures->bytes_buffered);
	ret->connections_open += cv_figure(&figures->connections_open);
	ret->tunnels_open += cv_figure(&figures->tunnels_open);
	ret->spun_us += cv_figure(&figures->spun_ns) / 1000;
}

int cv_engine_stats(struct cv_engine *engine, struct cv_stats *ret)
{
	memset(ret, 0, sizeof(*ret));
	for (uint32_t i = 0; i < engine->worker_count; i++)
		add_figures(&engine->workers[i].figures, ret);
	ret->events_dropped = cv_events_dropped(&engine->events);
	return 0;
}
