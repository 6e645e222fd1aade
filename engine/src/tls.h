/* SPDX-License-Identifier: Apache-2.0 */
/*
 * TLS of one tunnel. It never touches the socket: ciphertext comes from the span that the tunnel has just read and
 * goes to the tunnel's queue, so a turn costs one read and one write however many records it holds.
 */
#ifndef CULVERT_TLS_H
#define CULVERT_TLS_H
#include <openssl/ssl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "border.h"
#include "identity.h"

struct cv_tunnel;

enum cv_tls_progress {
	CV_TLS_FAILED = -1,
	CV_TLS_MORE = 0, /* needs ciphertext */
	CV_TLS_DONE = 1,
};

/* Everything of a context that does not depend on certificates. */
int cv_tls_configure(SSL_CTX *context, enum cv_role role);

int cv_tls_init(struct cv_tunnel *tunnel); /* role and identity are set */
void cv_tls_deinit(struct cv_tunnel *tunnel);
enum cv_tls_progress cv_tls_handshake(struct cv_tunnel *tunnel);
/* Bytes read, 0: all ciphertext is used up, -1: violated or closed (`tunnel->closed_cleanly` tells). */
ssize_t cv_tls_read(struct cv_tunnel *tunnel, uint8_t *to, size_t size);
/* Gathers into full records. `flush` ends the last one. -errno when the queue cannot grow. */
int cv_tls_write(struct cv_tunnel *tunnel, const uint8_t *bytes, size_t length);
int cv_tls_flush(struct cv_tunnel *tunnel);
void cv_tls_goodbye(struct cv_tunnel *tunnel); /* close_notify */

/* verify.c: judges the peer's chain and names; keeps who it is in the tunnel. */
int cv_verify_peer(X509_STORE_CTX *store, void *unused);
/* The reason and a sentence for a handshake that failed. */
enum cv_reason cv_tls_reason(const struct cv_tunnel *tunnel, const char **detail);

#endif
