/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A byte stream with half-close and backpressure, and the relay that joins two of them.
 *
 * A stream delivers what it reads to its relay, which hands it to the other end with `put` or `write`; that end tells
 * with cv_stream_took() how much has left it, and the relay passes it on as `taken`, which is what credit and reading
 * depend on. `queued` is what was handed over and not yet taken, so a reader stops by looking at the other end.
 *
 * A stream ends in one of two ways. Cleanly: both directions saw their end (`ended`: theirs arrived, `finished`: ours
 * left) and the relay calls `close`. Or it is lost: it has let go of what it held before it says so, and the relay
 * resets the other end with `abort`. After close, abort or lost the stream is gone.
 */
#ifndef CULVERT_STREAM_H
#define CULVERT_STREAM_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "border.h"
#include "buf.h"

struct cv_stream;
struct cv_relay;

struct cv_stream_ops {
	void (*start)(struct cv_stream *stream);                                        /* joined: begin to deliver */
	void (*put)(struct cv_stream *stream, struct cv_buf *buf);                      /* send; takes the buffer */
	void (*write)(struct cv_stream *stream, const struct iovec *vector, int count); /* send; bytes stay ours */
	void (*finish)(struct cv_stream *stream);              /* half-close after what is queued */
	void (*taken)(struct cv_stream *stream, size_t bytes); /* the other end has taken what we delivered */
	bool (*is_delivered)(const struct cv_stream *stream);  /* has what left also arrived, our end included? */
	void (*abort)(struct cv_stream *stream);               /* reset */
	void (*close)(struct cv_stream *stream);               /* both directions have ended */
};

struct cv_stream {
	const struct cv_stream_ops *ops;
	struct cv_relay *relay;                                        /* NULL until joined */
	void (*lost)(struct cv_stream *stream, enum cv_reason reason); /* until joined */
	void *owner;                                                   /* whose `lost` it is */
	size_t queued;
	uint64_t sent; /* taken in all */
	bool ended;
	bool finished;
};

struct cv_relay {
	struct cv_stream *ends[2]; /* downstream, upstream */
	/* The relay is over and both ends are gone. `reason` is OK when both directions ended. */
	void (*over)(struct cv_relay *relay, enum cv_reason reason);
	uint64_t sent[2]; /* what each end took, kept when the ends are gone */
};

/* Both ends start to deliver. */
void cv_relay_join(struct cv_relay *relay, struct cv_stream *downstream, struct cv_stream *upstream);
/* Resets both ends; `over` is called with `reason`. */
void cv_relay_cut(struct cv_relay *relay, enum cv_reason reason);
uint64_t cv_relay_sent(const struct cv_relay *relay, int end);

static inline struct cv_stream *cv_stream_other(const struct cv_stream *stream)
{
	return stream->relay->ends[stream->relay->ends[0] == stream];
}

/* Is nothing left of the relay but this stream's own end? */
static inline bool cv_stream_is_last(const struct cv_stream *stream)
{
	const struct cv_stream *other = cv_stream_other(stream);

	return stream->ended && other->ended && other->finished;
}

/* What a stream calls. After any of them it may be gone: it must not touch itself before looking at `relay`. */
void cv_stream_deliver(struct cv_stream *stream, struct cv_buf *buf);
void cv_stream_deliver_vector(struct cv_stream *stream, const struct iovec *vector, int count, size_t bytes);
void cv_stream_end(struct cv_stream *stream);                /* their half-close, after all that was delivered */
void cv_stream_took(struct cv_stream *stream, size_t bytes); /* bytes of ours have left */
void cv_stream_finished(struct cv_stream *stream);           /* our half-close has left */
void cv_stream_lost(struct cv_stream *stream, enum cv_reason reason);

#endif
