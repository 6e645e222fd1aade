/* SPDX-License-Identifier: Apache-2.0 */
/* One HBONE connection, either role: socket, TLS, HTTP/2 session and the streams on it. */
#ifndef CULVERT_TUNNEL_H
#define CULVERT_TUNNEL_H
#include <nghttp2/nghttp2.h>

#include "h2.h"
#include "pod.h"
#include "text.h"
#include "tls.h"

enum cv_tunnel_state {
	CV_TUNNEL_CONNECTING,
	CV_TUNNEL_WAITING, /* server: for the pod's identity */
	CV_TUNNEL_HANDSHAKE,
	CV_TUNNEL_OPEN,
	CV_TUNNEL_LINGERING, /* over; the last bytes (an alert, GOAWAY) are on their way */
	CV_TUNNEL_GONE,
};

struct cv_tunnel {
	struct cv_list link;   /* seat->tunnels */
	struct cv_list pooled; /* pool->tunnels, client only */
	struct cv_list young;  /* seat->young while it is in worker->handshakes, server only */
	struct cv_pool *pool;
	struct cv_watch watch;
	struct cv_job ready;
	struct cv_job flush;
	struct cv_worker *worker;
	struct cv_seat *seat;
	struct cv_identity *identity;
	struct cv_text *peer; /* authenticated SPIFFE id */
	SSL *ssl;
	nghttp2_session *h2;
	struct cv_list streams;
	struct cv_queue out; /* ciphertext */
	const uint8_t *in;   /* ciphertext of the current read */
	size_t in_length;
	size_t staged; /* bytes in worker->record, 0 between flushes */
	struct cv_gather gather;
	struct cv_timer life; /* connect, handshake, then PING */
	struct cv_timer idle;
	struct cv_timer proof;
	int64_t expires_ms;    /* wall clock: the first of the certificates that proved its ends */
	enum cv_reason lapsed; /* why that proof is no longer good; OK: it is */
	const char *lapse_detail;
	struct cv_endpoint remote;
	struct cv_endpoint local;
	uint64_t heard_ms;
	uint64_t pinged_ms; /* 0: no PING of ours is out */
	uint64_t buffered;  /* bytes that applications have not taken */
	uint64_t owed;      /* connection credit held back */
	struct cv_guard guard;
	uint64_t share; /* whose it is in the pod's tunnel shares; server only */
	uint32_t stream_count;
	uint32_t withdrawn; /* client: requests that were taken back, and that nghttp2 has not dropped yet */
	uint32_t source;    /* workload numbers of the note, client only */
	uint32_t destination;
	enum cv_role role;
	enum cv_tunnel_state state;
	enum cv_reason verdict; /* why verification refused; OK: it did not */
	int fd;
	bool counted;     /* in tunnels_open */
	bool handshaking; /* in worker->handshakes */
	bool may_read;
	bool may_write;
	bool hung_up;
	bool retired;         /* no new streams: GOAWAY, drain or a replaced identity */
	bool draining;        /* server: the first GOAWAY has left */
	bool drain_when_open; /* server: drained while it was shaking hands */
	bool closing;         /* ends when the last stream has */
	bool proven;          /* client: the server has spoken HTTP/2, so it accepted our certificate */
	bool announced;       /* server: its SETTINGS have left */
	bool violated;        /* a GOAWAY with an error has left, or nobody would hear it */
	bool closed_cleanly;  /* close_notify was seen */
	const char *verify_detail;
	char explanation[256]; /* who was expected and who came */
};

void cv_tunnel_accept(struct cv_seat *seat, int fd);
/* `pool` hears of opened, room and gone. NULL with `error` -errno. */
struct cv_tunnel *cv_tunnel_connect(struct cv_seat *seat, struct cv_pool *pool, const struct cv_endpoint *to,
				    uint32_t source, uint32_t destination, int *error);

bool cv_tunnel_has_room(const struct cv_tunnel *tunnel);
void cv_tunnel_fail(struct cv_tunnel *tunnel, enum cv_reason reason, const char *detail); /* streams are lost */
void cv_tunnel_cut(struct cv_tunnel *tunnel, enum cv_reason reason); /* GOAWAY if it fits, and gone now */
void cv_tunnel_retire(struct cv_tunnel *tunnel);                     /* no new streams; ends after the last */
void cv_tunnel_drain(struct cv_tunnel *tunnel); /* the same, and the peer is told before it is held to it */
void cv_tunnel_retry_identity(struct cv_tunnel *tunnel);
void cv_tunnel_proved(struct cv_tunnel *tunnel);      /* their SETTINGS have come */
void cv_tunnel_stream_over(struct cv_tunnel *tunnel); /* there may be room for another */
/* Serves what was queued on the session, at the end of this turn. */
static inline void cv_tunnel_wants_flush(struct cv_tunnel *tunnel)
{
	cv_worker_flush(tunnel->worker, &tunnel->flush);
}

#endif
