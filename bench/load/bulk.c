/* SPDX-License-Identifier: Apache-2.0 */
/* Streams, one way, until the other end has said what it got of each. */
#include "load.h"

#include <errno.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <unistd.h>

enum { STREAMS = 64, EVENTS = 64 };

struct stream {
	int fd;
	uint64_t sent;
};

static struct stream streams[STREAMS];

/* As much as the socket takes now; with one connection it blocks, as an application would. */
static void push(struct stream *stream, int flags)
{
	ssize_t n = send(stream->fd, pattern + stream->sent % PATTERN, CHUNK, MSG_NOSIGNAL | flags);

	if (n > 0)
		stream->sent += (uint64_t)n;
	else if (!n || errno != EAGAIN)
		die("send");
}

static void push_all(int count, uint64_t end_ns)
{
	int epoll = epoll_create1(0);
	struct epoll_event events[EVENTS];

	for (int i = 0; i < count; i++) {
		struct epoll_event event = {.events = EPOLLOUT, .data.ptr = &streams[i]};

		if (epoll_ctl(epoll, EPOLL_CTL_ADD, streams[i].fd, &event) < 0)
			die("epoll_ctl");
	}
	while (now_ns() < end_ns) {
		int n = epoll_wait(epoll, events, EVENTS, 1000);

		for (int i = 0; i < n; i++)
			push(events[i].data.ptr, MSG_DONTWAIT);
		if (!n)
			fail("no stream moved within a second");
	}
	close(epoll);
}

static void check_verdict(const struct stream *stream)
{
	struct verdict verdict = {0};

	if (recv(stream->fd, &verdict, sizeof(verdict), MSG_WAITALL) != sizeof(verdict))
		die("verdict");
	if (verdict.bytes != stream->sent || verdict.wrong)
		fail("the stream that arrived is not the one that was sent");
}

void bulk(const struct address *address, double seconds, int count)
{
	struct hello hello = {.magic = MAGIC, .mode = SINK, .request = 1};
	uint64_t sent = 0;
	uint64_t began;
	uint64_t end;

	if (count < 1 || count > STREAMS)
		fail("1 to 64 streams");
	for (int i = 0; i < count; i++) {
		streams[i].fd = dial(address);
		send_all(streams[i].fd, &hello, sizeof(hello));
	}
	began = now_ns();
	end = began + (uint64_t)(seconds * 1e9);
	if (count == 1)
		while (now_ns() < end)
			push(&streams[0], 0);
	else
		push_all(count, end);
	for (int i = 0; i < count; i++)
		if (shutdown(streams[i].fd, SHUT_WR) < 0)
			die("shutdown");
	for (int i = 0; i < count; i++) {
		check_verdict(&streams[i]);
		sent += streams[i].sent;
	}
	printf("{\"gbit_per_s\": %.3f, \"bytes\": %llu}\n", (double)sent * 8 / (double)(now_ns() - began),
	       (unsigned long long)sent);
}
