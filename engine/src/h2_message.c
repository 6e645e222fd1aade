/* SPDX-License-Identifier: Apache-2.0 */
/* The messages of HBONE: CONNECT as a client sends it, and what a server answers. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "conn.h"
#include "endpoint.h"
#include "h2.h"
#include "tunnel.h"

void cv_h2_drop_head(struct cv_h2_stream *stream)
{
	free(stream->head);
	stream->head = NULL;
}

static nghttp2_nv field(const char *name, const char *value, uint8_t flags)
{
	return (nghttp2_nv){
		.name = (uint8_t *)name,
		.value = (uint8_t *)value,
		.namelen = strlen(name),
		.valuelen = strlen(value),
		.flags = flags,
	};
}

static void write_traceparent(struct cv_worker *worker, char ret[56])
{
	snprintf(ret, 56, "00-%016llx%016llx-%016llx-00", (unsigned long long)cv_worker_random(worker),
		 (unsigned long long)cv_worker_random(worker), (unsigned long long)cv_worker_random(worker) | 1);
}

int cv_h2_request(struct cv_tunnel *tunnel, struct cv_conn *conn, const char *baggage, struct cv_h2_stream **ret)
{
	char authority[CV_ENDPOINT_TEXT];
	char client[CV_ENDPOINT_TEXT];
	char forwarded[CV_ENDPOINT_TEXT + 8];
	char traceparent[56];
	nghttp2_nv fields[5];
	size_t count = 0;
	struct cv_h2_stream *stream;
	nghttp2_data_provider source = {.read_callback = cv_h2_read};
	int32_t id;

	cv_endpoint_print(&conn->route.authority, authority);
	cv_endpoint_print(&conn->client, client);
	snprintf(forwarded, sizeof(forwarded), "for=\"%s\"", client);
	write_traceparent(tunnel->worker, traceparent);
	fields[count++] = field(":method", "CONNECT", NGHTTP2_NV_FLAG_NONE);
	fields[count++] = field(":authority", authority, NGHTTP2_NV_FLAG_NONE);
	if (baggage && *baggage)
		fields[count++] = field("baggage", baggage, NGHTTP2_NV_FLAG_NONE);
	fields[count++] = field("forwarded", forwarded, NGHTTP2_NV_FLAG_NO_INDEX);
	fields[count++] = field("traceparent", traceparent, NGHTTP2_NV_FLAG_NO_INDEX);
	stream = cv_h2_stream_create(tunnel, 0);
	if (!stream)
		return -ENOMEM;
	source.source.ptr = stream;
	id = nghttp2_submit_request(tunnel->h2, NULL, fields, count, &source, stream);
	if (id < 0) {
		stream->closed = true;
		tunnel->stream_count--;
		cv_h2_stream_release(stream);
		return id == NGHTTP2_ERR_STREAM_ID_NOT_AVAILABLE ? -EAGAIN : -ENOMEM;
	}
	stream->id = id;
	cv_tunnel_wants_flush(tunnel);
	*ret = stream;
	return 0;
}

/* nghttp2 keeps such a request, cancelled, until it would have been sent. */
void cv_h2_take_back(struct cv_tunnel *tunnel, uint32_t allowed)
{
	uint32_t open = 0;

	cv_list_each_safe (entry, &tunnel->streams) {
		struct cv_h2_stream *stream = cv_container(entry, struct cv_h2_stream, link);

		if (stream->closed || open++ < allowed || nghttp2_session_find_stream(tunnel->h2, stream->id))
			continue;
		(void)nghttp2_session_set_stream_user_data(tunnel->h2, stream->id, NULL);
		if (!stream->released) /* else it is cancelled already, and once more would send a reset */
			(void)nghttp2_submit_rst_stream(tunnel->h2, NGHTTP2_FLAG_NONE, stream->id, NGHTTP2_CANCEL);
		tunnel->withdrawn++;
		stream->crowded_out = true;
		cv_h2_stream_closed(stream, NGHTTP2_REFUSED_STREAM);
	}
}

int cv_h2_accept(struct cv_h2_stream *stream, const char *baggage)
{
	nghttp2_nv fields[2] = {field(":status", "200", NGHTTP2_NV_FLAG_NONE)};
	nghttp2_data_provider source = {.source.ptr = stream, .read_callback = cv_h2_read};
	size_t count = 1;

	if (stream->closed || !stream->tunnel)
		return -EPIPE;
	cv_h2_drop_head(stream);
	stream->answer_seen = true;
	if (baggage && *baggage)
		fields[count++] = field("baggage", baggage, NGHTTP2_NV_FLAG_NONE);
	if (nghttp2_submit_response(stream->tunnel->h2, stream->id, fields, count, &source))
		return -ENOMEM;
	cv_tunnel_wants_flush(stream->tunnel);
	return 0;
}

void cv_h2_refuse(struct cv_h2_stream *stream, uint16_t status)
{
	char text[8];
	struct cv_tunnel *tunnel = stream->tunnel;

	if (tunnel && !stream->closed) {
		nghttp2_nv fields[1];

		snprintf(text, sizeof(text), "%u", status);
		fields[0] = field(":status", text, NGHTTP2_NV_FLAG_NONE);
		stream->answer_seen = true;
		stream->refused = true; /* the reset follows when the answer has left: nghttp2 would send it alone */
		(void)nghttp2_submit_response(tunnel->h2, stream->id, fields, 1, NULL);
		cv_tunnel_wants_flush(tunnel);
	}
	cv_h2_stream_release(stream);
}
