/* SPDX-License-Identifier: Apache-2.0 */
/* bpf(2) on sk_storage maps, keyed by descriptor. No library: two commands are all that a worker needs. */
#include "note.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/bpf.h>
#include <netinet/in.h>
#include <linux/tcp.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Of include/net/tcp_states.h, which user space gets with netinet/tcp.h; that one clashes with linux/tcp.h. */
enum {
	TCP_FIN_WAIT1 = 4,
	TCP_LAST_ACK = 9,
	TCP_CLOSING = 11,
};

static int element(int command, int map, int fd, void *value)
{
	union bpf_attr attr;

	memset(&attr, 0, sizeof(attr));
	attr.map_fd = (__u32)map;
	attr.key = (__u64)(uintptr_t)&fd;
	attr.value = (__u64)(uintptr_t)value;
	return syscall(SYS_bpf, command, &attr, sizeof(attr)) < 0 ? -errno : 0;
}

int cv_note_read(int map, int fd, struct cv_note *ret)
{
	return element(BPF_MAP_LOOKUP_ELEM, map, fd, ret);
}

int cv_note_write(int map, int fd, const struct cv_note *note)
{
	return element(BPF_MAP_UPDATE_ELEM, map, fd, (void *)note);
}

static uint64_t socket_cookie(int fd, int name)
{
	uint64_t cookie = 0;
	socklen_t length = sizeof(cookie);

	if (getsockopt(fd, SOL_SOCKET, name, &cookie, &length) < 0)
		return 0;
	return cookie;
}

int cv_note_stamp(int map, int fd, enum cv_note_kind kind, enum cv_direction direction, uint32_t source,
		  uint32_t destination, const struct cv_endpoint *orig)
{
	struct cv_note note = {
		.kind = (__u8)kind,
		.direction = (__u8)direction,
		.source = source,
		.destination = destination,
	};

	if (map < 0)
		return 0;
	note.cookie = socket_cookie(fd, SO_COOKIE);
	note.netns = socket_cookie(fd, SO_NETNS_COOKIE);
	if (orig) {
		memcpy(note.orig.b, orig->ip, sizeof(note.orig.b));
		note.orig_port = htons(orig->port);
	}
	return cv_note_write(map, fd, &note);
}

int cv_note_label(int map, int fd, enum cv_direction direction, uint32_t source, uint32_t destination)
{
	struct cv_note note;
	int error;

	if (map < 0)
		return 0;
	error = cv_note_read(map, fd, &note);
	if (error)
		return error;
	note.direction = (__u8)direction;
	note.source = source;
	note.destination = destination;
	return cv_note_write(map, fd, &note);
}

static uint64_t less(uint64_t a, uint64_t b)
{
	return a > b ? a - b : 0;
}

static bool is_fin_acked(const struct tcp_info *info, const struct cv_flow *flow)
{
	bool is_closing = info->tcpi_state == TCP_FIN_WAIT1 || info->tcpi_state == TCP_CLOSING ||
			  info->tcpi_state == TCP_LAST_ACK;

	return flow->flags & CV_FLOW_FIN_ACKED || (is_closing && !info->tcpi_unacked);
}

/* The same arithmetic as the `flows` program's: SYN and FIN are no payload, and an edge runs from source to
 * destination whichever end of it the socket is. */
int cv_note_flow(int map, int fd, struct cv_flow_delta *ret)
{
	struct tcp_info info = {0};
	socklen_t length = sizeof(info);
	struct cv_flow flow;
	int error = element(BPF_MAP_LOOKUP_ELEM, map, fd, &flow);
	bool is_active;
	uint64_t sent;
	uint64_t received;

	if (error)
		return error;
	is_active = flow.flags & CV_FLOW_ACTIVE;
	if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) < 0)
		return -errno;
	sent = less(less(info.tcpi_bytes_acked, (uint64_t)is_active + is_fin_acked(&info, &flow)), flow.sent);
	received = less(less(info.tcpi_bytes_received, !!(flow.flags & CV_FLOW_FIN_RECEIVED)), flow.received);
	ret->sent = is_active ? sent : received;
	ret->received = is_active ? received : sent;
	return 0;
}
