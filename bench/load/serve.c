/* SPDX-License-Identifier: Apache-2.0 */
/* The serving end: one thread, epoll, one read per event. Prints "ready" once it listens; runs until it is killed. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "load.h"

enum { EVENTS = 64, DESCRIPTORS = 20000 };

struct peer {
	struct hello hello;
	uint32_t greeted; /* bytes of the hello that are there */
	uint64_t offset;  /* of the request or the stream */
	struct verdict verdict;
};

static struct peer *peers[DESCRIPTORS];
static uint8_t chunk[CHUNK];
static int epoll;

static void forget(int fd)
{
	free(peers[fd]);
	peers[fd] = NULL;
	close(fd);
}

static void welcome(int listener)
{
	int fd = accept(listener, NULL, NULL);
	struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};

	if (fd < 0)
		return;
	if (fd >= DESCRIPTORS || !(peers[fd] = calloc(1, sizeof(struct peer)))) {
		close(fd);
		return;
	}
	no_delay(fd);
	if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) < 0)
		die("epoll_ctl");
}

/* False: the connection is to be closed. */
static int answer(int fd, const void *bytes, size_t length)
{
	return send(fd, bytes, length, MSG_NOSIGNAL) == (ssize_t)length;
}

static int take_requests(int fd, struct peer *peer, const uint8_t *bytes, size_t length)
{
	while (length) {
		size_t left = peer->hello.request - peer->offset;
		size_t n = length < left ? length : left;

		if (memcmp(bytes, pattern + peer->offset, n)) {
			fprintf(stderr, "a request holds a wrong byte\n");
			return 0;
		}
		peer->offset += n;
		bytes += n;
		length -= n;
		if (peer->offset < peer->hello.request)
			break;
		peer->offset = 0;
		if (!answer(fd, pattern, peer->hello.response))
			return 0;
	}
	return 1;
}

static void take_stream(struct peer *peer, const uint8_t *bytes, size_t length)
{
	peer->verdict.wrong += memcmp(bytes, pattern + peer->offset, length) != 0;
	peer->verdict.bytes += length;
	peer->offset = (peer->offset + length) % PATTERN;
}

static int greet(struct peer *peer, const uint8_t **bytes, size_t *length)
{
	size_t left = sizeof(peer->hello) - peer->greeted;
	size_t n = *length < left ? *length : left;

	memcpy((uint8_t *)&peer->hello + peer->greeted, *bytes, n);
	peer->greeted += (uint32_t)n;
	*bytes += n;
	*length -= n;
	if (peer->greeted < sizeof(peer->hello))
		return 1;
	return peer->hello.magic == MAGIC && (peer->hello.mode == SINK || peer->hello.mode == ECHO) &&
	       peer->hello.request && peer->hello.request <= MESSAGE && peer->hello.response <= MESSAGE;
}

static int take(int fd, struct peer *peer, const uint8_t *bytes, size_t length)
{
	if (peer->greeted < sizeof(peer->hello) && !greet(peer, &bytes, &length))
		return 0;
	if (!length)
		return 1;
	if (peer->hello.mode == ECHO)
		return take_requests(fd, peer, bytes, length);
	take_stream(peer, bytes, length);
	return 1;
}

static void serve_peer(int fd)
{
	struct peer *peer = peers[fd];
	ssize_t got = recv(fd, chunk, CHUNK, 0);

	if (got < 0 && (errno == EINTR || errno == EAGAIN))
		return;
	if (!got && peer->hello.mode == SINK)
		(void)answer(fd, &peer->verdict, sizeof(peer->verdict));
	if (got <= 0 || !take(fd, peer, chunk, (size_t)got))
		forget(fd);
}

void serve(const struct address *address)
{
	int listener = socket(address->storage.ss_family, SOCK_STREAM, 0);
	struct epoll_event event = {.events = EPOLLIN, .data.fd = listener};
	struct epoll_event events[EVENTS];
	int one = 1;

	epoll = epoll_create1(0);
	(void)setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(listener, (const struct sockaddr *)&address->storage, address->length) < 0 ||
	    listen(listener, 4096) < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event) < 0)
		die("listen");
	puts("ready");
	fflush(stdout);
	for (;;) {
		int n = epoll_wait(epoll, events, EVENTS, -1);

		for (int i = 0; i < n; i++) {
			if (events[i].data.fd == listener)
				welcome(listener);
			else
				serve_peer(events[i].data.fd);
		}
	}
}
