/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One captured connection: whose it is (the note), where it goes (the tables), how it gets there (plain, or a stream
 * on a tunnel). Until the relay is joined nothing has been read from the application, so a second endpoint may be
 * tried once without anybody noticing.
 */
#include "outbound.h"

#include <arpa/inet.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "dial.h"
#include "endpoint.h"
#include "engine.h"
#include "pool.h"
#include "tables.h"
#include "tcp.h"
#include "tunnel.h"

enum { ANOTHER_ENDPOINT_TRIES = 16 }; /* draws before we believe that there is no other */

static void decide(struct cv_conn *conn);
static void fail_over(struct cv_conn *conn, enum cv_reason reason);

static struct cv_endpoint name_of(int fd, int (*name)(int, struct sockaddr *, socklen_t *))
{
	struct sockaddr_storage address;
	socklen_t length = sizeof(address);
	struct cv_endpoint endpoint = {0};

	if (!name(fd, (struct sockaddr *)&address, &length))
		(void)cv_endpoint_from_sockaddr(&address, &endpoint);
	return endpoint;
}

/* What the application dialled: by its note, or without programs by where it arrived. */
static int original_destination(struct cv_seat *seat, int fd, struct cv_endpoint *ret)
{
	int map = seat->worker->engine->settings.notes_map;
	struct cv_note note;

	if (map < 0) {
		*ret = name_of(fd, getsockname);
		return 0;
	}
	if (cv_note_read(map, fd, &note) || note.kind != CV_NOTE_ACCEPTED)
		return -ENOENT;
	memcpy(ret->ip, note.orig.b, sizeof(ret->ip));
	ret->port = ntohs(note.orig_port);
	return 0;
}

/* The capture rewrote the application's socket to loopback: show the pod's address, of the family it dialled. */
static void show_pod_address(struct cv_conn *conn, const struct cv_workload *source)
{
	struct cv_endpoint candidate = {.port = conn->client.port};

	if (!cv_endpoint_is_loopback(&conn->client))
		return;
	for (uint32_t i = 0; i < source->address_count; i++) {
		memcpy(candidate.ip, source->addresses[i], sizeof(candidate.ip));
		if (cv_endpoint_is_v4(&candidate) == cv_endpoint_is_v4(&conn->destination)) {
			conn->client = candidate;
			return;
		}
	}
}

static void on_plain_connected(struct cv_tcp *tcp, int error)
{
	struct cv_conn *conn = tcp->stream.owner;

	if (!error) {
		cv_conn_join(conn);
		return;
	}
	conn->upstream = NULL;
	cv_tcp_abort(tcp);
	fail_over(conn, cv_dial_reason(error));
}

static void on_connect_timeout(struct cv_conn *conn)
{
	struct cv_stream *upstream = conn->upstream;

	conn->upstream = NULL;
	if (upstream)
		upstream->ops->abort(upstream);
	fail_over(conn, conn->timeout_reason);
}

static void dial_plain(struct cv_conn *conn)
{
	/* The flow is counted on the application's side of us, so this socket carries no direction. */
	struct cv_stamp stamp = {.kind = CV_NOTE_OWN, .source = conn->source, .destination = conn->target};
	struct cv_tcp *tcp;
	int error = cv_dial_stream(conn->seat, &conn->route.dial, &stamp, &tcp);

	if (error) {
		fail_over(conn, cv_dial_reason(error));
		return;
	}
	tcp->upstream = true;
	tcp->connected = on_plain_connected;
	cv_conn_set_upstream(conn, &tcp->stream);
	conn->timed_out = on_connect_timeout;
	cv_conn_deadline(conn, conn->worker->engine->settings.connect_timeout_ms, CV_REASON_CONNECT_TIMEOUT);
}

static bool identity_is_known(struct cv_conn *conn)
{
	struct cv_engine *engine = conn->worker->engine;
	struct cv_identity *identity = cv_identity_acquire(&engine->identities, conn->seat->pod->identity);

	cv_identity_release(identity);
	if (identity)
		return true;
	cv_conn_want_identity(conn->seat, conn->seat->pod->identity);
	if (!conn->timer.armed || conn->timeout_reason != CV_REASON_IDENTITY_UNAVAILABLE)
		cv_conn_deadline(conn, engine->settings.source_wait_ms, CV_REASON_IDENTITY_UNAVAILABLE);
	conn->timed_out = NULL;
	cv_conn_wait(conn, decide);
	return false;
}

static void dial_hbone(struct cv_conn *conn)
{
	const struct cv_settings *settings = &conn->worker->engine->settings;

	if (!identity_is_known(conn))
		return;
	conn->hbone = conn->route.dial;
	/* A dial that fails fails those that wait for it; this one is for who waits for the room of others. */
	conn->timed_out = NULL;
	cv_conn_deadline(conn, settings->connect_timeout_ms + settings->handshake_timeout_ms,
			 CV_REASON_CONNECT_TIMEOUT);
	cv_pool_request(conn);
}

static void follow(struct cv_conn *conn)
{
	conn->target = conn->route.workload;
	(void)cv_note_label(conn->worker->engine->settings.notes_map,
			    cv_container(conn->downstream, struct cv_tcp, stream)->fd, CV_DIR_OUTBOUND, conn->source,
			    conn->target);
	switch (conn->route.kind) {
	case CV_ROUTE_PLAIN:
		conn->path = CV_PATH_PLAIN;
		dial_plain(conn);
		break;
	case CV_ROUTE_HBONE:
		conn->path = CV_PATH_HBONE;
		dial_hbone(conn);
		break;
	default:
		cv_conn_end(conn, conn->route.reason);
	}
}

static void decide(struct cv_conn *conn)
{
	const struct cv_tables *tables = conn->worker->tables;
	const struct cv_workload *source =
		tables ? cv_tables_workload_by_uid(tables, conn->seat->pod->workload_uid) : NULL;

	if (!source) {
		cv_conn_wait(conn, decide);
		return;
	}
	conn->source = source->number;
	show_pod_address(conn, source);
	cv_tables_route(tables, source->number, &conn->destination, cv_worker_random(conn->worker), &conn->route);
	follow(conn);
}

/* May this be tried again, and where? Draws until it is another endpoint; a lost tunnel may be dialled anew. */
static bool find_another(struct cv_conn *conn, enum cv_reason reason)
{
	struct cv_route route;

	if (!conn->worker->tables || !cv_tables_workload(conn->worker->tables, conn->source))
		return false;
	for (int i = 0; i < ANOTHER_ENDPOINT_TRIES && conn->route.service; i++) {
		cv_tables_route(conn->worker->tables, conn->source, &conn->destination, cv_worker_random(conn->worker),
				&route);
		if (route.kind == CV_ROUTE_REFUSE || cv_endpoint_same(&route.dial, &conn->route.dial))
			continue;
		conn->route = route;
		return true;
	}
	return reason == CV_REASON_TUNNEL_LOST;
}

static void fail_over(struct cv_conn *conn, enum cv_reason reason)
{
	if (conn->retried || !find_another(conn, reason)) {
		cv_conn_end(conn, reason);
		return;
	}
	conn->retried = true;
	conn->detail = NULL;
	follow(conn);
}

static enum cv_reason status_reason(uint16_t status)
{
	switch (status) {
	case 401:
		return CV_REASON_PEER_DENIED;
	case 503:
		return CV_REASON_PEER_UNAVAILABLE;
	default:
		return CV_REASON_PEER_REJECTED;
	}
}

static void on_answered(struct cv_h2_stream *stream, uint16_t status)
{
	struct cv_conn *conn = stream->stream.owner;

	conn->status = status;
	if (status == 200) {
		cv_conn_join(conn);
		return;
	}
	conn->upstream = NULL;
	stream->stream.ops->abort(&stream->stream);
	if (status == 503)
		fail_over(conn, CV_REASON_PEER_UNAVAILABLE);
	else
		cv_conn_end(conn, status_reason(status));
}

static void on_stream_lost(struct cv_stream *stream, enum cv_reason reason)
{
	const struct cv_h2_stream *h2 = cv_container(stream, struct cv_h2_stream, stream);
	struct cv_conn *conn = stream->owner;

	conn->upstream = NULL;
	conn->detail = h2->detail;
	if (h2->crowded_out)
		dial_hbone(conn); /* it was our mistake to ask there, and is not counted as a try */
	else if (reason == CV_REASON_RESET_UPSTREAM || reason == CV_REASON_PROTOCOL_ERROR)
		cv_conn_end(conn, reason);
	else
		fail_over(conn, reason);
}

void cv_outbound_tunnel(struct cv_conn *conn, struct cv_tunnel *tunnel)
{
	const struct cv_workload *source =
		conn->worker->tables ? cv_tables_workload(conn->worker->tables, conn->source) : NULL;
	struct cv_h2_stream *stream;
	int error = cv_h2_request(tunnel, conn, source ? source->baggage : NULL, &stream);

	if (error == -EAGAIN) {
		cv_tunnel_retire(tunnel); /* out of stream numbers */
		cv_pool_request(conn);
		return;
	}
	if (error) {
		cv_conn_end(conn, CV_REASON_LIMIT_DESCRIPTORS);
		return;
	}
	stream->answered = on_answered;
	cv_conn_set_upstream(conn, &stream->stream);
	stream->stream.lost = on_stream_lost;
	cv_text_release(conn->identity);
	conn->identity = cv_text_acquire(tunnel->peer);
	conn->timed_out = NULL;
	cv_conn_deadline(conn, conn->worker->engine->settings.request_timeout_ms, CV_REASON_REQUEST_TIMEOUT);
}

void cv_outbound_no_tunnel(struct cv_conn *conn, enum cv_reason reason, const char *detail)
{
	conn->detail = detail;
	fail_over(conn, reason);
}

void cv_outbound_accept(struct cv_seat *seat, int fd)
{
	struct cv_worker *worker = seat->worker;
	struct cv_endpoint client = name_of(fd, getpeername);
	struct cv_endpoint destination;
	struct cv_conn *conn = NULL;
	struct cv_tcp *tcp;

	if (original_destination(seat, fd, &destination))
		cv_conn_report(seat, CV_DIR_OUTBOUND, &client, CV_REASON_NO_NOTE, "nobody captured this connection");
	else
		conn = cv_conn_create(seat, CV_DIR_OUTBOUND, &client, 0);
	if (!conn) {
		cv_tcp_reset(fd);
		return;
	}
	conn->destination = destination;
	if (cv_tcp_create(worker, fd, false, &tcp)) {
		cv_conn_end(conn, CV_REASON_LIMIT_DESCRIPTORS);
		return;
	}
	cv_conn_set_downstream(conn, &tcp->stream);
	if (cv_endpoint_is_loopback(&destination) && cv_endpoint_is_mesh_port(destination.port)) {
		cv_conn_end(conn, CV_REASON_SELF_CALL);
		return;
	}
	cv_conn_deadline(conn, worker->engine->settings.source_wait_ms, CV_REASON_UNKNOWN_SOURCE);
	decide(conn);
}
