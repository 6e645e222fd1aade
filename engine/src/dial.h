/* SPDX-License-Identifier: Apache-2.0 */
/* Connects from inside a pod: the socket, its note, and what an error means. */
#ifndef CULVERT_DIAL_H
#define CULVERT_DIAL_H
#include "endpoint.h"
#include "note.h"
#include "pod.h"
#include "tcp.h"

/* What the note of the new socket says. */
struct cv_stamp {
	enum cv_note_kind kind;
	enum cv_direction direction;
	uint32_t source;
	uint32_t destination;
	const struct cv_endpoint *orig; /* CLIENT only */
};

/* A socket that is connecting, or -errno. */
int cv_dial(struct cv_seat *seat, const struct cv_endpoint *to, const struct cv_stamp *stamp);
int cv_dial_stream(struct cv_seat *seat, const struct cv_endpoint *to, const struct cv_stamp *stamp,
		   struct cv_tcp **ret);
enum cv_reason cv_dial_reason(int error); /* of a connect, -errno */

#endif
