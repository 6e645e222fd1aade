/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The life of a tunnel: handshake, open, over. It begins in tunnel_open.c, and its bytes move in tunnel_io.c.
 *
 * It is over at once when the socket is dead, and otherwise after lingering: an alert or a GOAWAY that is followed
 * by a reset (which unread bytes provoke) would never be read. Streams are lost the moment it is over.
 */
#include "tunnel.h"

#include <stdlib.h>
#include <unistd.h>

#include "conn.h"
#include "engine.h"
#include "note.h"
#include "pool.h"
#include "proof.h"
#include "tcp.h"
#include "tunnel_io.h"

enum {
	LINGER_MS = 1000,
	DRAIN_NOTICE_MS = 200, /* between the two GOAWAYs: more than a round trip inside a cluster */
};

static const struct cv_settings *settings(const struct cv_tunnel *tunnel)
{
	return &tunnel->worker->engine->settings;
}

static void arm(struct cv_tunnel *tunnel, struct cv_timer *timer, uint32_t ms)
{
	cv_timer_arm(&tunnel->worker->timers, timer, tunnel->worker->now_ms + ms);
}

static void free_tunnel(struct cv_job *job)
{
	struct cv_tunnel *tunnel = cv_container(job, struct cv_tunnel, ready);

	nghttp2_session_del(tunnel->h2);
	cv_tls_deinit(tunnel);
	cv_identity_release(tunnel->identity);
	cv_text_release(tunnel->peer);
	free(tunnel);
}

static void grow_up(struct cv_tunnel *tunnel)
{
	if (!tunnel->handshaking)
		return;
	tunnel->handshaking = false;
	tunnel->worker->handshakes--;
	cv_share_give_back(&tunnel->worker->young_shares, tunnel->share);
	tunnel->seat->young_count--;
	cv_list_remove(&tunnel->young);
}

static void stop_counting(struct cv_tunnel *tunnel)
{
	grow_up(tunnel);
	if (!tunnel->counted)
		return;
	tunnel->counted = false;
	cv_figure_add(&tunnel->worker->figures.tunnels_closed[tunnel->role], 1);
	cv_figure_add(&tunnel->worker->figures.tunnels_open, -1);
}

void cv_tunnel_vanish(struct cv_tunnel *tunnel)
{
	struct cv_worker *worker = tunnel->worker;

	if (tunnel->state == CV_TUNNEL_GONE)
		return;
	tunnel->state = CV_TUNNEL_GONE;
	close(tunnel->fd);
	tunnel->fd = -1;
	cv_timer_cancel(&worker->timers, &tunnel->life);
	cv_timer_cancel(&worker->timers, &tunnel->idle);
	cv_proof_end(tunnel);
	cv_figure_add(&worker->figures.bytes_buffered, -(int64_t)tunnel->out.held);
	cv_queue_clear(&tunnel->out, &worker->bufs);
	cv_list_remove(&tunnel->link);
	cv_list_remove(&tunnel->flush.link);
	if (tunnel->share) {
		atomic_fetch_sub(&tunnel->seat->pod->tunnels, 1);
		cv_share_give_back(&tunnel->seat->pod->tunnel_shares, tunnel->share);
		cv_engine_give_back(worker->engine, tunnel->share);
	}
	cv_worker_bury(worker, &tunnel->ready, free_tunnel);
}

static void report(struct cv_tunnel *tunnel, enum cv_tunnel_state was, enum cv_reason reason, const char *detail)
{
	bool is_news = was != CV_TUNNEL_OPEN || reason == CV_REASON_PROTOCOL_ERROR;

	if (was == CV_TUNNEL_HANDSHAKE)
		cv_figure_add(&tunnel->worker->figures.handshakes_failed[tunnel->role], 1);
	if (tunnel->role == CV_ROLE_SERVER && is_news && reason != CV_REASON_OK)
		cv_conn_report(tunnel->seat, CV_DIR_INBOUND, &tunnel->remote, reason, detail);
}

/* Everybody who depends on it hears; what is left is a socket with perhaps some bytes to send. */
static void end(struct cv_tunnel *tunnel, enum cv_reason reason, const char *detail)
{
	enum cv_tunnel_state was = tunnel->state;

	tunnel->state = CV_TUNNEL_LINGERING;
	tunnel->retired = true;
	cv_proof_end(tunnel);
	stop_counting(tunnel);
	report(tunnel, was, reason, detail);
	cv_h2_lose_streams(tunnel, reason == CV_REASON_OK ? CV_REASON_TUNNEL_LOST : reason, detail);
	cv_pool_gone(tunnel, was == CV_TUNNEL_OPEN, reason, detail);
}

static bool is_over(const struct cv_tunnel *tunnel)
{
	return tunnel->state >= CV_TUNNEL_LINGERING;
}

static void linger(struct cv_tunnel *tunnel)
{
	cv_timer_cancel(&tunnel->worker->timers, &tunnel->idle);
	arm(tunnel, &tunnel->life, LINGER_MS);
	cv_tunnel_drain_output(tunnel);
}

void cv_tunnel_lost(struct cv_tunnel *tunnel, enum cv_reason reason, const char *detail)
{
	if (is_over(tunnel))
		return;
	end(tunnel, reason, detail);
	cv_tunnel_vanish(tunnel);
}

static void say_goodbye(struct cv_tunnel *tunnel, uint32_t code)
{
	if (tunnel->h2 && !tunnel->violated) {
		(void)nghttp2_session_terminate_session(tunnel->h2, code);
		(void)cv_h2_send(tunnel);
	}
	cv_tls_goodbye(tunnel);
}

void cv_tunnel_fail(struct cv_tunnel *tunnel, enum cv_reason reason, const char *detail)
{
	bool was_open = tunnel->state == CV_TUNNEL_OPEN;
	bool has_socket = tunnel->state != CV_TUNNEL_CONNECTING;

	if (is_over(tunnel))
		return;
	end(tunnel, reason, detail);
	if (!has_socket) {
		cv_tunnel_vanish(tunnel);
		return;
	}
	if (was_open)
		say_goodbye(tunnel, reason == CV_REASON_PROTOCOL_ERROR ? NGHTTP2_PROTOCOL_ERROR : NGHTTP2_NO_ERROR);
	linger(tunnel);
}

void cv_tunnel_cut(struct cv_tunnel *tunnel, enum cv_reason reason)
{
	cv_tunnel_fail(tunnel, reason, NULL);
	cv_tunnel_vanish(tunnel);
}

/* Before their SETTINGS: as many as they allowed on the last tunnel, and not more than the 100 that nghttp2 starts. */
static uint32_t streams_allowed(const struct cv_tunnel *tunnel)
{
	if (tunnel->proven)
		return nghttp2_session_get_remote_settings(tunnel->h2, NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS);
	return tunnel->pool->streams_allowed < 100 ? tunnel->pool->streams_allowed : 100;
}

bool cv_tunnel_has_room(const struct cv_tunnel *tunnel)
{
	uint32_t limit = settings(tunnel)->max_streams_per_tunnel;
	uint32_t theirs;

	if (tunnel->state != CV_TUNNEL_OPEN || tunnel->retired || !nghttp2_session_check_request_allowed(tunnel->h2))
		return false;
	theirs = streams_allowed(tunnel);
	return tunnel->stream_count + tunnel->withdrawn < (theirs < limit ? theirs : limit);
}

void cv_tunnel_retire(struct cv_tunnel *tunnel)
{
	bool is_news = !tunnel->retired;

	tunnel->retired = true;
	tunnel->closing = true;
	if (tunnel->state == CV_TUNNEL_OPEN)
		cv_tunnel_wants_flush(tunnel);
	if (is_news)
		cv_pool_retired(tunnel);
}

void cv_tunnel_drain(struct cv_tunnel *tunnel)
{
	if (tunnel->role == CV_ROLE_CLIENT) {
		cv_tunnel_retire(tunnel);
	} else if (tunnel->state == CV_TUNNEL_OPEN && !tunnel->draining) {
		tunnel->draining = true;
		(void)nghttp2_submit_shutdown_notice(tunnel->h2);
		cv_tunnel_wants_flush(tunnel);
		arm(tunnel, &tunnel->idle, DRAIN_NOTICE_MS);
	} else if (tunnel->state < CV_TUNNEL_OPEN) {
		tunnel->drain_when_open = true; /* the peer has connections that wait for it and gets them through */
	}
}

static void on_idle(struct cv_timer *timer)
{
	struct cv_tunnel *tunnel = cv_container(timer, struct cv_tunnel, idle);

	if (tunnel->role == CV_ROLE_CLIENT && tunnel->stream_count)
		return; /* in use again */
	if (tunnel->role == CV_ROLE_SERVER)
		(void)nghttp2_submit_goaway(tunnel->h2, NGHTTP2_FLAG_NONE,
					    nghttp2_session_get_last_proc_stream_id(tunnel->h2), NGHTTP2_NO_ERROR, NULL,
					    0);
	cv_tunnel_retire(tunnel);
}

static void check_alive(struct cv_tunnel *tunnel)
{
	uint64_t now = tunnel->worker->now_ms;
	const struct cv_settings *s = settings(tunnel);
	uint64_t silent = now - tunnel->heard_ms;

	if (tunnel->pinged_ms && tunnel->heard_ms > tunnel->pinged_ms)
		tunnel->pinged_ms = 0;
	if (tunnel->pinged_ms && now - tunnel->pinged_ms >= s->ping_timeout_ms) {
		cv_tunnel_fail(tunnel, CV_REASON_TUNNEL_LOST, "no answer to PING");
		return;
	}
	if (!tunnel->pinged_ms && silent >= s->ping_interval_ms) {
		tunnel->pinged_ms = now;
		(void)cv_h2_ping(tunnel);
		cv_tunnel_wants_flush(tunnel);
	}
	if (tunnel->pinged_ms)
		arm(tunnel, &tunnel->life, (uint32_t)(tunnel->pinged_ms + s->ping_timeout_ms - now));
	else
		arm(tunnel, &tunnel->life, (uint32_t)(s->ping_interval_ms - silent));
}

static void on_life(struct cv_timer *timer)
{
	struct cv_tunnel *tunnel = cv_container(timer, struct cv_tunnel, life);

	switch (tunnel->state) {
	case CV_TUNNEL_CONNECTING:
		cv_tunnel_fail(tunnel, CV_REASON_CONNECT_TIMEOUT, "the next hop does not answer on its HBONE port");
		break;
	case CV_TUNNEL_WAITING:
		cv_tunnel_fail(tunnel, CV_REASON_IDENTITY_UNAVAILABLE, "no certificate for the pod's identity in time");
		break;
	case CV_TUNNEL_HANDSHAKE:
		cv_tunnel_fail(tunnel, CV_REASON_HANDSHAKE_TIMEOUT, "the handshake took too long");
		break;
	case CV_TUNNEL_OPEN:
		check_alive(tunnel);
		break;
	default:
		cv_tunnel_vanish(tunnel);
	}
}

void cv_tunnel_start_handshake(struct cv_tunnel *tunnel)
{
	tunnel->identity = cv_identity_acquire(&tunnel->worker->engine->identities, tunnel->seat->pod->identity);
	if (!tunnel->identity) {
		/* Only a server waits here; a client's connection waits before it asks for a tunnel. */
		if (tunnel->state == CV_TUNNEL_CONNECTING) {
			cv_tunnel_fail(tunnel, CV_REASON_IDENTITY_UNAVAILABLE, NULL);
			return;
		}
		tunnel->state = CV_TUNNEL_WAITING;
		cv_conn_want_identity(tunnel->seat, tunnel->seat->pod->identity);
		arm(tunnel, &tunnel->life, settings(tunnel)->source_wait_ms);
		return;
	}
	tunnel->state = CV_TUNNEL_HANDSHAKE;
	arm(tunnel, &tunnel->life, settings(tunnel)->handshake_timeout_ms);
	if (cv_tls_init(tunnel))
		cv_tunnel_fail(tunnel, CV_REASON_LIMIT_DESCRIPTORS, "out of memory");
	else
		cv_tunnel_handshake(tunnel);
}

void cv_tunnel_retry_identity(struct cv_tunnel *tunnel)
{
	if (tunnel->state != CV_TUNNEL_WAITING)
		return;
	cv_tunnel_start_handshake(tunnel);
	/* What the peer has said meanwhile was announced once, and nobody read it. */
	if (tunnel->state == CV_TUNNEL_HANDSHAKE)
		cv_worker_ready(tunnel->worker, &tunnel->ready);
}

static void watch_idle(struct cv_tunnel *tunnel)
{
	if (tunnel->role == CV_ROLE_CLIENT && !tunnel->stream_count && settings(tunnel)->pool_idle_ms)
		arm(tunnel, &tunnel->idle, settings(tunnel)->pool_idle_ms);
}

void cv_tunnel_opened(struct cv_tunnel *tunnel)
{
	grow_up(tunnel);
	if (cv_h2_open(tunnel)) {
		cv_tunnel_fail(tunnel, CV_REASON_LIMIT_DESCRIPTORS, "out of memory");
		return;
	}
	tunnel->state = CV_TUNNEL_OPEN;
	tunnel->heard_ms = tunnel->worker->now_ms;
	tunnel->counted = true;
	cv_figure_add(&tunnel->worker->figures.tunnels_opened[tunnel->role], 1);
	cv_figure_add(&tunnel->worker->figures.tunnels_open, 1);
	cv_timer_cancel(&tunnel->worker->timers, &tunnel->life);
	if (settings(tunnel)->ping_interval_ms)
		arm(tunnel, &tunnel->life, settings(tunnel)->ping_interval_ms);
	cv_tunnel_wants_flush(tunnel);
	cv_proof_begin(tunnel);
	if (tunnel->pool)
		cv_pool_opened(tunnel);
	watch_idle(tunnel);
	if (tunnel->worker->draining || tunnel->drain_when_open)
		cv_tunnel_drain(tunnel);
}

void cv_tunnel_proved(struct cv_tunnel *tunnel)
{
	tunnel->proven = true;
	if (!tunnel->pool)
		return;
	tunnel->pool->streams_allowed = streams_allowed(tunnel);
	cv_h2_take_back(tunnel, tunnel->pool->streams_allowed);
	cv_pool_room(tunnel);
}

void cv_tunnel_stream_over(struct cv_tunnel *tunnel)
{
	cv_pool_room(tunnel);
	watch_idle(tunnel);
	if (tunnel->closing)
		cv_tunnel_wants_flush(tunnel);
}

void cv_tunnel_life_init(struct cv_tunnel *tunnel)
{
	tunnel->life.fire = on_life;
	tunnel->idle.fire = on_idle;
	cv_proof_init(tunnel);
	cv_list_init(&tunnel->link);
	cv_list_init(&tunnel->pooled);
	cv_list_init(&tunnel->young);
	cv_list_init(&tunnel->streams);
}
