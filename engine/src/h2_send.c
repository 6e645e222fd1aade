/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What leaves the nghttp2 session of a tunnel: frames into records, DATA without a copy, and how much at a time.
 */
#include <errno.h>
#include <string.h>

#include "h2.h"
#include "tunnel.h"

/* Ciphertext that waits for the socket: beyond it no DATA and no request is framed. */
enum {
	OUT_LIMIT = 256 * 1024,
	OUT_MOST = 2 * OUT_LIMIT, /* and beyond this nothing */
};

static size_t waiting(const struct cv_tunnel *tunnel)
{
	return tunnel->out.bytes + tunnel->staged;
}

/*
 * nghttp2 ends the connection of a peer that opens more streams than its session was told to announce; RFC 9113 5.1.2
 * lets us refuse the stream alone, which costs a peer that raced our SETTINGS one request and not everybody's tunnel.
 * So the session is told of no bound, and the bound is written into its SETTINGS as they leave: the first frame of a
 * server, with this entry first. on_begin_headers holds peers to it.
 */
static int announce(struct cv_tunnel *tunnel, const uint8_t *bytes, size_t length)
{
	uint8_t frame[9 + 6 * NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE];
	const uint8_t bound[] = {0, NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, 0, 0, 0, CV_H2_SERVER_STREAMS};

	if (length > sizeof(frame) || length < 9 + sizeof(bound) || bytes[3] != NGHTTP2_SETTINGS || bytes[4] ||
	    bytes[9 + 1] != NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS)
		return -EPROTO;
	memcpy(frame, bytes, length);
	memcpy(frame + 9, bound, sizeof(bound));
	tunnel->announced = true;
	return cv_tls_write(tunnel, frame, length);
}

/* A session that makes requests, and not one that is about to say GOAWAY or has heard it. */
static bool may_ask(nghttp2_session *session)
{
	return nghttp2_session_check_request_allowed(session);
}

/*
 * What nghttp2 says by itself leaves it at once, whether or not the peer reads: so does the GOAWAY that ends the tunnel
 * of a peer that broke a rule. A peer that makes us say so much and hears none of it is a flood.
 */
ssize_t cv_h2_on_send(nghttp2_session *session, const uint8_t *bytes, size_t length, int flags, void *user)
{
	struct cv_tunnel *tunnel = user;

	(void)flags;
	if (waiting(tunnel) >= OUT_LIMIT && bytes[3] == NGHTTP2_HEADERS && may_ask(session))
		return NGHTTP2_ERR_WOULDBLOCK;
	if (waiting(tunnel) >= OUT_MOST) {
		tunnel->violated = true;
		return NGHTTP2_ERR_CALLBACK_FAILURE;
	}
	if (tunnel->role == CV_ROLE_SERVER && !tunnel->announced)
		return announce(tunnel, bytes, length) ? NGHTTP2_ERR_CALLBACK_FAILURE : (ssize_t)length;
	return cv_tls_write(tunnel, bytes, length) ? NGHTTP2_ERR_CALLBACK_FAILURE : (ssize_t)length;
}

ssize_t cv_h2_on_read_length(nghttp2_session *session, uint8_t type, int32_t id, int32_t session_window,
			     int32_t stream_window, uint32_t max_frame, void *user)
{
	ssize_t length = CV_BUF_LARGE;

	(void)session;
	(void)type;
	(void)id;
	(void)user;
	/* To a peer with the default limit: one frame and its header fill one record. */
	if (max_frame < CV_BUF_LARGE)
		length = max_frame == CV_RECORD ? CV_RECORD - 9 : (ssize_t)max_frame;
	if (length > session_window)
		length = session_window;
	return length > stream_window ? stream_window : length;
}

ssize_t cv_h2_read(nghttp2_session *session, int32_t id, uint8_t *bytes, size_t length, uint32_t *flags,
		   nghttp2_data_source *source, void *user)
{
	struct cv_h2_stream *stream = source->ptr;

	(void)session;
	(void)id;
	(void)bytes;
	if (waiting(user) >= OUT_LIMIT)
		return NGHTTP2_ERR_PAUSE;
	if (stream->released || (!stream->out.bytes && !stream->finishing)) {
		stream->deferred = true;
		return NGHTTP2_ERR_DEFERRED;
	}
	*flags |= NGHTTP2_DATA_FLAG_NO_COPY;
	if (stream->finishing && stream->out.bytes <= length)
		*flags |= NGHTTP2_DATA_FLAG_EOF;
	return (ssize_t)(stream->out.bytes < length ? stream->out.bytes : length);
}

/* The header goes in front of the bytes, into headroom or over bytes that have left; else through the record. */
static int write_frame(struct cv_tunnel *tunnel, struct cv_queue *out, const uint8_t *header, size_t length)
{
	struct cv_buf *head = out->head;
	int error;

	if (length && cv_buf_length(head) >= length) {
		uint8_t *at = cv_buf_bytes(head) - 9;

		memcpy(at, header, 9);
		error = cv_tls_write(tunnel, at, length + 9);
		cv_queue_drop(out, &tunnel->worker->bufs, length);
		return error;
	}
	error = cv_tls_write(tunnel, header, 9);
	while (length && !error) {
		size_t n = cv_buf_length(out->head) < length ? cv_buf_length(out->head) : length;

		error = cv_tls_write(tunnel, cv_buf_bytes(out->head), n);
		cv_queue_drop(out, &tunnel->worker->bufs, n);
		length -= n;
	}
	return error;
}

int cv_h2_on_send_data(nghttp2_session *session, nghttp2_frame *frame, const uint8_t *header, size_t length,
		       nghttp2_data_source *source, void *user)
{
	struct cv_tunnel *tunnel = user;
	struct cv_h2_stream *stream = source->ptr;
	size_t held = stream->out.held;
	int error;

	(void)session;
	if (stream->released || stream->out.bytes < length)
		return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
	error = write_frame(tunnel, &stream->out, header, length);
	cv_figure_add(&tunnel->worker->figures.bytes_buffered, (int64_t)stream->out.held - (int64_t)held);
	if (error)
		return NGHTTP2_ERR_CALLBACK_FAILURE;
	if (length)
		cv_stream_took(&stream->stream, length);
	if (frame->hd.flags & NGHTTP2_FLAG_END_STREAM && stream->stream.relay)
		cv_stream_finished(&stream->stream);
	return 0;
}

int cv_h2_send(struct cv_tunnel *tunnel)
{
	/* A request that nghttp2 has begun with cannot be taken back. */
	if (waiting(tunnel) >= OUT_LIMIT && may_ask(tunnel->h2))
		return 0;
	return nghttp2_session_send(tunnel->h2) || cv_tls_flush(tunnel) ? -EPROTO : 0;
}
