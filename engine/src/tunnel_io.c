/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The bytes of a tunnel. One read of up to 128 KiB, decrypted into one run of plaintext, given to the session at
 * once; at the end of the turn all that the streams have is framed, encrypted and written with one send.
 */
#include "tunnel_io.h"

#include <errno.h>
#include <openssl/err.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "dial.h"
#include "engine.h"

enum { VECTOR = 16 };

/* Ciphertext to the socket. False: the socket is dead. */
static bool send_queued(struct cv_tunnel *tunnel)
{
	while (tunnel->out.bytes && tunnel->may_write) {
		struct iovec vector[VECTOR];
		struct msghdr message = {.msg_iov = vector};
		size_t held = tunnel->out.held;
		size_t bytes = 0;
		ssize_t n;

		message.msg_iovlen = (size_t)cv_queue_vector(&tunnel->out, vector, VECTOR);
		for (size_t i = 0; i < message.msg_iovlen; i++)
			bytes += vector[i].iov_len;
		n = sendmsg(tunnel->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n < 0 && errno != EAGAIN && errno != EINTR && errno != ENOBUFS && errno != ENOMEM)
			return false;
		if (n < (ssize_t)bytes)
			tunnel->may_write = false;
		if (n > 0)
			cv_queue_drop(&tunnel->out, &tunnel->worker->bufs, (size_t)n);
		cv_figure_add(&tunnel->worker->figures.bytes_buffered, (int64_t)tunnel->out.held - (int64_t)held);
	}
	return true;
}

void cv_tunnel_drain_output(struct cv_tunnel *tunnel)
{
	if (!send_queued(tunnel))
		cv_tunnel_vanish(tunnel);
	else if (!tunnel->out.bytes && shutdown(tunnel->fd, SHUT_WR) < 0)
		cv_tunnel_vanish(tunnel);
}

static const char *fault(const struct cv_tunnel *tunnel)
{
	return tunnel->violated ? "a violation of HTTP/2, or a flood of frames" : "cannot frame or encrypt";
}

/* After everything queued has been framed: is there a reason to go on? */
static void end_if_done(struct cv_tunnel *tunnel)
{
	if (tunnel->closing && !tunnel->stream_count && !tunnel->out.bytes && !nghttp2_session_want_write(tunnel->h2))
		cv_tunnel_fail(tunnel, CV_REASON_OK, NULL);
	else if (!nghttp2_session_want_read(tunnel->h2) && !nghttp2_session_want_write(tunnel->h2))
		cv_tunnel_fail(tunnel, CV_REASON_OK, NULL);
}

static void flush_open(struct cv_tunnel *tunnel)
{
	for (int share = 0; share < CV_WORKER_SHARE; share++) {
		bool failed = cv_h2_send(tunnel);

		/* Not after the peer has read it: it has until the end of lingering, whatever it sends meanwhile. */
		if (failed || tunnel->violated) {
			cv_tunnel_fail(tunnel, CV_REASON_PROTOCOL_ERROR, fault(tunnel));
			return;
		}
		if (!tunnel->out.bytes) {
			end_if_done(tunnel);
			return;
		}
		if (!send_queued(tunnel)) {
			cv_tunnel_lost(tunnel, CV_REASON_TUNNEL_LOST, "the peer reset the tunnel");
			return;
		}
		if (!tunnel->may_write)
			return; /* the kernel says when to go on */
	}
	cv_worker_ready(tunnel->worker, &tunnel->ready);
}

static void on_flush(struct cv_job *job)
{
	struct cv_tunnel *tunnel = cv_container(job, struct cv_tunnel, flush);

	if (tunnel->state == CV_TUNNEL_OPEN)
		flush_open(tunnel);
	else if (tunnel->state == CV_TUNNEL_HANDSHAKE && !send_queued(tunnel))
		cv_tunnel_lost(tunnel, CV_REASON_TLS_FAILED, "reset during the handshake");
	else if (tunnel->state == CV_TUNNEL_LINGERING && tunnel->out.bytes)
		cv_tunnel_drain_output(tunnel);
}

void cv_tunnel_handshake(struct cv_tunnel *tunnel)
{
	enum cv_tls_progress progress = cv_tls_handshake(tunnel);
	const char *detail;
	enum cv_reason reason;

	if (progress == CV_TLS_DONE) {
		cv_tunnel_opened(tunnel);
	} else if (progress == CV_TLS_FAILED) {
		reason = cv_tls_reason(tunnel, &detail);
		cv_tunnel_fail(tunnel, reason, detail);
	} else {
		cv_tunnel_wants_flush(tunnel);
	}
}

/* Why reading plaintext broke off. */
static void end_of_plaintext(struct cv_tunnel *tunnel)
{
	const char *detail;

	if (tunnel->closed_cleanly) {
		cv_tunnel_fail(tunnel, CV_REASON_TUNNEL_LOST, "the peer closed the tunnel");
		return;
	}
	/* A server's verdict on our certificate comes after our side of the handshake is done. */
	if (!tunnel->proven && tunnel->role == CV_ROLE_CLIENT) {
		(void)cv_tls_reason(tunnel, &detail);
		cv_tunnel_fail(tunnel, CV_REASON_TLS_FAILED, detail);
		return;
	}
	(void)cv_tls_reason(tunnel, &detail);
	cv_tunnel_fail(tunnel, CV_REASON_PROTOCOL_ERROR, detail);
}

/* Decrypts the current read. Several records become one run before the session sees them. */
static void decrypt(struct cv_tunnel *tunnel)
{
	while (tunnel->state == CV_TUNNEL_OPEN) {
		uint8_t *plain = tunnel->worker->plain;
		size_t length = 0;
		ssize_t n = 0;

		while (CV_WORKER_READ - length >= CV_RECORD &&
		       (n = cv_tls_read(tunnel, plain + length, CV_WORKER_READ - length)) > 0)
			length += (size_t)n;
		if (length && cv_h2_receive(tunnel, plain, length)) {
			cv_tunnel_fail(tunnel, CV_REASON_PROTOCOL_ERROR, "a violation of HTTP/2");
			return;
		}
		if (n < 0)
			end_of_plaintext(tunnel);
		if (n <= 0)
			break;
	}
	if (tunnel->state == CV_TUNNEL_OPEN)
		cv_tunnel_wants_flush(tunnel);
}

static void consume(struct cv_tunnel *tunnel)
{
	if (tunnel->state == CV_TUNNEL_HANDSHAKE)
		cv_tunnel_handshake(tunnel);
	if (tunnel->state == CV_TUNNEL_OPEN)
		decrypt(tunnel);
}

static void end_of_ciphertext(struct cv_tunnel *tunnel, int error)
{
	bool is_handshake = tunnel->state == CV_TUNNEL_HANDSHAKE;

	if (tunnel->state == CV_TUNNEL_LINGERING || tunnel->state == CV_TUNNEL_GONE)
		cv_tunnel_vanish(tunnel);
	else if (is_handshake || (!tunnel->proven && tunnel->role == CV_ROLE_CLIENT))
		cv_tunnel_lost(tunnel, CV_REASON_TLS_FAILED, "the connection ended during the handshake");
	else
		cv_tunnel_lost(tunnel, CV_REASON_TUNNEL_LOST,
			       error ? "the peer reset the tunnel" : "the peer closed the tunnel");
}

/* One read. False: nothing more now, or the tunnel is over. */
static bool read_once(struct cv_tunnel *tunnel)
{
	ssize_t n = recv(tunnel->fd, tunnel->worker->cipher, CV_WORKER_READ, MSG_DONTWAIT);

	if (n <= 0) {
		int error = n < 0 ? errno : 0;

		if (error == EINTR)
			return true;
		tunnel->may_read = false;
		if (error != EAGAIN)
			end_of_ciphertext(tunnel, error);
		return false;
	}
	if (n < CV_WORKER_READ && !tunnel->hung_up)
		tunnel->may_read = false;
	tunnel->heard_ms = tunnel->worker->now_ms;
	tunnel->in = tunnel->worker->cipher;
	tunnel->in_length = (size_t)n;
	consume(tunnel);
	tunnel->in_length = 0;
	return tunnel->state != CV_TUNNEL_GONE && tunnel->may_read;
}

static void pump(struct cv_tunnel *tunnel)
{
	/* Before the pod has its certificate, what the peer says waits in the kernel. */
	if (tunnel->state == CV_TUNNEL_WAITING)
		return;
	for (int share = 0; tunnel->may_read && tunnel->fd >= 0; share++) {
		if (share == CV_WORKER_SHARE) {
			cv_worker_ready(tunnel->worker, &tunnel->ready);
			return;
		}
		if (!read_once(tunnel))
			return;
	}
}

static void on_ready(struct cv_job *job)
{
	struct cv_tunnel *tunnel = cv_container(job, struct cv_tunnel, ready);

	pump(tunnel);
	if (tunnel->state < CV_TUNNEL_GONE && tunnel->may_write)
		cv_tunnel_wants_flush(tunnel);
}

static void finish_connect(struct cv_tunnel *tunnel)
{
	int error = 0;
	socklen_t length = sizeof(error);
	struct sockaddr_storage local;
	socklen_t local_length = sizeof(local);

	if (getsockopt(tunnel->fd, SOL_SOCKET, SO_ERROR, &error, &length) < 0)
		error = errno;
	if (error) {
		cv_tunnel_lost(tunnel, cv_dial_reason(-error), NULL);
		return;
	}
	if (!getsockname(tunnel->fd, (struct sockaddr *)&local, &local_length))
		(void)cv_endpoint_from_sockaddr(&local, &tunnel->local);
	tunnel->may_write = true;
	cv_tunnel_start_handshake(tunnel);
}

static void on_event(struct cv_watch *watch, uint32_t events)
{
	struct cv_tunnel *tunnel = cv_container(watch, struct cv_tunnel, watch);

	cv_wait_served(&tunnel->worker->wait, CV_SERVED_TUNNEL);
	if (tunnel->state == CV_TUNNEL_GONE)
		return;
	if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
		tunnel->may_read = true;
	if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
		tunnel->hung_up = true;
	if (tunnel->state == CV_TUNNEL_CONNECTING) {
		if (events & (EPOLLOUT | EPOLLHUP | EPOLLERR))
			finish_connect(tunnel);
		return;
	}
	if (events & (EPOLLOUT | EPOLLERR)) {
		tunnel->may_write = true;
		cv_tunnel_wants_flush(tunnel);
	}
	if (tunnel->state == CV_TUNNEL_WAITING && events & EPOLLERR)
		cv_tunnel_lost(tunnel, CV_REASON_TLS_FAILED, "reset before the handshake");
	pump(tunnel);
}

void cv_tunnel_io_init(struct cv_tunnel *tunnel)
{
	tunnel->watch.on = on_event;
	tunnel->ready.run = on_ready;
	tunnel->flush.run = on_flush;
	cv_list_init(&tunnel->ready.link);
	cv_list_init(&tunnel->flush.link);
}
