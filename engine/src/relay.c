/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Joins two streams: bytes, half-close and reset pass from one to the other and nothing is kept here.
 *
 * Owns the rule how a relay ends. It refuses to know what kind its streams are.
 */
#include "stream.h"

void cv_relay_join(struct cv_relay *relay, struct cv_stream *downstream, struct cv_stream *upstream)
{
	relay->ends[0] = downstream;
	relay->ends[1] = upstream;
	downstream->relay = relay;
	upstream->relay = relay;
	downstream->ops->start(downstream);
	if (relay->ends[1])
		upstream->ops->start(upstream);
}

static void let_go(struct cv_relay *relay)
{
	for (int end = 0; end < 2; end++) {
		relay->sent[end] = relay->ends[end]->sent;
		relay->ends[end]->relay = NULL;
		relay->ends[end] = NULL;
	}
}

uint64_t cv_relay_sent(const struct cv_relay *relay, int end)
{
	return relay->ends[end] ? relay->ends[end]->sent : relay->sent[end];
}

void cv_relay_cut(struct cv_relay *relay, enum cv_reason reason)
{
	struct cv_stream *downstream = relay->ends[0];
	struct cv_stream *upstream = relay->ends[1];

	if (!downstream)
		return;
	let_go(relay);
	downstream->ops->abort(downstream);
	upstream->ops->abort(upstream);
	relay->over(relay, reason);
}

static void close_if_done(struct cv_relay *relay)
{
	struct cv_stream *downstream = relay->ends[0];
	struct cv_stream *upstream = relay->ends[1];

	if (!downstream->ended || !downstream->finished || !upstream->ended || !upstream->finished)
		return;
	let_go(relay);
	downstream->ops->close(downstream);
	upstream->ops->close(upstream);
	relay->over(relay, CV_REASON_OK);
}

void cv_stream_deliver(struct cv_stream *stream, struct cv_buf *buf)
{
	struct cv_stream *other = cv_stream_other(stream);

	other->queued += cv_buf_length(buf);
	other->ops->put(other, buf);
}

void cv_stream_deliver_vector(struct cv_stream *stream, const struct iovec *vector, int count, size_t bytes)
{
	struct cv_stream *other = cv_stream_other(stream);

	other->queued += bytes;
	other->ops->write(other, vector, count);
}

void cv_stream_end(struct cv_stream *stream)
{
	struct cv_stream *other = cv_stream_other(stream);

	stream->ended = true;
	other->ops->finish(other);
}

void cv_stream_took(struct cv_stream *stream, size_t bytes)
{
	struct cv_stream *other = cv_stream_other(stream);

	stream->queued -= bytes;
	stream->sent += bytes;
	other->ops->taken(other, bytes);
}

void cv_stream_finished(struct cv_stream *stream)
{
	stream->finished = true;
	close_if_done(stream->relay);
}

void cv_stream_lost(struct cv_stream *stream, enum cv_reason reason)
{
	struct cv_relay *relay = stream->relay;
	struct cv_stream *other;

	if (!relay) {
		if (stream->lost)
			stream->lost(stream, reason);
		return;
	}
	other = cv_stream_other(stream);
	let_go(relay);
	other->ops->abort(other);
	relay->over(relay, reason);
}
