/* SPDX-License-Identifier: Apache-2.0 */
/* Linked with --wrap for each of the functions below: see ../Makefile. */
#include "h2_world.h"

#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "dial.h"
#include "tables.h"
#include "tcp.h"
#include "tunnel.h"

enum { SOCKETS = 32 };

static struct {
	int near; /* the engine's */
	int far;
} sockets[SOCKETS];
static int socket_count;
static struct cv_identity identity = {.refs = 1};
static long allocations_left = -1;

/* ---------------------------------------------------------------- sockets */

int world_socket(void)
{
	int pair[2];

	if (socket_count == SOCKETS)
		return -EMFILE;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair))
		abort();
	sockets[socket_count].near = pair[0];
	sockets[socket_count++].far = pair[1];
	return pair[0];
}

/* The last that had the number, which is used again. */
void world_send(int fd, const uint8_t *bytes, size_t length)
{
	int i = socket_count - 1;

	while (sockets[i].near != fd)
		i--;
	(void)!send(sockets[i].far, bytes, length, MSG_NOSIGNAL);
}

void world_act(enum world_act act, uint8_t who)
{
	int far = socket_count ? sockets[who % socket_count].far : -1;

	if (act == WORLD_WRITE)
		(void)!send(far, sockets, sizeof(sockets), MSG_NOSIGNAL);
	else
		(void)shutdown(far, act == WORLD_END ? SHUT_WR : SHUT_RDWR);
}

bool world_close(void)
{
	while (socket_count)
		close(sockets[--socket_count].far);
	return atomic_load(&identity.refs) == 1;
}

int __wrap_cv_dial(struct cv_seat *seat, const struct cv_endpoint *to, const struct cv_stamp *stamp);
int __wrap_cv_dial_stream(struct cv_seat *seat, const struct cv_endpoint *to, const struct cv_stamp *stamp,
			  struct cv_tcp **ret);
int __wrap_getsockname(int fd, struct sockaddr *address, socklen_t *length);
int __wrap_getpeername(int fd, struct sockaddr *address, socklen_t *length);

int __wrap_cv_dial(struct cv_seat *seat, const struct cv_endpoint *to, const struct cv_stamp *stamp)
{
	(void)seat;
	(void)to;
	(void)stamp;
	return world_socket();
}

int __wrap_cv_dial_stream(struct cv_seat *seat, const struct cv_endpoint *to, const struct cv_stamp *stamp,
			  struct cv_tcp **ret)
{
	int fd = world_socket();

	(void)to;
	(void)stamp;
	return fd < 0 ? fd : cv_tcp_create(seat->worker, fd, true, ret);
}

/* What an application dialled. */
int __wrap_getsockname(int fd, struct sockaddr *address, socklen_t *length)
{
	struct sockaddr_in vip = {.sin_family = AF_INET, .sin_port = htons(80), .sin_addr = {htonl(0x0a010001)}};

	(void)fd;
	memcpy(address, &vip, sizeof(vip));
	*length = sizeof(vip);
	return 0;
}

int __wrap_getpeername(int fd, struct sockaddr *address, socklen_t *length)
{
	return __wrap_getsockname(fd, address, length);
}

/* -------------------------------------------------------------------- TLS */

ssize_t __wrap_cv_tls_read(struct cv_tunnel *tunnel, uint8_t *to, size_t size);
int __wrap_cv_tls_write(struct cv_tunnel *tunnel, const uint8_t *bytes, size_t length);
int __wrap_cv_tls_flush(struct cv_tunnel *tunnel);
void __wrap_cv_proof_begin(struct cv_tunnel *tunnel);
struct cv_identity *__wrap_cv_identity_acquire(struct cv_identities *identities, const char *name);

ssize_t __wrap_cv_tls_read(struct cv_tunnel *tunnel, uint8_t *to, size_t size)
{
	size_t n = tunnel->in_length < size ? tunnel->in_length : size;

	memcpy(to, tunnel->in, n);
	tunnel->in += n;
	tunnel->in_length -= n;
	return (ssize_t)n;
}

int __wrap_cv_tls_write(struct cv_tunnel *tunnel, const uint8_t *bytes, size_t length)
{
	(void)tunnel;
	(void)bytes;
	(void)length;
	return 0;
}

int __wrap_cv_tls_flush(struct cv_tunnel *tunnel)
{
	(void)tunnel;
	return 0;
}

void __wrap_cv_proof_begin(struct cv_tunnel *tunnel)
{
	(void)tunnel;
}

struct cv_identity *__wrap_cv_identity_acquire(struct cv_identities *identities, const char *name)
{
	(void)identities;
	(void)name;
	atomic_fetch_add(&identity.refs, 1);
	return &identity;
}

/* ----------------------------------------------------------------- memory */

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
int __wrap_nghttp2_session_server_new2(nghttp2_session **ret, const nghttp2_session_callbacks *callbacks, void *user,
				       const nghttp2_option *option);
int __wrap_nghttp2_session_client_new2(nghttp2_session **ret, const nghttp2_session_callbacks *callbacks, void *user,
				       const nghttp2_option *option);

void world_fail_allocation(long number)
{
	allocations_left = number;
}

static bool is_spent(void)
{
	return allocations_left >= 0 && allocations_left-- == 0;
}

void *__wrap_malloc(size_t size)
{
	return is_spent() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
	return is_spent() ? NULL : __real_calloc(count, size);
}

static void *session_malloc(size_t size, void *unused)
{
	(void)unused;
	return __wrap_malloc(size);
}

static void *session_calloc(size_t count, size_t size, void *unused)
{
	(void)unused;
	return __wrap_calloc(count, size);
}

static void *session_realloc(void *from, size_t size, void *unused)
{
	(void)unused;
	return is_spent() ? NULL : realloc(from, size);
}

static void session_free(void *memory, void *unused)
{
	(void)unused;
	free(memory);
}

static nghttp2_mem session_memory = {NULL, session_malloc, session_free, session_calloc, session_realloc};

int __wrap_nghttp2_session_server_new2(nghttp2_session **ret, const nghttp2_session_callbacks *callbacks, void *user,
				       const nghttp2_option *option)
{
	return nghttp2_session_server_new3(ret, callbacks, user, option, &session_memory);
}

int __wrap_nghttp2_session_client_new2(nghttp2_session **ret, const nghttp2_session_callbacks *callbacks, void *user,
				       const nghttp2_option *option)
{
	return nghttp2_session_client_new3(ret, callbacks, user, option, &session_memory);
}

/* ----------------------------------------------------------------- tables */

static int put_workload(struct cv_tables *tables, uint32_t number, const char *uid)
{
	uint8_t ip[1][16] = {{[10] = 0xff, [11] = 0xff, [12] = 127, [15] = (uint8_t)number}};
	struct cv_workload workload = {.number = number,
				       .uid = uid,
				       .identity = "spiffe://td/ns/n/sa/a",
				       .namespace_ = "n",
				       .baggage = "b",
				       .network = "",
				       .hbone = 1,
				       .addresses = (const uint8_t(*)[16])ip,
				       .address_count = 1};

	return cv_tables_put_workload(tables, &workload);
}

static int put_service(struct cv_tables *tables)
{
	struct cv_prefix vip = {.ip = {[10] = 0xff, [11] = 0xff, [12] = 10, [13] = 1, [15] = 1}, .length = 128};
	struct cv_service_endpoint endpoint = {.workload = 2, .service_port = 80, .target_port = 80, .weight = 1};
	uint16_t port = 80;
	struct cv_service service = {.number = 3,
				     .hostname = "s",
				     .namespace_ = "n",
				     .vips = &vip,
				     .vip_count = 1,
				     .endpoints = &endpoint,
				     .endpoint_count = 1,
				     .ports = &port,
				     .port_count = 1};

	return cv_tables_put_service(tables, &service);
}

struct cv_tables *world_tables(void)
{
	struct cv_tables *tables = cv_tables_create();

	if (!tables || put_workload(tables, 1, "w") || put_workload(tables, 2, "far") || put_service(tables))
		abort();
	return tables;
}
