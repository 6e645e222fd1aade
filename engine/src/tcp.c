/* SPDX-License-Identifier: Apache-2.0 */
/*
 * TCP sockets as streams.
 *
 * Readiness is remembered (`may_read`, `may_write`) and only the kernel's edges set it again: a short read means that
 * the socket is empty, a short write that it is full, so a message costs one read and one write. An end that the
 * kernel has announced (EPOLLRDHUP, EPOLLERR) comes without another edge, so from then on only EAGAIN means empty.
 */
#include "tcp.h"

#include <errno.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "engine.h"

enum { VECTOR = 16 };

static void set_option(int fd, int level, int name, int value)
{
	/* Each is a refinement; a kernel that refuses one still carries bytes. */
	(void)setsockopt(fd, level, name, &value, sizeof(value));
}

void cv_tcp_configure(int fd, uint32_t keepalive_s)
{
	set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
	if (!keepalive_s)
		return;
	set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
	set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, (int)keepalive_s);
	set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, (int)keepalive_s);
}

void cv_tcp_reset(int fd)
{
	struct linger linger = {.l_onoff = 1, .l_linger = 0};

	(void)setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
	close(fd);
}

static void free_tcp(struct cv_job *job)
{
	free(cv_container(job, struct cv_tcp, job));
}

static void release(struct cv_tcp *tcp, bool reset)
{
	if (tcp->fd < 0)
		return;
	if (reset)
		cv_tcp_reset(tcp->fd);
	else
		close(tcp->fd);
	tcp->fd = -1;
	cv_figure_add(&tcp->worker->figures.bytes_buffered, -(int64_t)tcp->out.held);
	cv_queue_clear(&tcp->out, &tcp->worker->bufs);
	cv_worker_bury(tcp->worker, &tcp->job, free_tcp);
}

static void fail(struct cv_tcp *tcp)
{
	if (tcp->fd < 0)
		return;
	release(tcp, true);
	cv_stream_lost(&tcp->stream, tcp->upstream ? CV_REASON_RESET_UPSTREAM : CV_REASON_RESET_DOWNSTREAM);
}

/* Sends; the number of bytes that the kernel took, -1 when the connection is gone. */
static ssize_t send_vector(struct cv_tcp *tcp, struct iovec *vector, int count, size_t bytes)
{
	struct msghdr message = {.msg_iov = vector, .msg_iovlen = (size_t)count};
	ssize_t n = sendmsg(tcp->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);

	if (n < 0) {
		if (errno != EAGAIN && errno != EINTR && errno != ENOBUFS && errno != ENOMEM)
			return -1;
		n = 0;
	}
	if ((size_t)n < bytes)
		tcp->may_write = false;
	return n;
}

static void finish_if_empty(struct cv_tcp *tcp)
{
	if (!tcp->finishing || tcp->out.bytes || tcp->stream.finished)
		return;
	/* The last end of the relay to finish: the close that follows says it too. */
	if (!cv_stream_is_last(&tcp->stream) && shutdown(tcp->fd, SHUT_WR) < 0 && errno != ENOTCONN) {
		fail(tcp);
		return;
	}
	cv_stream_finished(&tcp->stream);
}

static void flush(struct cv_tcp *tcp)
{
	for (int share = 0; share < CV_WORKER_SHARE && tcp->out.bytes && tcp->may_write; share++) {
		struct iovec vector[VECTOR];
		int count = cv_queue_vector(&tcp->out, vector, VECTOR);
		size_t held = tcp->out.held;
		size_t bytes = 0;
		ssize_t n;

		for (int i = 0; i < count; i++)
			bytes += vector[i].iov_len;
		n = send_vector(tcp, vector, count, bytes);
		if (n < 0) {
			fail(tcp);
			return;
		}
		cv_queue_drop(&tcp->out, &tcp->worker->bufs, (size_t)n);
		cv_figure_add(&tcp->worker->figures.bytes_buffered, (int64_t)tcp->out.held - (int64_t)held);
		if (n)
			cv_stream_took(&tcp->stream, (size_t)n);
		if (tcp->fd < 0)
			return;
	}
	if (tcp->out.bytes && tcp->may_write)
		cv_worker_ready(tcp->worker, &tcp->job);
	finish_if_empty(tcp);
}

/* A worker that is short reads a stream again when all of it was taken, and then little. */
static bool is_paused(const struct cv_tcp *tcp)
{
	const struct cv_settings *settings = &tcp->worker->engine->settings;

	return cv_stream_other(&tcp->stream)->queued >=
	       (cv_engine_is_short(tcp->worker) ? 1 : settings->stream_buffer_bytes);
}

/* One read. False: nothing more now, or the stream is gone. */
static bool read_once(struct cv_tcp *tcp)
{
	struct cv_buf *buf =
		cv_buf_get(&tcp->worker->bufs, cv_engine_is_short(tcp->worker) ? CV_ENGINE_LEAST_READ : CV_BUF_LARGE);
	ssize_t n;

	if (!buf) {
		fail(tcp);
		return false;
	}
	n = recv(tcp->fd, buf->data + buf->end, buf->capacity, MSG_DONTWAIT);
	if (n <= 0) {
		int error = n < 0 ? errno : 0;

		cv_buf_put(&tcp->worker->bufs, buf);
		if (error == EINTR)
			return true;
		tcp->may_read = false;
		if (!n)
			cv_stream_end(&tcp->stream);
		else if (error != EAGAIN)
			fail(tcp);
		return false;
	}
	if ((size_t)n < buf->capacity && !tcp->hung_up)
		tcp->may_read = false;
	buf->end += (uint32_t)n;
	cv_stream_deliver(&tcp->stream, buf);
	return tcp->fd >= 0 && tcp->may_read;
}

static void pump(struct cv_tcp *tcp)
{
	int share = 0;

	while (tcp->fd >= 0 && tcp->stream.relay && tcp->may_read && !tcp->stream.ended && !is_paused(tcp)) {
		if (share++ == CV_WORKER_SHARE) {
			cv_worker_ready(tcp->worker, &tcp->job);
			return;
		}
		if (!read_once(tcp))
			return;
	}
}

static void serve(struct cv_tcp *tcp)
{
	if (tcp->out.bytes && tcp->may_write)
		flush(tcp);
	if (tcp->fd >= 0)
		pump(tcp);
}

static void on_ready(struct cv_job *job)
{
	serve(cv_container(job, struct cv_tcp, job));
}

static void finish_connect(struct cv_tcp *tcp, uint32_t events)
{
	int error = 0;
	socklen_t length = sizeof(error);

	tcp->connecting = false;
	tcp->may_write = true;
	/* Without an error event there is none: the question costs as much as the answer is worth. */
	if (events & (EPOLLERR | EPOLLHUP) && getsockopt(tcp->fd, SOL_SOCKET, SO_ERROR, &error, &length) < 0)
		error = errno;
	tcp->connected(tcp, -error);
}

static void on_event(struct cv_watch *watch, uint32_t events)
{
	struct cv_tcp *tcp = cv_container(watch, struct cv_tcp, watch);

	cv_wait_served(&tcp->worker->wait, CV_SERVED_APPLICATION);
	if (tcp->fd < 0)
		return;
	if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
		tcp->may_read = true;
	if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
		tcp->hung_up = true;
	if (tcp->connecting) {
		if (events & (EPOLLOUT | EPOLLHUP | EPOLLERR))
			finish_connect(tcp, events);
		return;
	}
	if (events & (EPOLLOUT | EPOLLERR))
		tcp->may_write = true;
	if (tcp->started)
		serve(tcp);
	else if (events & EPOLLERR)
		fail(tcp);
	/* An error that reading did not meet (both directions may be over already, or reading is paused). */
	if (tcp->fd >= 0 && tcp->started && (events & EPOLLERR) && (tcp->stream.ended || is_paused(tcp)))
		fail(tcp);
}

static void tcp_start(struct cv_stream *stream)
{
	struct cv_tcp *tcp = cv_container(stream, struct cv_tcp, stream);

	tcp->started = true;
	pump(tcp);
}

static void queue_rest(struct cv_tcp *tcp, struct cv_buf *buf, size_t held)
{
	cv_queue_append(&tcp->out, &tcp->worker->bufs, buf);
	cv_figure_add(&tcp->worker->figures.bytes_buffered, (int64_t)(tcp->out.held - held));
}

static void tcp_put(struct cv_stream *stream, struct cv_buf *buf)
{
	struct cv_tcp *tcp = cv_container(stream, struct cv_tcp, stream);
	struct iovec vector = {.iov_base = cv_buf_bytes(buf), .iov_len = cv_buf_length(buf)};
	ssize_t n = 0;

	if (!tcp->out.bytes && tcp->may_write)
		n = send_vector(tcp, &vector, 1, vector.iov_len);
	if (n < 0 || (size_t)n == vector.iov_len)
		cv_buf_put(&tcp->worker->bufs, buf);
	if (n < 0) {
		fail(tcp);
		return;
	}
	if ((size_t)n < vector.iov_len) {
		buf->start += (uint32_t)n;
		queue_rest(tcp, buf, tcp->out.held);
	}
	if (n)
		cv_stream_took(stream, (size_t)n);
}

static size_t vector_bytes(const struct iovec *vector, int count)
{
	size_t bytes = 0;

	for (int i = 0; i < count; i++)
		bytes += vector[i].iov_len;
	return bytes;
}

static int copy_rest(struct cv_tcp *tcp, const struct iovec *vector, int count, size_t skip)
{
	size_t held = tcp->out.held;
	int error = 0;

	for (int i = 0; i < count && !error; i++) {
		size_t from = skip < vector[i].iov_len ? skip : vector[i].iov_len;

		skip -= from;
		error = cv_queue_copy(&tcp->out, &tcp->worker->bufs, (const uint8_t *)vector[i].iov_base + from,
				      vector[i].iov_len - from);
	}
	cv_figure_add(&tcp->worker->figures.bytes_buffered, (int64_t)(tcp->out.held - held));
	return error;
}

static void tcp_write(struct cv_stream *stream, const struct iovec *vector, int count)
{
	struct cv_tcp *tcp = cv_container(stream, struct cv_tcp, stream);
	size_t bytes = vector_bytes(vector, count);
	ssize_t n = 0;

	if (!tcp->out.bytes && tcp->may_write)
		n = send_vector(tcp, (struct iovec *)vector, count, bytes);
	if (n < 0 || ((size_t)n < bytes && copy_rest(tcp, vector, count, (size_t)n))) {
		fail(tcp);
		return;
	}
	if (n)
		cv_stream_took(stream, (size_t)n);
}

static void tcp_finish(struct cv_stream *stream)
{
	struct cv_tcp *tcp = cv_container(stream, struct cv_tcp, stream);

	tcp->finishing = true;
	finish_if_empty(tcp);
}

static void tcp_taken(struct cv_stream *stream, size_t bytes)
{
	struct cv_tcp *tcp = cv_container(stream, struct cv_tcp, stream);

	(void)bytes;
	if (tcp->may_read && !stream->ended && !is_paused(tcp))
		cv_worker_ready(tcp->worker, &tcp->job);
}

/* The kernel's queue is empty, which includes our FIN: a reset takes nothing from the reader any more. */
static bool tcp_is_delivered(const struct cv_stream *stream)
{
	const struct cv_tcp *tcp = cv_container(stream, const struct cv_tcp, stream);
	int unacknowledged = 0;

	return stream->finished && (ioctl(tcp->fd, SIOCOUTQ, &unacknowledged) < 0 || !unacknowledged);
}

static void tcp_abort(struct cv_stream *stream)
{
	release(cv_container(stream, struct cv_tcp, stream), true);
}

static void tcp_close(struct cv_stream *stream)
{
	release(cv_container(stream, struct cv_tcp, stream), false);
}

static const struct cv_stream_ops ops = {
	.start = tcp_start,
	.put = tcp_put,
	.write = tcp_write,
	.finish = tcp_finish,
	.taken = tcp_taken,
	.is_delivered = tcp_is_delivered,
	.abort = tcp_abort,
	.close = tcp_close,
};

void cv_tcp_abort(struct cv_tcp *tcp)
{
	release(tcp, true);
}

int cv_tcp_create(struct cv_worker *worker, int fd, bool connecting, struct cv_tcp **ret)
{
	struct cv_tcp *tcp = calloc(1, sizeof(*tcp));
	int error = tcp ? 0 : -ENOMEM;

	if (tcp) {
		tcp->stream.ops = &ops;
		tcp->watch.on = on_event;
		tcp->job.run = on_ready;
		tcp->worker = worker;
		tcp->fd = fd;
		tcp->connecting = connecting;
		tcp->may_write = !connecting;
		cv_list_init(&tcp->job.link);
		error = cv_worker_watch(worker, fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, &tcp->watch);
	}
	if (error) {
		free(tcp);
		cv_tcp_reset(fd);
		return error;
	}
	*ret = tcp;
	return 0;
}
