/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The nghttp2 session of a tunnel: what it is told at the start, and what it calls back about what arrives. What leaves
 * it stands in h2_send.c.
 *
 * nghttp2 frames and counts windows; it gets no auto window update (credit follows the applications), no message
 * checks (h2_head.c), and DATA goes out without a copy. Its functions that work (mem_recv, send) are only called from
 * the tunnel's own turn, never from a callback; those that queue are called from anywhere.
 */
#include "h2.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "conn.h"
#include "engine.h"
#include "inbound.h"
#include "note.h"
#include "tunnel.h"

enum {
	NGHTTP2_STREAMS = 0x7fffffff, /* what nghttp2 believes that we allow, see announce */
	CLIENT_HEAD = 16 * 1024,      /* header lists that we accept */
	SERVER_HEAD = 64 * 1024,
	GUARD_TOKENS = 4096,           /* frames that carry nothing, in a burst */
	GUARD_PER_S = 512,             /* and in the long run */
	GUARD_HEAD_BYTES = 256 * 1024, /* CONTINUATION without end */
};

static uint32_t head_limit(const struct cv_tunnel *tunnel)
{
	return tunnel->role == CV_ROLE_SERVER ? SERVER_HEAD : CLIENT_HEAD;
}

/* A frame that carries nothing. Too many of them end the tunnel. */
static int spend(struct cv_tunnel *tunnel)
{
	struct cv_guard *guard = &tunnel->guard;
	uint64_t now = tunnel->worker->now_ms;
	uint64_t refill = (now - guard->refilled_ms) * GUARD_PER_S / 1000;

	if (refill) {
		guard->refilled_ms = now;
		guard->tokens = refill + (uint64_t)guard->tokens > GUARD_TOKENS ? GUARD_TOKENS
										: guard->tokens + (int32_t)refill;
	}
	if (--guard->tokens >= 0)
		return 0;
	guard->tokens = 0;
	return nghttp2_session_terminate_session(tunnel->h2, NGHTTP2_ENHANCE_YOUR_CALM);
}

static struct cv_h2_stream *stream_of(nghttp2_session *session, int32_t id)
{
	return id ? nghttp2_session_get_stream_user_data(session, id) : NULL;
}

/* A peer that goes on without minding is a flood. */
static int refuse_excess(struct cv_tunnel *tunnel, int32_t id)
{
	cv_conn_report(tunnel->seat, CV_DIR_INBOUND, &tunnel->remote, CV_REASON_LIMIT_STREAMS,
		       "more streams at a time than were offered");
	if (nghttp2_submit_rst_stream(tunnel->h2, NGHTTP2_FLAG_NONE, id, NGHTTP2_REFUSED_STREAM))
		return NGHTTP2_ERR_CALLBACK_FAILURE;
	return spend(tunnel) ? NGHTTP2_ERR_CALLBACK_FAILURE : 0;
}

static int on_begin_headers(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
	struct cv_tunnel *tunnel = user;
	struct cv_h2_stream *stream;

	if (frame->hd.type != NGHTTP2_HEADERS)
		return 0;
	tunnel->guard.in_head = true;
	if (frame->headers.cat == NGHTTP2_HCAT_REQUEST) {
		if (tunnel->stream_count >= CV_H2_SERVER_STREAMS)
			return refuse_excess(tunnel, frame->hd.stream_id);
		stream = cv_h2_stream_create(tunnel, frame->hd.stream_id);
		if (!stream)
			return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
		stream->stream.lost = NULL;
		nghttp2_session_set_stream_user_data(session, frame->hd.stream_id, stream);
	} else {
		stream = stream_of(session, frame->hd.stream_id);
	}
	if (!stream || stream->answer_seen || stream->released || stream->head)
		return 0;
	stream->head = calloc(1, sizeof(*stream->head));
	return stream->head ? 0 : NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
}

static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name, size_t name_length,
		     const uint8_t *value, size_t value_length, uint8_t flags, void *user)
{
	struct cv_h2_stream *stream = stream_of(session, frame->hd.stream_id);
	const struct cv_tunnel *tunnel = user;
	/* Trailers may come while a request waits to be judged: it stays as it was checked. */
	bool is_trailer = tunnel->role == CV_ROLE_SERVER && frame->headers.cat != NGHTTP2_HCAT_REQUEST;

	(void)flags;
	if (stream && stream->head && !stream->answer_seen && !is_trailer)
		cv_head_field(stream->head, name, name_length, value, value_length, head_limit(tunnel));
	return 0;
}

/* A request is whole. Its header fields live until it has been answered. */
static void on_request(struct cv_h2_stream *stream, bool is_end)
{
	stream->remote_ended = is_end;
	cv_inbound_request(stream);
}

static void on_answer(struct cv_h2_stream *stream, bool is_end)
{
	struct cv_head head = *stream->head;

	cv_h2_drop_head(stream);
	if (!head.malformed && head.has_status && head.status < 200 && head.status >= 100 && !is_end)
		return; /* interim: the answer follows */
	stream->answer_seen = true;
	stream->remote_ended = is_end;
	if (head.malformed || head.too_large || !head.has_status) {
		cv_h2_violate(stream);
		cv_stream_lost(&stream->stream, CV_REASON_PROTOCOL_ERROR);
		return;
	}
	stream->answered(stream, head.status);
}

static void on_headers(struct cv_tunnel *tunnel, struct cv_h2_stream *stream, const nghttp2_frame *frame)
{
	bool is_end = frame->hd.flags & NGHTTP2_FLAG_END_STREAM;

	if (!stream || stream->released)
		return;
	if (frame->headers.cat == NGHTTP2_HCAT_REQUEST && stream->head) {
		on_request(stream, is_end);
	} else if (tunnel->role == CV_ROLE_CLIENT && !stream->answer_seen && stream->head) {
		on_answer(stream, is_end);
	} else if (is_end) {
		cv_h2_stream_remote_end(stream); /* trailers: they end the stream, their content means nothing to us */
	} else {
		cv_h2_violate(stream);
		cv_stream_lost(&stream->stream, CV_REASON_PROTOCOL_ERROR);
	}
}

static int on_frame(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
	struct cv_tunnel *tunnel = user;
	struct cv_h2_stream *stream = stream_of(session, frame->hd.stream_id);
	bool is_ack = frame->hd.flags & NGHTTP2_FLAG_ACK;

	switch (frame->hd.type) {
	case NGHTTP2_HEADERS:
		tunnel->guard.in_head = false;
		on_headers(tunnel, stream, frame);
		return 0;
	case NGHTTP2_DATA:
		if (frame->hd.flags & NGHTTP2_FLAG_END_STREAM) {
			if (stream && !stream->released)
				cv_h2_stream_remote_end(stream);
			return 0;
		}
		return frame->hd.length ? 0 : spend(tunnel);
	case NGHTTP2_PING:
		if (is_ack)
			tunnel->pinged_ms = 0;
		return is_ack ? 0 : spend(tunnel);
	case NGHTTP2_SETTINGS:
		if (!is_ack)
			cv_tunnel_proved(tunnel);
		return is_ack ? 0 : spend(tunnel);
	case NGHTTP2_GOAWAY:
		cv_tunnel_retire(tunnel);
		return 0;
	case NGHTTP2_RST_STREAM:
		/* Opened, and reset before it could cost them anything. */
		return tunnel->role == CV_ROLE_SERVER && stream && !stream->stream.relay ? spend(tunnel) : 0;
	case NGHTTP2_WINDOW_UPDATE:
		return 0;
	default:
		return spend(tunnel);
	}
}

static int on_data(nghttp2_session *session, uint8_t flags, int32_t id, const uint8_t *bytes, size_t length, void *user)
{
	struct cv_h2_stream *stream = stream_of(session, id);

	(void)flags;
	(void)user;
	if (stream)
		cv_h2_stream_arrived(stream, bytes, length);
	else
		(void)nghttp2_session_consume(session, id, length);
	return 0;
}

static int on_stream_close(nghttp2_session *session, int32_t id, uint32_t error, void *user)
{
	struct cv_h2_stream *stream = stream_of(session, id);
	struct cv_tunnel *tunnel = user;

	if (stream) {
		nghttp2_session_set_stream_user_data(session, id, NULL);
		cv_h2_stream_closed(stream, error);
	} else if (tunnel->withdrawn) {
		tunnel->withdrawn--;
		cv_tunnel_stream_over(tunnel);
	}
	return 0;
}

static int on_sent(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
	struct cv_tunnel *tunnel = user;
	struct cv_h2_stream *stream = stream_of(session, frame->hd.stream_id);

	if (frame->hd.type == NGHTTP2_HEADERS && stream && stream->refused && !stream->remote_ended)
		(void)nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, frame->hd.stream_id, NGHTTP2_NO_ERROR);
	if (frame->hd.type == NGHTTP2_GOAWAY && frame->goaway.error_code != NGHTTP2_NO_ERROR)
		tunnel->violated = true;
	return 0;
}

static nghttp2_session_callbacks *create_callbacks(void)
{
	nghttp2_session_callbacks *callbacks;

	if (nghttp2_session_callbacks_new(&callbacks))
		return NULL;
	nghttp2_session_callbacks_set_send_callback(callbacks, cv_h2_on_send);
	nghttp2_session_callbacks_set_send_data_callback(callbacks, cv_h2_on_send_data);
	nghttp2_session_callbacks_set_data_source_read_length_callback(callbacks, cv_h2_on_read_length);
	nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, on_begin_headers);
	nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
	nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame);
	nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data);
	nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_stream_close);
	nghttp2_session_callbacks_set_on_frame_send_callback(callbacks, on_sent);
	return callbacks;
}

static int create_session(struct cv_tunnel *tunnel)
{
	nghttp2_session_callbacks *callbacks = create_callbacks();
	nghttp2_option *option = NULL;
	int error = -ENOMEM;

	if (callbacks && !nghttp2_option_new(&option)) {
		nghttp2_option_set_no_auto_window_update(option, 1);
		nghttp2_option_set_no_http_messaging(option, 1);
		nghttp2_option_set_no_closed_streams(option, 1);
		error = tunnel->role == CV_ROLE_SERVER
				? nghttp2_session_server_new2(&tunnel->h2, callbacks, tunnel, option)
				: nghttp2_session_client_new2(&tunnel->h2, callbacks, tunnel, option);
	}
	nghttp2_option_del(option);
	nghttp2_session_callbacks_del(callbacks);
	return error ? -ENOMEM : 0;
}

int cv_h2_open(struct cv_tunnel *tunnel)
{
	bool is_server = tunnel->role == CV_ROLE_SERVER;
	nghttp2_settings_entry settings[] = {
		is_server ? (nghttp2_settings_entry){NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, NGHTTP2_STREAMS}
			  : (nghttp2_settings_entry){NGHTTP2_SETTINGS_ENABLE_PUSH, 0},
		{NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, CV_H2_STREAM_WINDOW},
		{NGHTTP2_SETTINGS_MAX_FRAME_SIZE, CV_H2_MAX_FRAME},
		{NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, head_limit(tunnel)},
	};

	tunnel->guard.tokens = GUARD_TOKENS;
	tunnel->guard.refilled_ms = tunnel->worker->now_ms;
	if (create_session(tunnel) ||
	    nghttp2_submit_settings(tunnel->h2, NGHTTP2_FLAG_NONE, settings, sizeof(settings) / sizeof(*settings)) ||
	    nghttp2_session_set_local_window_size(tunnel->h2, NGHTTP2_FLAG_NONE, 0, CV_H2_TUNNEL_WINDOW))
		return -ENOMEM;
	return 0;
}

int cv_h2_receive(struct cv_tunnel *tunnel, const uint8_t *bytes, size_t length)
{
	struct cv_guard *guard = &tunnel->guard;
	bool was_in_head = guard->in_head;
	ssize_t n = nghttp2_session_mem_recv(tunnel->h2, bytes, length);

	cv_h2_gather_flush(tunnel);
	if (n < 0)
		return -EPROTO;
	guard->head_bytes = was_in_head && guard->in_head ? guard->head_bytes + (uint32_t)length : 0;
	return guard->head_bytes > GUARD_HEAD_BYTES ? -EPROTO : 0;
}

int cv_h2_ping(struct cv_tunnel *tunnel)
{
	return nghttp2_submit_ping(tunnel->h2, NGHTTP2_FLAG_NONE, NULL) ? -ENOMEM : 0;
}
