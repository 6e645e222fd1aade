/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pods and their listeners. Listeners stand in every worker's epoll, level triggered with EPOLLEXCLUSIVE: the kernel
 * wakes one worker that sleeps, and a worker that is busy leaves the rest of the backlog to others.
 */
#include "pod.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "conn.h"
#include "engine.h"
#include "inbound.h"
#include "outbound.h"
#include "pool.h"
#include "tables.h"
#include "tcp.h"
#include "tunnel.h"

enum {
	ACCEPTS = 16,         /* per listener and turn */
	ACCEPT_PAUSE_MS = 20, /* while descriptors are out: long enough not to spin, short enough not to be felt */
};

static void close_pod_fds(struct cv_local_pod *pod)
{
	for (int kind = 0; kind < CV_LISTENERS; kind++)
		if (pod->listeners[kind] >= 0)
			close(pod->listeners[kind]);
	if (pod->netns >= 0)
		close(pod->netns);
}

int cv_pod_create(const struct cv_pod_sockets *from, uint32_t workers, struct cv_local_pod **ret)
{
	struct cv_local_pod fds = {
		.listeners = {from->outbound4, from->outbound6, from->inbound, from->hbone},
		.netns = from->netns,
	};
	struct cv_local_pod *pod = calloc(1, sizeof(*pod));

	if (!pod) {
		close_pod_fds(&fds);
		return -ENOMEM;
	}
	cv_list_init(&pod->link);
	atomic_init(&pod->refs, 1);
	atomic_init(&pod->leaving, workers);
	pod->number = from->number;
	pod->netns = from->netns;
	memcpy(pod->listeners, fds.listeners, sizeof(fds.listeners));
	for (int kind = 0; kind < CV_LISTENERS; kind++)
		atomic_init(&pod->watchers[kind], workers);
	pod->workload_uid = strdup(from->workload_uid ? from->workload_uid : "");
	pod->identity = strdup(from->identity ? from->identity : "");
	if (!pod->workload_uid || !pod->identity) {
		cv_pod_release(pod);
		return -ENOMEM;
	}
	*ret = pod;
	return 0;
}

void cv_pod_release(struct cv_local_pod *pod)
{
	if (atomic_fetch_sub(&pod->refs, 1) != 1)
		return;
	close_pod_fds(pod);
	free(pod->workload_uid);
	free(pod->identity);
	free(pod);
}

static void count_refusal(struct cv_worker *worker, enum cv_reason reason)
{
	cv_figure_add(&worker->figures.refused[reason], 1);
}

/* Level triggered and exclusive entries cannot be changed, only removed and added again. */
static int listen_on(struct cv_listener *listener)
{
	struct cv_seat *seat = listener->seat;

	return cv_worker_watch(seat->worker, seat->pod->listeners[listener->kind], EPOLLIN | EPOLLEXCLUSIVE,
			       &listener->watch);
}

static void unpause(struct cv_timer *timer)
{
	struct cv_listener *listener = cv_container(timer, struct cv_listener, pause);
	struct cv_worker *worker = listener->seat->worker;

	if (listen_on(listener))
		cv_timer_arm(&worker->timers, timer, worker->now_ms + ACCEPT_PAUSE_MS);
}

static void pause_accepting(struct cv_listener *listener)
{
	struct cv_seat *seat = listener->seat;

	count_refusal(seat->worker, CV_REASON_LIMIT_DESCRIPTORS);
	(void)epoll_ctl(seat->worker->epoll, EPOLL_CTL_DEL, seat->pod->listeners[listener->kind], NULL);
	cv_timer_arm(&seat->worker->timers, &listener->pause, seat->worker->now_ms + ACCEPT_PAUSE_MS);
}

static void hand_over(struct cv_listener *listener, int fd)
{
	switch (listener->kind) {
	case CV_LISTENER_OUTBOUND4:
	case CV_LISTENER_OUTBOUND6:
		cv_outbound_accept(listener->seat, fd);
		break;
	case CV_LISTENER_INBOUND:
		cv_inbound_accept(listener->seat, fd);
		break;
	default:
		cv_tunnel_accept(listener->seat, fd);
	}
}

static void on_accept(struct cv_watch *watch, uint32_t events)
{
	struct cv_listener *listener = cv_container(watch, struct cv_listener, watch);
	struct cv_seat *seat = listener->seat;

	(void)events;
	cv_wait_served(&seat->worker->wait, CV_SERVED_APPLICATION);
	for (uint32_t i = 0; i <= listener->burst && listener->open; i++) {
		int fd = accept4(seat->pod->listeners[listener->kind], NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

		if (fd >= seat->worker->engine->descriptor_bound) {
			cv_tcp_reset(fd);
			pause_accepting(listener);
			return;
		}
		if (fd >= 0) {
			cv_figure_add(&seat->worker->figures.accepted, 1);
			hand_over(listener, fd);
			continue;
		}
		if (errno == EAGAIN) {
			listener->burst = 0;
			return;
		}
		if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
			pause_accepting(listener);
			return;
		}
	}
	if (listener->burst < ACCEPTS / 2)
		listener->burst = 2 * listener->burst + 1;
}

/*
 * Take what waits when we stop to listen. The socket may live on in another process, which a wake-up that we got
 * has passed by: what came with it would wait there until the next connection comes.
 */
static void take_rest(struct cv_listener *listener)
{
	struct cv_seat *seat = listener->seat;
	int fd;

	while ((fd = accept4(seat->pod->listeners[listener->kind], NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
		if (fd >= seat->worker->engine->descriptor_bound) {
			cv_tcp_reset(fd);
			continue;
		}
		cv_figure_add(&seat->worker->figures.accepted, 1);
		hand_over(listener, fd);
	}
}

static void stop_listener(struct cv_listener *listener)
{
	struct cv_seat *seat = listener->seat;
	struct cv_local_pod *pod = seat->pod;

	if (!listener->open)
		return;
	listener->open = false;
	cv_timer_cancel(&seat->worker->timers, &listener->pause);
	(void)epoll_ctl(seat->worker->epoll, EPOLL_CTL_DEL, pod->listeners[listener->kind], NULL);
	if (!seat->gone)
		take_rest(listener);
	if (atomic_fetch_sub(&pod->watchers[listener->kind], 1) == 1) {
		close(pod->listeners[listener->kind]);
		pod->listeners[listener->kind] = -1;
	}
}

void cv_seat_stop(struct cv_seat *seat)
{
	for (int kind = 0; kind < CV_LISTENERS; kind++)
		stop_listener(&seat->listeners[kind]);
}

static int open_listeners(struct cv_seat *seat)
{
	for (int kind = 0; kind < CV_LISTENERS; kind++) {
		struct cv_listener *listener = &seat->listeners[kind];
		int error;

		listener->seat = seat;
		listener->kind = kind;
		listener->watch.on = on_accept;
		listener->pause.fire = unpause;
		if (seat->pod->listeners[kind] < 0)
			continue;
		cv_tcp_configure(seat->pod->listeners[kind], seat->worker->engine->settings.keepalive_s);
		error = listen_on(listener);
		if (error)
			return error;
		listener->open = true;
	}
	return 0;
}

int cv_seat_create(struct cv_worker *worker, struct cv_local_pod *pod)
{
	struct cv_seat *seat = calloc(1, sizeof(*seat));
	int error;

	if (!seat)
		return -ENOMEM;
	seat->worker = worker;
	seat->pod = pod;
	atomic_fetch_add(&pod->refs, 1);
	cv_list_init(&seat->job.link);
	cv_list_init(&seat->conns);
	cv_list_init(&seat->tunnels);
	cv_list_init(&seat->pools);
	cv_list_init(&seat->young);
	cv_list_append(&worker->seats, &seat->link);
	error = open_listeners(seat);
	if (error)
		cv_seat_leave(seat, CV_REASON_INTERNAL);
	return error;
}

struct cv_seat *cv_seat_find(struct cv_worker *worker, const struct cv_local_pod *pod)
{
	cv_list_each (entry, &worker->seats) {
		struct cv_seat *seat = cv_container(entry, struct cv_seat, link);

		if (seat->pod == pod)
			return seat;
	}
	return NULL;
}

uint64_t cv_seat_share_of(const struct cv_seat *seat, const struct cv_endpoint *peer)
{
	const struct cv_tables *tables = seat->worker->tables;

	return cv_share_of_address(&seat->worker->engine->shares, peer->ip,
				   tables && cv_tables_workload_by_ip(tables, peer->ip));
}

static void free_seat(struct cv_job *job)
{
	struct cv_seat *seat = cv_container(job, struct cv_seat, job);

	cv_pod_release(seat->pod);
	free(seat);
}

void cv_seat_leave(struct cv_seat *seat, enum cv_reason reason)
{
	seat->gone = true;
	cv_seat_stop(seat);
	cv_list_each_safe (entry, &seat->conns)
		cv_conn_end(cv_container(entry, struct cv_conn, link), reason);
	cv_list_each_safe (entry, &seat->tunnels)
		cv_tunnel_cut(cv_container(entry, struct cv_tunnel, link), reason);
	cv_pool_clear(seat);
	cv_list_remove(&seat->link);
	cv_worker_bury(seat->worker, &seat->job, free_seat);
}
