/* SPDX-License-Identifier: Apache-2.0 */
/* Connections towards the local application: requests on 15008 and plain ones on 15006. */
#ifndef CULVERT_INBOUND_H
#define CULVERT_INBOUND_H
#include "conn.h"

struct cv_h2_stream;

void cv_inbound_accept(struct cv_seat *seat, int fd);
/* A request is whole: its fields are in `stream->head`. */
void cv_inbound_request(struct cv_h2_stream *stream);
/* The tables have changed: what they now deny is closed. */
void cv_inbound_judge_again(struct cv_conn *conn);

#endif
