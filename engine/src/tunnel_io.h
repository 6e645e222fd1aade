/* SPDX-License-Identifier: Apache-2.0 */
/* Between tunnel_open.c (how it begins), tunnel.c (its life) and tunnel_io.c (its bytes). */
#ifndef CULVERT_TUNNEL_IO_H
#define CULVERT_TUNNEL_IO_H
#include "tunnel.h"

/* tunnel_io.c */
void cv_tunnel_io_init(struct cv_tunnel *tunnel);
void cv_tunnel_handshake(struct cv_tunnel *tunnel);
void cv_tunnel_drain_output(struct cv_tunnel *tunnel); /* while lingering: the rest, then our end */

/* tunnel.c */
void cv_tunnel_life_init(struct cv_tunnel *tunnel);
void cv_tunnel_start_handshake(struct cv_tunnel *tunnel);
void cv_tunnel_opened(struct cv_tunnel *tunnel);
void cv_tunnel_lost(struct cv_tunnel *tunnel, enum cv_reason reason, const char *detail); /* the socket is dead */
void cv_tunnel_vanish(struct cv_tunnel *tunnel);

#endif
