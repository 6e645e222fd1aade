/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A CONNECT stream as a byte stream.
 *
 * Two parties know a stream: nghttp2 (until `closed`) and its owner, a connection or relay (until `released`); it is
 * freed when both have let go. Stream credit goes back when the application has taken the bytes, connection credit at
 * once while the tunnel's total is below its bound: one stalled reader stops itself and nobody else.
 *
 * After their END_STREAM a RST_STREAM is harmless: what they sent is delivered and ends cleanly. They just hear
 * nothing more, so what the application still sends is thrown away until it has its end, and then it is reset.
 */
#include <stdlib.h>

#include "engine.h"
#include "h2.h"
#include "tunnel.h"

static struct cv_h2_stream *from(struct cv_stream *stream)
{
	return cv_container(stream, struct cv_h2_stream, stream);
}

static void free_job(struct cv_job *job)
{
	struct cv_h2_stream *stream = cv_container(job, struct cv_h2_stream, job);

	free(stream->head);
	free(stream);
}

static void bury_if_done(struct cv_h2_stream *stream)
{
	if (!stream->closed || !stream->released)
		return;
	cv_list_remove(&stream->link);
	cv_worker_bury(stream->worker, &stream->job, free_job);
}

static void clear(struct cv_h2_stream *stream, struct cv_queue *queue)
{
	cv_figure_add(&stream->worker->figures.bytes_buffered, -(int64_t)queue->held);
	cv_queue_clear(queue, &stream->worker->bufs);
}

static bool has_credit(const struct cv_tunnel *tunnel)
{
	if (cv_engine_is_short(tunnel->worker))
		return tunnel->buffered < CV_ENGINE_LEAST_CREDIT;
	return tunnel->buffered < tunnel->worker->engine->settings.tunnel_buffer_bytes;
}

/* The tunnel may take `bytes` more; stream credit is the caller's matter. */
static void forget_buffered(struct cv_tunnel *tunnel, size_t bytes)
{
	tunnel->buffered -= bytes;
	if (!tunnel->owed || !has_credit(tunnel))
		return;
	(void)nghttp2_session_consume_connection(tunnel->h2, tunnel->owed);
	tunnel->owed = 0;
	cv_tunnel_wants_flush(tunnel);
}

void cv_h2_credit(struct cv_h2_stream *stream, size_t bytes)
{
	struct cv_tunnel *tunnel = stream->tunnel;

	if (!tunnel)
		return;
	stream->unread -= bytes;
	forget_buffered(tunnel, bytes);
	if (stream->closed || stream->remote_ended)
		return;
	(void)nghttp2_session_consume_stream(tunnel->h2, stream->id, bytes);
	if (nghttp2_session_want_write(tunnel->h2))
		cv_tunnel_wants_flush(tunnel);
}

static void release(struct cv_h2_stream *stream)
{
	if (stream->released)
		return;
	stream->released = true;
	clear(stream, &stream->out);
	clear(stream, &stream->early);
	if (stream->tunnel)
		cv_h2_credit(stream, stream->unread);
	bury_if_done(stream);
}

static void reset(struct cv_h2_stream *stream, uint32_t code)
{
	struct cv_tunnel *tunnel = stream->tunnel;

	if (tunnel && !stream->closed) {
		(void)nghttp2_submit_rst_stream(tunnel->h2, NGHTTP2_FLAG_NONE, stream->id, code);
		cv_tunnel_wants_flush(tunnel);
	}
	release(stream);
}

static void resume(struct cv_h2_stream *stream)
{
	if (stream->deferred) {
		stream->deferred = false;
		(void)nghttp2_session_resume_data(stream->tunnel->h2, stream->id);
	}
	cv_tunnel_wants_flush(stream->tunnel);
}

static void h2_start(struct cv_stream *base)
{
	struct cv_h2_stream *stream = from(base);

	while (stream->early.head && base->relay) {
		struct cv_buf *buf = stream->early.head;
		struct iovec vector = {.iov_base = cv_buf_bytes(buf), .iov_len = cv_buf_length(buf)};
		size_t held = stream->early.held;

		cv_stream_deliver_vector(base, &vector, 1, vector.iov_len);
		if (stream->released)
			return; /* and the queue is cleared */
		cv_queue_drop(&stream->early, &stream->worker->bufs, vector.iov_len);
		cv_figure_add(&stream->worker->figures.bytes_buffered, (int64_t)stream->early.held - (int64_t)held);
	}
	if (base->relay && stream->remote_ended && !base->ended)
		cv_stream_end(base);
}

/* Nobody hears us any more: bytes are dropped, and once the application has its end it is told by a reset. */
static void discard(struct cv_h2_stream *stream, size_t bytes)
{
	struct cv_stream *base = &stream->stream;
	struct cv_stream *other = cv_stream_other(base);

	base->queued -= bytes;
	if (!other->ops->is_delivered(other)) {
		other->ops->taken(other, bytes);
		return;
	}
	release(stream);
	cv_stream_lost(base, CV_REASON_RESET_UPSTREAM);
}

static void h2_put(struct cv_stream *base, struct cv_buf *buf)
{
	struct cv_h2_stream *stream = from(base);
	size_t held = stream->out.held;

	if (stream->closed) {
		size_t bytes = cv_buf_length(buf);

		cv_buf_put(&stream->worker->bufs, buf);
		discard(stream, bytes);
		return;
	}
	cv_queue_append(&stream->out, &stream->worker->bufs, buf);
	cv_figure_add(&stream->worker->figures.bytes_buffered, (int64_t)(stream->out.held - held));
	resume(stream);
}

static void h2_write(struct cv_stream *base, const struct iovec *vector, int count)
{
	struct cv_h2_stream *stream = from(base);
	size_t held = stream->out.held;
	size_t bytes = 0;
	int error = 0;

	for (int i = 0; i < count && !error; i++) {
		bytes += vector[i].iov_len;
		if (!stream->closed)
			error = cv_queue_copy(&stream->out, &stream->worker->bufs, vector[i].iov_base,
					      vector[i].iov_len);
	}
	cv_figure_add(&stream->worker->figures.bytes_buffered, (int64_t)(stream->out.held - held));
	if (error) {
		reset(stream, NGHTTP2_INTERNAL_ERROR);
		cv_stream_lost(base, CV_REASON_INTERNAL);
	} else if (stream->closed) {
		discard(stream, bytes);
	} else {
		resume(stream);
	}
}

static void h2_finish(struct cv_stream *base)
{
	struct cv_h2_stream *stream = from(base);

	stream->finishing = true;
	if (stream->closed)
		cv_stream_finished(base);
	else
		resume(stream);
}

static void h2_taken(struct cv_stream *base, size_t bytes)
{
	cv_h2_credit(from(base), bytes);
}

static bool h2_is_delivered(const struct cv_stream *base)
{
	return base->finished;
}

static void h2_abort(struct cv_stream *base)
{
	reset(from(base), NGHTTP2_CANCEL);
}

static void h2_close(struct cv_stream *base)
{
	release(from(base));
}

static const struct cv_stream_ops ops = {
	.start = h2_start,
	.put = h2_put,
	.write = h2_write,
	.finish = h2_finish,
	.taken = h2_taken,
	.is_delivered = h2_is_delivered,
	.abort = h2_abort,
	.close = h2_close,
};

struct cv_h2_stream *cv_h2_stream_create(struct cv_tunnel *tunnel, int32_t id)
{
	struct cv_h2_stream *stream = calloc(1, sizeof(*stream));

	if (!stream)
		return NULL;
	stream->stream.ops = &ops;
	stream->tunnel = tunnel;
	stream->worker = tunnel->worker;
	stream->id = id;
	cv_list_init(&stream->job.link);
	cv_list_append(&tunnel->streams, &stream->link);
	tunnel->stream_count++;
	return stream;
}

void cv_h2_violate(struct cv_h2_stream *stream)
{
	reset(stream, NGHTTP2_PROTOCOL_ERROR);
}

void cv_h2_stream_release(struct cv_h2_stream *stream)
{
	release(stream);
}

/* One write for all frames of a stream in what was decrypted; more than fits is handed on in between. */
void cv_h2_gather_flush(struct cv_tunnel *tunnel)
{
	struct cv_gather gather = tunnel->gather;

	tunnel->gather.stream = NULL;
	tunnel->gather.count = 0;
	tunnel->gather.bytes = 0;
	if (gather.stream && gather.stream->stream.relay)
		cv_stream_deliver_vector(&gather.stream->stream, gather.vector, gather.count, gather.bytes);
}

static void gather(struct cv_h2_stream *stream, const uint8_t *bytes, size_t length)
{
	struct cv_gather *into = &stream->tunnel->gather;

	if (into->stream != stream || into->count == CV_H2_VECTOR)
		cv_h2_gather_flush(stream->tunnel);
	into->stream = stream;
	into->vector[into->count].iov_base = (void *)bytes;
	into->vector[into->count].iov_len = length;
	into->count++;
	into->bytes += length;
}

static void keep_early(struct cv_h2_stream *stream, const uint8_t *bytes, size_t length)
{
	size_t held = stream->early.held;
	int error = cv_queue_copy(&stream->early, &stream->worker->bufs, bytes, length);

	cv_figure_add(&stream->worker->figures.bytes_buffered, (int64_t)(stream->early.held - held));
	if (error) {
		reset(stream, NGHTTP2_INTERNAL_ERROR);
		cv_stream_lost(&stream->stream, CV_REASON_INTERNAL);
	}
}

void cv_h2_stream_arrived(struct cv_h2_stream *stream, const uint8_t *bytes, size_t length)
{
	struct cv_tunnel *tunnel = stream->tunnel;

	tunnel->buffered += length;
	stream->unread += length;
	if (has_credit(tunnel))
		(void)nghttp2_session_consume_connection(tunnel->h2, length);
	else
		tunnel->owed += length;
	if (stream->released)
		cv_h2_credit(stream, length);
	else if (stream->stream.relay)
		gather(stream, bytes, length);
	else
		keep_early(stream, bytes, length);
}

void cv_h2_stream_remote_end(struct cv_h2_stream *stream)
{
	cv_h2_gather_flush(stream->tunnel);
	if (stream->remote_ended)
		return;
	stream->remote_ended = true;
	if (stream->stream.relay && !stream->early.bytes)
		cv_stream_end(&stream->stream);
}

static enum cv_reason reset_reason(const struct cv_h2_stream *stream, uint32_t error)
{
	/* Refused before it was looked at: as good as a tunnel that went away, and as safe to try again. */
	if (error == NGHTTP2_REFUSED_STREAM)
		return CV_REASON_TUNNEL_LOST;
	return stream->tunnel->role == CV_ROLE_CLIENT ? CV_REASON_RESET_UPSTREAM : CV_REASON_RESET_DOWNSTREAM;
}

static void lose(struct cv_h2_stream *stream, enum cv_reason reason)
{
	release(stream);
	cv_stream_lost(&stream->stream, reason);
}

/* They have ended and hear nothing more. What was queued for them counts as read, so that the reader goes on. */
static void deafen(struct cv_h2_stream *stream)
{
	size_t bytes = stream->out.bytes;

	clear(stream, &stream->out);
	if (!stream->stream.relay || stream->stream.finished)
		return;
	if (bytes)
		discard(stream, bytes);
	if (stream->stream.relay && stream->finishing)
		cv_stream_finished(&stream->stream);
}

void cv_h2_stream_closed(struct cv_h2_stream *stream, uint32_t error)
{
	struct cv_tunnel *tunnel = stream->tunnel;

	if (tunnel->gather.stream == stream)
		cv_h2_gather_flush(tunnel);
	stream->closed = true;
	tunnel->stream_count--;
	if (stream->released)
		bury_if_done(stream);
	else if (stream->remote_ended && stream->stream.relay)
		deafen(stream);
	else
		lose(stream, reset_reason(stream, error));
	cv_tunnel_stream_over(tunnel);
}

/*
 * The tunnel is going: what has ended on it drains by itself, the rest is lost. nghttp2 closes streams once more while
 * the GOAWAY leaves (a request that was queued and is sent no more, a reset that waited), which is then nobody's
 * matter.
 */
void cv_h2_lose_streams(struct cv_tunnel *tunnel, enum cv_reason reason, const char *detail)
{
	tunnel->gather.stream = NULL;
	cv_list_each_safe (entry, &tunnel->streams) {
		struct cv_h2_stream *stream = cv_container(entry, struct cv_h2_stream, link);
		bool is_complete = stream->closed && stream->remote_ended;

		cv_list_remove(&stream->link);
		(void)nghttp2_session_set_stream_user_data(tunnel->h2, stream->id, NULL);
		stream->tunnel = NULL;
		stream->detail = detail;
		stream->closed = true;
		if (stream->released)
			bury_if_done(stream);
		else if (!is_complete)
			lose(stream, reason);
	}
	tunnel->stream_count = 0;
}
