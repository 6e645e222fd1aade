/* SPDX-License-Identifier: Apache-2.0 */
/* Addresses as the border knows them, as the kernel wants them and as HTTP writes them. */
#ifndef CULVERT_ENDPOINT_H
#define CULVERT_ENDPOINT_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include "border.h"

enum { CV_ENDPOINT_TEXT = 64 }; /* "[" 45 "]:" 5 and the terminator fit */

bool cv_endpoint_is_v4(const struct cv_endpoint *endpoint);
bool cv_endpoint_is_loopback(const struct cv_endpoint *endpoint);
bool cv_endpoint_same_ip(const struct cv_endpoint *a, const struct cv_endpoint *b);
bool cv_endpoint_same(const struct cv_endpoint *a, const struct cv_endpoint *b);
bool cv_endpoint_is_mesh_port(uint16_t port);

/* Returns the length of the address; an IPv4 endpoint becomes AF_INET. */
socklen_t cv_endpoint_to_sockaddr(const struct cv_endpoint *endpoint, struct sockaddr_storage *ret);
int cv_endpoint_from_sockaddr(const struct sockaddr_storage *address, struct cv_endpoint *ret);

/* "a.b.c.d:port" or "[v6]:port". */
void cv_endpoint_print(const struct cv_endpoint *endpoint, char ret[CV_ENDPOINT_TEXT]);

enum cv_authority {
	CV_AUTHORITY_IP,
	CV_AUTHORITY_HOST,      /* well formed, a name */
	CV_AUTHORITY_MAPPED,    /* an IPv4-mapped literal: names no address of a pod */
	CV_AUTHORITY_BAD,       /* no port, or not an address: 400 */
	CV_AUTHORITY_MALFORMED, /* holds what no URI may hold: a violation of HTTP/2 */
};

/* Parses host:port. `ret` is set for IP only. */
enum cv_authority cv_authority_parse(const char *text, size_t length, struct cv_endpoint *ret);

/* The first `for="ip:port"` of a Forwarded header (RFC 7239): 0, or -EINVAL when it has none that is an address. */
int cv_forwarded_parse(const char *text, size_t length, struct cv_endpoint *ret);

#endif
