/* SPDX-License-Identifier: Apache-2.0 */
/* Connections of local applications, from 15001 to where they belong. */
#ifndef CULVERT_OUTBOUND_H
#define CULVERT_OUTBOUND_H
#include "conn.h"

struct cv_tunnel;

void cv_outbound_accept(struct cv_seat *seat, int fd);
/* Answers to cv_pool_request. */
void cv_outbound_tunnel(struct cv_conn *conn, struct cv_tunnel *tunnel);
void cv_outbound_no_tunnel(struct cv_conn *conn, enum cv_reason reason, const char *detail);

#endif
