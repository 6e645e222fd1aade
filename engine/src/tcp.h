/* SPDX-License-Identifier: Apache-2.0 */
/* A stream over a TCP socket: non-blocking, edge triggered, registered once. */
#ifndef CULVERT_TCP_H
#define CULVERT_TCP_H
#include "stream.h"
#include "worker.h"

struct cv_tcp {
	struct cv_stream stream;
	struct cv_watch watch;
	struct cv_job job;
	struct cv_worker *worker;
	struct cv_queue out;
	void (*connected)(struct cv_tcp *tcp, int error); /* once, 0 or -errno; on error the socket is still open */
	int fd;                                           /* -1: gone */
	bool upstream;                                    /* whose reset it is */
	bool connecting;
	bool started;
	bool may_read;
	bool may_write;
	bool hung_up; /* the kernel has said that an end or an error waits: short reads prove nothing */
	bool finishing;
};

/* Takes `fd`, which is connected or connecting; -errno closes it. */
int cv_tcp_create(struct cv_worker *worker, int fd, bool connecting, struct cv_tcp **ret);
/* Ends with a reset; `lost` is not called. */
void cv_tcp_abort(struct cv_tcp *tcp);

/* TCP_NODELAY and keepalive (0: none). A listener's are inherited by what it accepts. */
void cv_tcp_configure(int fd, uint32_t keepalive_s);
/* A reset now, for a socket that has no owner. */
void cv_tcp_reset(int fd);

#endif
