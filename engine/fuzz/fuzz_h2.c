/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any bytes as what an authenticated peer says on a tunnel, to a server and to a client with a request under way.
 *
 * TLS is left out: the session, the streams and the relay are driven as the tunnel drives them, on a worker that has
 * no thread. The first byte chooses the role; the rest comes in pieces of the size that the second byte says.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "conn.h"
#include "engine.h"
#include "pod.h"
#include "tables.h"
#include "tcp.h"
#include "tunnel.h"
#include "tunnel_io.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int __wrap_cv_tls_write(struct cv_tunnel *tunnel, const uint8_t *bytes, size_t length);
int __wrap_cv_tls_flush(struct cv_tunnel *tunnel);

int __wrap_cv_tls_write(struct cv_tunnel *tunnel, const uint8_t *bytes, size_t length)
{
	(void)tunnel;
	(void)bytes;
	(void)length;
	return 0;
}

int __wrap_cv_tls_flush(struct cv_tunnel *tunnel)
{
	(void)tunnel;
	return 0;
}

static struct cv_engine *engine;
static struct cv_local_pod *pod;

static void set_up(void)
{
	struct cv_settings settings = {.workers = 1, .notes_map = -1, .flows_map = -1};
	struct cv_pod_sockets sockets = {.number = 1,
					 .workload_uid = "w",
					 .identity = "spiffe://td/ns/n/sa/a",
					 .netns = -1,
					 .outbound4 = -1,
					 .outbound6 = -1,
					 .inbound = -1,
					 .hbone = -1};
	uint8_t loopback[1][16] = {{[10] = 0xff, [11] = 0xff, [12] = 127, [15] = 1}};
	struct cv_workload workload = {.number = 1,
				       .uid = "w",
				       .identity = "spiffe://td/ns/n/sa/a",
				       .namespace_ = "n",
				       .baggage = "b",
				       .network = "",
				       .addresses = (const uint8_t(*)[16])loopback,
				       .address_count = 1};
	struct cv_tables *tables = cv_tables_create();

	engine = cv_engine_create(&settings);
	if (!engine || !tables || cv_tables_put_workload(tables, &workload) || cv_engine_publish(engine, tables) ||
	    cv_engine_add_pod(engine, &sockets))
		abort();
	pod = cv_container(engine->pods.next, struct cv_local_pod, link);
}

/* A tunnel over a socket pair that has got as far as its handshake. */
static struct cv_tunnel *open_tunnel(struct cv_seat *seat, enum cv_role role, int fd)
{
	struct cv_tunnel *tunnel = calloc(1, sizeof(*tunnel));

	if (!tunnel)
		abort();
	tunnel->worker = seat->worker;
	tunnel->seat = seat;
	tunnel->role = role;
	tunnel->fd = fd;
	tunnel->peer = cv_text_create("spiffe://td/ns/n/sa/b");
	tunnel->local = (struct cv_endpoint){.ip = {[10] = 0xff, [11] = 0xff, [12] = 127, [15] = 1}};
	tunnel->state = CV_TUNNEL_OPEN;
	cv_tunnel_life_init(tunnel);
	cv_tunnel_io_init(tunnel);
	cv_list_append(&seat->tunnels, &tunnel->link);
	if (role == CV_ROLE_SERVER)
		atomic_fetch_add(&pod->tunnels, 1);
	if (cv_h2_open(tunnel))
		abort();
	return tunnel;
}

static void on_answered(struct cv_h2_stream *stream, uint16_t status)
{
	struct cv_conn *conn = stream->stream.owner;

	conn->status = status;
	cv_conn_join(conn);
}

/* A client's connection with an application behind it, waiting for the answer. */
static void start_request(struct cv_tunnel *tunnel, int fd)
{
	struct cv_endpoint client = {.ip = {[10] = 0xff, [11] = 0xff, [12] = 10, [15] = 1}, .port = 1};
	enum cv_reason refusal;
	struct cv_conn *conn = cv_conn_create(tunnel->seat, 1, &client, &refusal);
	struct cv_h2_stream *stream;
	struct cv_tcp *tcp;

	if (!conn || cv_tcp_create(tunnel->worker, fd, false, &tcp))
		abort();
	cv_conn_set_downstream(conn, &tcp->stream);
	if (cv_h2_request(tunnel, conn, "b", &stream))
		abort();
	stream->answered = on_answered;
	cv_conn_set_upstream(conn, &stream->stream);
}

static void end_turn(struct cv_worker *worker)
{
	while (!cv_list_empty(&worker->graves)) {
		struct cv_job *job = cv_container(worker->graves.next, struct cv_job, link);

		cv_list_remove(&job->link);
		job->run(job);
	}
	cv_list_each_safe (entry, &worker->ready)
		cv_list_remove(entry);
	cv_list_each_safe (entry, &worker->flush)
		cv_list_remove(entry);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct cv_event events[256];
	struct cv_worker *worker;
	struct cv_tunnel *tunnel;
	struct cv_seat *seat;
	int wire[2];
	int app[2];
	size_t step;

	if (size < 2)
		return 0;
	if (!engine)
		set_up();
	worker = &engine->workers[0];
	seat = cv_seat_find(worker, pod);
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, wire) ||
	    socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, app))
		abort();
	tunnel = open_tunnel(seat, data[0] & 1 ? CV_ROLE_CLIENT : CV_ROLE_SERVER, wire[0]);
	if (tunnel->role == CV_ROLE_CLIENT)
		start_request(tunnel, app[0]);
	else
		close(app[0]);
	step = data[1] ? data[1] : 65536;
	for (size_t at = 2; at < size; at += step) {
		if (cv_h2_receive(tunnel, data + at, size - at < step ? size - at : step))
			break;
		(void)cv_h2_send(tunnel);
	}
	cv_h2_lose_streams(tunnel, CV_REASON_TUNNEL_LOST, NULL);
	cv_list_each_safe (entry, &seat->conns)
		cv_conn_end(cv_container(entry, struct cv_conn, link), CV_REASON_TUNNEL_LOST);
	cv_tunnel_vanish(tunnel);
	end_turn(worker);
	while (cv_engine_events(engine, events, 256) > 0)
		;
	close(wire[1]);
	close(app[1]);
	return 0;
}
