/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One connection for the local application: is it for this pod, may the peer have it, does the application take it.
 *
 * The order of checks is HBONE's (a peer can tell them apart by status). A connection stands in the seat's list from
 * before it is judged, and tables change only between turns, so no change of policy can slip past it.
 */
#include "inbound.h"

#include <string.h>
#include <sys/socket.h>

#include "dial.h"
#include "endpoint.h"
#include "engine.h"
#include "h2.h"
#include "tables.h"
#include "tcp.h"
#include "tunnel.h"

/* Ends what was not opened; a request gets `status`. */
static void refuse(struct cv_conn *conn, uint16_t status, enum cv_reason reason)
{
	struct cv_stream *stream = conn->downstream;

	if (conn->path == CV_PATH_HBONE && stream) {
		conn->status = status;
		conn->downstream = NULL;
		cv_h2_refuse(cv_container(stream, struct cv_h2_stream, stream), status);
	}
	cv_conn_end(conn, reason);
}

static void on_deadline(struct cv_conn *conn)
{
	refuse(conn, 503, conn->timeout_reason);
}

static struct cv_peer peer_of(const struct cv_conn *conn)
{
	struct cv_peer peer = {.identity = conn->identity ? conn->identity->s : NULL};

	memcpy(peer.ip, conn->client.ip, sizeof(peer.ip));
	return peer;
}

static bool is_allowed(struct cv_conn *conn)
{
	struct cv_peer peer = peer_of(conn);
	struct cv_verdict verdict = {0};

	/* Unknown is refused: the verdict of an error is a refusal. */
	if (cv_tables_judge(conn->worker->tables, conn->target, &peer, &conn->destination, &verdict))
		verdict.allow = 0;
	conn->policy = verdict.allow ? 0 : verdict.policy;
	conn->dry_run_policy = verdict.dry_run_policy;
	return verdict.allow;
}

void cv_inbound_judge_again(struct cv_conn *conn)
{
	const struct cv_workload *workload;

	if (conn->direction != CV_DIR_INBOUND || !conn->target)
		return;
	workload = cv_tables_workload_by_uid(conn->worker->tables, conn->seat->pod->workload_uid);
	if (!workload)
		return; /* withdrawn, which is not a verdict: the pod's removal will cut it */
	conn->target = workload->number;
	if (is_allowed(conn))
		return;
	if (conn->opened)
		cv_conn_end(conn, CV_REASON_POLICY_CHANGED);
	else
		refuse(conn, 401, CV_REASON_POLICY_DENIED);
}

/* The workload that has the client's address, unless it is known to be somebody else. */
static uint32_t source_of(const struct cv_conn *conn)
{
	const struct cv_workload *workload = cv_tables_workload_by_ip(conn->worker->tables, conn->client.ip);

	if (!workload || (conn->identity && strcmp(workload->identity, conn->identity->s) != 0))
		return 0;
	return workload->number;
}

static void open_relay(struct cv_conn *conn)
{
	const struct cv_workload *workload = cv_tables_workload(conn->worker->tables, conn->target);
	struct cv_h2_stream *stream;

	if (conn->path == CV_PATH_HBONE) {
		stream = cv_container(conn->downstream, struct cv_h2_stream, stream);
		if (cv_h2_accept(stream, workload ? workload->baggage : NULL)) {
			cv_conn_end(conn, CV_REASON_LIMIT_DESCRIPTORS);
			return;
		}
		conn->status = 200;
	}
	cv_conn_join(conn);
}

static void on_connected(struct cv_tcp *tcp, int error)
{
	struct cv_conn *conn = tcp->stream.owner;

	if (!error) {
		open_relay(conn);
		return;
	}
	conn->upstream = NULL;
	cv_tcp_abort(tcp);
	refuse(conn, 503, cv_dial_reason(error));
}

static void dial_application(struct cv_conn *conn)
{
	struct cv_stamp stamp = {
		.kind = CV_NOTE_CLIENT,
		.direction = CV_DIR_INBOUND,
		.source = conn->source,
		.destination = conn->target,
		.orig = &conn->client,
	};
	struct cv_tcp *tcp;
	int error = cv_dial_stream(conn->seat, &conn->destination, &stamp, &tcp);

	if (error) {
		refuse(conn, 503, cv_dial_reason(error));
		return;
	}
	tcp->upstream = true;
	tcp->connected = on_connected;
	cv_conn_set_upstream(conn, &tcp->stream);
	cv_conn_deadline(conn, conn->worker->engine->settings.connect_timeout_ms, CV_REASON_CONNECT_TIMEOUT);
}

/* The checks that need no tables come first for plain connections and in between for requests. */
static void decide(struct cv_conn *conn)
{
	const struct cv_tables *tables = conn->worker->tables;
	const struct cv_workload *workload =
		tables ? cv_tables_workload_by_uid(tables, conn->seat->pod->workload_uid) : NULL;
	struct cv_h2_stream *stream;
	enum cv_authority authority = CV_AUTHORITY_IP;

	if (!workload) {
		cv_conn_wait(conn, decide);
		return;
	}
	conn->target = workload->number;
	conn->source = source_of(conn);
	if (conn->path == CV_PATH_HBONE) {
		stream = cv_container(conn->downstream, struct cv_h2_stream, stream);
		authority =
			cv_authority_parse(stream->head->authority, stream->head->authority_length, &conn->destination);
		if (authority == CV_AUTHORITY_MAPPED ||
		    (authority == CV_AUTHORITY_IP &&
		     !cv_endpoint_same_ip(&conn->destination, &stream->tunnel->local))) {
			refuse(conn, 400, CV_REASON_ADDRESS_MISMATCH);
			return;
		}
	}
	if (authority == CV_AUTHORITY_HOST) {
		conn->detail = "CONNECT by name: this is no waypoint";
		refuse(conn, 503, CV_REASON_UNKNOWN_PORT);
	} else if (cv_endpoint_is_mesh_port(conn->destination.port)) {
		refuse(conn, 503, CV_REASON_SELF_CALL);
	} else if (!is_allowed(conn)) {
		refuse(conn, 401, CV_REASON_POLICY_DENIED);
	} else {
		dial_application(conn);
	}
}

static void start(struct cv_conn *conn, struct cv_stream *downstream)
{
	cv_conn_set_downstream(conn, downstream);
	conn->timed_out = on_deadline;
	cv_conn_deadline(conn, conn->worker->engine->settings.source_wait_ms, CV_REASON_UNKNOWN_SOURCE);
	decide(conn);
}

/* What is wrong with the request itself: the status, 0 when nothing is. */
static uint16_t request_fault(const struct cv_head *head)
{
	struct cv_endpoint unused;

	if (head->too_large)
		return 431;
	if (!head->is_connect || !head->has_authority || head->authority_too_long)
		return 400;
	return cv_authority_parse(head->authority, head->authority_length, &unused) == CV_AUTHORITY_BAD ? 400 : 0;
}

/* Who the application sees: the peer's address, and the port its side reports if it speaks of the same address. */
static struct cv_endpoint client_of(const struct cv_h2_stream *stream)
{
	struct cv_endpoint client = stream->tunnel->remote;

	if (stream->head->has_forwarded && cv_endpoint_same_ip(&stream->head->forwarded, &client))
		client.port = stream->head->forwarded.port;
	return client;
}

void cv_inbound_request(struct cv_h2_stream *stream)
{
	struct cv_tunnel *tunnel = stream->tunnel;
	struct cv_endpoint client = client_of(stream);
	struct cv_conn *conn;
	uint16_t status;

	if (!cv_head_is_valid_request(stream->head)) {
		cv_conn_report(tunnel->seat, CV_DIR_INBOUND, &client, CV_REASON_PROTOCOL_ERROR, "a malformed request");
		cv_h2_violate(stream);
		return;
	}
	conn = cv_conn_create(tunnel->seat, CV_DIR_INBOUND, &client,
			      cv_share_of_text(&tunnel->worker->engine->shares, tunnel->peer->s));
	if (!conn) {
		cv_h2_refuse(stream, 503);
		return;
	}
	conn->path = CV_PATH_HBONE;
	conn->identity = cv_text_acquire(tunnel->peer);
	conn->hbone = tunnel->remote;
	conn->destination = tunnel->local;
	conn->destination.port = 0;
	conn->downstream = &stream->stream;
	status = request_fault(stream->head);
	if (status)
		refuse(conn, status, CV_REASON_BAD_REQUEST);
	else
		start(conn, &stream->stream);
}

static int names_of(int fd, struct cv_endpoint *remote, struct cv_endpoint *local)
{
	struct sockaddr_storage address;
	socklen_t length = sizeof(address);

	if (getpeername(fd, (struct sockaddr *)&address, &length) < 0 || cv_endpoint_from_sockaddr(&address, remote))
		return -1;
	length = sizeof(address);
	if (getsockname(fd, (struct sockaddr *)&address, &length) < 0 || cv_endpoint_from_sockaddr(&address, local))
		return -1;
	return 0;
}

void cv_inbound_accept(struct cv_seat *seat, int fd)
{
	struct cv_endpoint remote;
	struct cv_endpoint local;
	struct cv_conn *conn = NULL;
	struct cv_tcp *tcp;

	if (!names_of(fd, &remote, &local))
		conn = cv_conn_create(seat, CV_DIR_INBOUND, &remote, cv_seat_share_of(seat, &remote));
	if (!conn) {
		cv_tcp_reset(fd);
		return;
	}
	conn->path = CV_PATH_PLAIN;
	conn->destination = local;
	if (cv_tcp_create(seat->worker, fd, false, &tcp))
		cv_conn_end(conn, CV_REASON_LIMIT_DESCRIPTORS);
	else
		start(conn, &tcp->stream);
}
