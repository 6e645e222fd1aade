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

int cv_note_flow(int map, int fd, struct cv_flow_delta *ret)
{
	struct tcp_info info;
	socklen_t length = sizeof(info);
	struct cv_flow flow;
	int error = element(BPF_MAP_LOOKUP_ELEM, map, fd, &flow);
	uint64_t sent;

	if (error)
		return error;
	memset(&info, 0, sizeof(info));
	if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) < 0)
		return -errno;
	sent = info.tcpi_bytes_acked;
	/* What the kernel counts beside payload, as the `flows` program takes it off. */
	if (flow.flags & CV_FLOW_ACTIVE && sent)
		sent--;
	ret->sent = sent > flow.sent ? sent - flow.sent : 0;
	ret->received = info.tcpi_bytes_received > flow.received ? info.tcpi_bytes_received - flow.received : 0;
	return 0;
}
