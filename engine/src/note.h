/* SPDX-License-Identifier: Apache-2.0 */
/* Notes and flow figures of our own sockets, in the programs' sk_storage maps. */
#ifndef CULVERT_NOTE_H
#define CULVERT_NOTE_H
#include <linux/types.h>
#include <stdbool.h>

#include "border.h"
#include "../../bpf/include/maps.h"

/* 0, or -errno: -ENOENT when the socket has none. */
int cv_note_read(int map, int fd, struct cv_note *ret);
int cv_note_write(int map, int fd, const struct cv_note *note);

/* The note of a socket that we are about to connect; `orig` is NULL unless it is CLIENT. */
int cv_note_stamp(int map, int fd, enum cv_note_kind kind, enum cv_direction direction, uint32_t source,
		  uint32_t destination, const struct cv_endpoint *orig);
/* Adds to the note of an accepted socket whose edge it is. */
int cv_note_label(int map, int fd, enum cv_direction direction, uint32_t source, uint32_t destination);

/* What the kernel counted on the socket and `flows` does not hold yet. */
int cv_note_flow(int map, int fd, struct cv_flow_delta *ret);

#endif
