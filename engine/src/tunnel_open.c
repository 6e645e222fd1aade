/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How a tunnel begins: accepted within the bounds on 15008, or connected for a pool.
 *
 * Nobody has proved anything before the handshake is over, so who is first says nothing about who is honest: when a
 * worker's handshakes are all taken, in the pod that has most of them the address that has most of them gives way with
 * its oldest. Peers that hold connections to one pod and say nothing cost neither the node's other pods nor an honest
 * peer of this one, which is done within a few round trips.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "conn.h"
#include "dial.h"
#include "endpoint.h"
#include "engine.h"
#include "tcp.h"
#include "tunnel_io.h"

static struct cv_tunnel *create(struct cv_seat *seat, enum cv_role role, int fd)
{
	struct cv_tunnel *tunnel = calloc(1, sizeof(*tunnel));

	if (!tunnel)
		return NULL;
	tunnel->worker = seat->worker;
	tunnel->seat = seat;
	tunnel->role = role;
	tunnel->fd = fd;
	cv_tunnel_life_init(tunnel);
	cv_tunnel_io_init(tunnel);
	if (role == CV_ROLE_CLIENT)
		cv_tcp_configure(fd, seat->worker->engine->settings.keepalive_s);
	if (cv_worker_watch(seat->worker, fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, &tunnel->watch)) {
		free(tunnel);
		return NULL;
	}
	cv_list_append(&seat->tunnels, &tunnel->link);
	return tunnel;
}

static struct cv_seat *busiest_seat(struct cv_worker *worker, struct cv_seat *own)
{
	struct cv_seat *busiest = own;

	cv_list_each (entry, &worker->seats) {
		struct cv_seat *seat = cv_container(entry, struct cv_seat, link);

		if (seat->young_count > busiest->young_count)
			busiest = seat;
	}
	return busiest;
}

/* The list is never longer than the bound of handshakes, and is only walked at that bound. */
static struct cv_tunnel *greediest_young(struct cv_seat *seat)
{
	struct cv_tunnel *found = NULL;
	uint32_t most = 0;

	cv_list_each (entry, &seat->young) {
		struct cv_tunnel *tunnel = cv_container(entry, struct cv_tunnel, young);
		uint32_t held = cv_share_held(&seat->worker->young_shares, tunnel->share);

		if (held > most) {
			most = held;
			found = tunnel;
		}
	}
	return found;
}

/* False when the bound leaves no room for anybody. */
static bool make_room(struct cv_seat *seat)
{
	struct cv_worker *worker = seat->worker;
	struct cv_tunnel *greediest;

	if (worker->handshakes < worker->engine->settings.max_handshakes)
		return true;
	greediest = greediest_young(busiest_seat(worker, seat));
	if (!greediest)
		return false;
	cv_tunnel_lost(greediest, CV_REASON_LIMIT_HANDSHAKES,
		       "too many handshakes: this one was the oldest of the address that has most of them");
	return true;
}

static enum cv_reason accept_limit(struct cv_seat *seat, uint64_t share, const char **detail)
{
	uint32_t bound = seat->worker->engine->settings.max_connections_per_pod;
	uint32_t open = atomic_load(&seat->pod->tunnels);

	if (open >= bound) {
		*detail = "the pod has too many tunnels";
		return CV_REASON_LIMIT_CONNECTIONS;
	}
	if (!cv_share_allows(&seat->pod->tunnel_shares, share, open, bound)) {
		*detail = "this address has its share of the pod's tunnels: what is left is for others";
		return CV_REASON_LIMIT_SHARE;
	}
	if (!cv_engine_allows(seat->worker->engine, share)) {
		*detail = "this address has its share of the node's descriptors: what is left is for others";
		return CV_REASON_LIMIT_SHARE;
	}
	*detail = "too many handshakes";
	return make_room(seat) ? CV_REASON_OK : CV_REASON_LIMIT_HANDSHAKES;
}

void cv_tunnel_accept(struct cv_seat *seat, int fd)
{
	struct sockaddr_storage remote;
	struct sockaddr_storage local;
	socklen_t remote_length = sizeof(remote);
	socklen_t local_length = sizeof(local);
	struct cv_endpoint peer = {0};
	struct cv_tunnel *tunnel = NULL;
	const char *detail = "";
	enum cv_reason limit;
	uint64_t share;

	if (getpeername(fd, (struct sockaddr *)&remote, &remote_length) < 0 ||
	    getsockname(fd, (struct sockaddr *)&local, &local_length) < 0) {
		close(fd); /* gone already */
		return;
	}
	(void)cv_endpoint_from_sockaddr(&remote, &peer);
	share = cv_seat_share_of(seat, &peer);
	limit = accept_limit(seat, share, &detail);
	if (limit == CV_REASON_OK) {
		tunnel = create(seat, CV_ROLE_SERVER, fd);
		limit = CV_REASON_LIMIT_DESCRIPTORS;
		detail = "no descriptor or memory for a tunnel";
	}
	if (!tunnel) {
		cv_conn_report(seat, CV_DIR_INBOUND, &peer, limit, detail);
		cv_tcp_reset(fd);
		return;
	}
	atomic_fetch_add(&seat->pod->tunnels, 1);
	cv_share_take(&seat->pod->tunnel_shares, share);
	cv_engine_take(seat->worker->engine, share);
	cv_share_take(&seat->worker->young_shares, share);
	tunnel->share = share;
	tunnel->remote = peer;
	(void)cv_endpoint_from_sockaddr(&local, &tunnel->local);
	tunnel->may_write = true;
	tunnel->handshaking = true;
	seat->worker->handshakes++;
	seat->young_count++;
	cv_list_append(&seat->young, &tunnel->young);
	tunnel->state = CV_TUNNEL_WAITING;
	cv_tunnel_start_handshake(tunnel);
}

struct cv_tunnel *cv_tunnel_connect(struct cv_seat *seat, struct cv_pool *pool, const struct cv_endpoint *to,
				    uint32_t source, uint32_t destination, int *error)
{
	struct cv_stamp stamp = {
		.kind = CV_NOTE_OWN,
		.direction = CV_DIR_TUNNEL,
		.source = source,
		.destination = destination,
	};
	int fd = cv_dial(seat, to, &stamp);
	struct cv_tunnel *tunnel;

	if (fd < 0) {
		*error = fd;
		return NULL;
	}
	tunnel = create(seat, CV_ROLE_CLIENT, fd);
	if (!tunnel) {
		close(fd);
		*error = -ENOMEM;
		return NULL;
	}
	tunnel->pool = pool;
	tunnel->remote = *to;
	tunnel->source = source;
	tunnel->destination = destination;
	cv_timer_arm(&seat->worker->timers, &tunnel->life,
		     seat->worker->now_ms + seat->worker->engine->settings.connect_timeout_ms);
	return tunnel;
}
