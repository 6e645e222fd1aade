/* SPDX-License-Identifier: Apache-2.0 */
/* HTTP/2 on a tunnel (nghttp2), CONNECT streams as byte streams, and what a request or an answer said. */
#ifndef CULVERT_H2_H
#define CULVERT_H2_H
#include <nghttp2/nghttp2.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "border.h"
#include "list.h"
#include "stream.h"
#include "worker.h"

struct cv_tunnel;
struct cv_conn;

enum {
	CV_H2_STREAM_WINDOW = 4 << 20,
	CV_H2_TUNNEL_WINDOW = 16 << 20, /* four stalled streams may not stop a fifth */
	CV_H2_MAX_FRAME = 1 << 20,
	CV_H2_SERVER_STREAMS = 200, /* of one peer at a time: more are refused one by one */
	CV_H2_AUTHORITY = 300,      /* a DNS name (255), brackets, a port */
	CV_H2_VECTOR = 16,
};

/* Header fields of one message, as far as they matter. Exists from its first field until it was acted on. */
struct cv_head {
	uint32_t size; /* as SETTINGS_MAX_HEADER_LIST_SIZE counts */
	uint16_t status;
	uint16_t authority_length;
	bool has_method;
	bool is_connect;
	bool has_authority;
	bool authority_too_long;
	bool has_path_or_scheme;
	bool has_protocol;
	bool has_status;
	bool regular_seen;
	bool malformed;
	bool too_large;
	bool has_forwarded;
	struct cv_endpoint forwarded;
	char authority[CV_H2_AUTHORITY];
};

struct cv_h2_stream {
	struct cv_stream stream;
	struct cv_list link; /* tunnel->streams */
	struct cv_job job;
	struct cv_worker *worker;
	struct cv_tunnel *tunnel; /* NULL: it is gone, and what had ended on it drains */
	struct cv_head *head;
	void (*answered)(struct cv_h2_stream *stream, uint16_t status); /* client, once */
	const char *detail; /* why the tunnel went, for `lost`; good to the end of the turn */
	struct cv_queue out;
	struct cv_queue early; /* arrived before the relay was joined */
	size_t unread;         /* delivered, and not taken by the other end */
	int32_t id;
	bool answer_seen; /* headers of ours (server) or theirs (client) are through */
	bool remote_ended;
	bool refused;     /* answered with a status other than 200 */
	bool crowded_out; /* client: lost because more were queued than they allow, and never sent */
	bool finishing;
	bool deferred; /* nghttp2 waits for us to resume */
	bool closed;   /* nghttp2 knows it no more */
	bool released; /* its owner has let go */
};

/* Bytes of one stream, decrypted and not yet handed on: one write for many frames. */
struct cv_gather {
	struct cv_h2_stream *stream;
	struct iovec vector[CV_H2_VECTOR];
	int count;
	size_t bytes;
};

/* Frames that cost us and carry nothing: a bucket that refills. */
struct cv_guard {
	uint64_t refilled_ms;
	int32_t tokens;
	uint32_t head_bytes; /* received while one header block stays incomplete */
	bool in_head;
};

int cv_h2_open(struct cv_tunnel *tunnel);
/* 0, or -EPROTO when the session is beyond repair. */
int cv_h2_receive(struct cv_tunnel *tunnel, const uint8_t *bytes, size_t length);
int cv_h2_send(struct cv_tunnel *tunnel);
int cv_h2_ping(struct cv_tunnel *tunnel);
void cv_h2_lose_streams(struct cv_tunnel *tunnel, enum cv_reason reason, const char *detail);

/* Client: CONNECT. The answer comes through `answered`, a loss through the stream's `lost`. */
int cv_h2_request(struct cv_tunnel *tunnel, struct cv_conn *conn, const char *baggage, struct cv_h2_stream **ret);
/* Client: of the requests that have not left, those beyond `allowed` streams are lost, and safe to make elsewhere. */
void cv_h2_take_back(struct cv_tunnel *tunnel, uint32_t allowed);
/* Server: 200, and the stream carries bytes. */
int cv_h2_accept(struct cv_h2_stream *stream, const char *baggage);
/* Server: an answer without a body; the stream is over for its owner. */
void cv_h2_refuse(struct cv_h2_stream *stream, uint16_t status);
/* A violation: RST_STREAM PROTOCOL_ERROR; over for its owner. */
void cv_h2_violate(struct cv_h2_stream *stream);

/* Between the parts of it. */
ssize_t cv_h2_read(nghttp2_session *session, int32_t id, uint8_t *bytes, size_t length, uint32_t *flags,
		   nghttp2_data_source *source, void *user);
ssize_t cv_h2_on_send(nghttp2_session *session, const uint8_t *bytes, size_t length, int flags, void *user);
ssize_t cv_h2_on_read_length(nghttp2_session *session, uint8_t type, int32_t id, int32_t session_window,
			     int32_t stream_window, uint32_t max_frame, void *user);
int cv_h2_on_send_data(nghttp2_session *session, nghttp2_frame *frame, const uint8_t *header, size_t length,
		       nghttp2_data_source *source, void *user);
void cv_h2_drop_head(struct cv_h2_stream *stream);
struct cv_h2_stream *cv_h2_stream_create(struct cv_tunnel *tunnel, int32_t id);
void cv_h2_stream_closed(struct cv_h2_stream *stream, uint32_t error); /* nghttp2 has forgotten it */
void cv_h2_stream_arrived(struct cv_h2_stream *stream, const uint8_t *bytes, size_t length);
void cv_h2_stream_remote_end(struct cv_h2_stream *stream);
void cv_h2_gather_flush(struct cv_tunnel *tunnel);
void cv_h2_stream_release(struct cv_h2_stream *stream);
void cv_h2_credit(struct cv_h2_stream *stream, size_t bytes);

/* h2_head.c */
void cv_head_field(struct cv_head *head, const uint8_t *name, size_t name_length, const uint8_t *value,
		   size_t value_length, uint32_t limit);
bool cv_head_is_valid_request(const struct cv_head *head);

#endif
