/* SPDX-License-Identifier: Apache-2.0 */
/* The note stands before connect, always: a socket of ours without one would be captured, and loop. */
#include "dial.h"

#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#include "engine.h"

int cv_dial(struct cv_seat *seat, const struct cv_endpoint *to, const struct cv_stamp *stamp)
{
	struct sockaddr_storage address;
	socklen_t length = cv_endpoint_to_sockaddr(to, &address);
	int fd = cv_worker_socket(seat->worker, seat->pod->netns, address.ss_family);
	int error;

	if (fd < 0)
		return fd;
	error = cv_note_stamp(seat->worker->engine->settings.notes_map, fd, stamp->kind, stamp->direction,
			      stamp->source, stamp->destination, stamp->orig);
	if (!error && connect(fd, (struct sockaddr *)&address, length) < 0 && errno != EINPROGRESS)
		error = -errno;
	if (error) {
		close(fd);
		return error;
	}
	return fd;
}

int cv_dial_stream(struct cv_seat *seat, const struct cv_endpoint *to, const struct cv_stamp *stamp,
		   struct cv_tcp **ret)
{
	int fd = cv_dial(seat, to, stamp);

	if (fd < 0)
		return fd;
	/* Whoever lives in this kernel cannot vanish without a word, so towards the application nothing asks. */
	cv_tcp_configure(fd, stamp->kind == CV_NOTE_CLIENT ? 0 : seat->worker->engine->settings.keepalive_s);
	return cv_tcp_create(seat->worker, fd, true, ret);
}

enum cv_reason cv_dial_reason(int error)
{
	switch (-error) {
	case ECONNREFUSED:
	case ECONNRESET:
		return CV_REASON_CONNECT_REFUSED;
	case ETIMEDOUT:
		return CV_REASON_CONNECT_TIMEOUT;
	case ENETUNREACH:
	case EHOSTUNREACH:
	case ENETDOWN:
	case EHOSTDOWN:
		return CV_REASON_CONNECT_UNREACHABLE;
	case EMFILE:
	case ENFILE:
	case ENOMEM:
	case ENOBUFS:
		return CV_REASON_LIMIT_DESCRIPTORS;
	default:
		return CV_REASON_CONNECT_FAILED;
	}
}
