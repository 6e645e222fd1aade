/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Load for path benchmarks, so small that what is measured is the path.
 *
 *   load serve IP PORT            echoes; a connection whose first byte is 'S' is read and thrown away instead
 *   load rr IP PORT SECONDS SIZE CONNECTIONS   closed loop request-response; prints per second, p50 and p99 in us
 *   load stream IP PORT SECONDS                one connection, one way; prints GB/s
 *   load crr IP PORT SECONDS                   connect, one byte each way, close; prints per second and p50 in us
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { CHUNK = 1 << 18, SAMPLES = 1 << 22 };
static char chunk[CHUNK];
static uint32_t *samples;
static size_t count;

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static struct sockaddr_in address_of(char **argv)
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1]))};

	if (inet_pton(AF_INET, argv[0], &a.sin_addr) != 1)
		die("address");
	return a;
}

static int dial(const struct sockaddr_in *a)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	int one = 1;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	if (connect(fd, (const struct sockaddr *)a, sizeof(*a)) < 0)
		die("connect");
	return fd;
}

static void serve(const struct sockaddr_in *a)
{
	static uint8_t sink[65536];
	struct epoll_event events[64];
	struct epoll_event event = {.events = EPOLLIN};
	int listener = socket(AF_INET, SOCK_STREAM, 0);
	int epoll = epoll_create1(0);
	int one = 1;

	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(listener, (const struct sockaddr *)a, sizeof(*a)) < 0 || listen(listener, 1024) < 0)
		die("listen");
	event.data.fd = listener;
	epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
	for (;;) {
		int n = epoll_wait(epoll, events, 64, -1);

		for (int i = 0; i < n; i++) {
			int fd = events[i].data.fd;
			ssize_t got;

			if (fd == listener) {
				fd = accept(listener, NULL, NULL);
				if (fd < 0)
					continue;
				setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
				sink[fd] = 2;
				event.data.fd = fd;
				epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
				continue;
			}
			got = recv(fd, chunk, CHUNK, 0);
			if (got <= 0) {
				close(fd);
				continue;
			}
			if (sink[fd] == 2)
				sink[fd] = chunk[0] == 'S';
			if (!sink[fd] && send(fd, chunk, (size_t)got, MSG_NOSIGNAL) != got)
				close(fd);
		}
	}
}

static void sample(uint64_t ns)
{
	if (count < SAMPLES)
		samples[count++] = (uint32_t)(ns / 10);
}

static int ascending(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a;
	uint32_t y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

static void print(double seconds)
{
	qsort(samples, count, sizeof(*samples), ascending);
	printf("{\"per_s\": %.0f, \"p50_us\": %.2f, \"p99_us\": %.2f}\n", (double)count / seconds,
	       count ? samples[count / 2] / 100.0 : 0, count ? samples[count * 99 / 100] / 100.0 : 0);
}

static void rr(const struct sockaddr_in *a, double seconds, size_t size, int connections)
{
	static uint64_t started[4096];
	static size_t left[4096];
	struct epoll_event events[256];
	int epoll = epoll_create1(0);
	uint64_t start = now_ns();
	uint64_t end = start + (uint64_t)(seconds * 1e9);

	memset(chunk, 'E', CHUNK);
	for (int i = 0; i < connections; i++) {
		int fd = dial(a);
		struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};

		epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
		left[fd] = size;
		started[fd] = now_ns();
		if (send(fd, chunk, size, 0) != (ssize_t)size)
			die("send");
	}
	while (now_ns() < end) {
		int n = connections == 1 ? 1 : epoll_wait(epoll, events, 256, 1000);

		if (connections == 1 && !events[0].data.fd)
			n = epoll_wait(epoll, events, 1, 1000);
		for (int i = 0; i < n; i++) {
			int fd = events[i].data.fd;
			ssize_t got = recv(fd, chunk, left[fd], 0);

			if (got <= 0)
				die("recv");
			left[fd] -= (size_t)got;
			if (left[fd])
				continue;
			sample(now_ns() - started[fd]);
			left[fd] = size;
			started[fd] = now_ns();
			if (send(fd, chunk, size, 0) != (ssize_t)size)
				die("send");
		}
	}
	print((double)(now_ns() - start) / 1e9);
}

static void stream(const struct sockaddr_in *a, double seconds)
{
	int fd = dial(a);
	uint64_t start = now_ns();
	uint64_t end = start + (uint64_t)(seconds * 1e9);
	uint64_t sent = 0;

	memset(chunk, 'S', CHUNK);
	while (now_ns() < end) {
		ssize_t n = send(fd, chunk, CHUNK, 0);

		if (n <= 0)
			die("send");
		sent += (uint64_t)n;
	}
	printf("{\"gb_per_s\": %.3f}\n", (double)sent / (double)(now_ns() - start));
}

static void crr(const struct sockaddr_in *a, double seconds)
{
	uint64_t start = now_ns();
	uint64_t end = start + (uint64_t)(seconds * 1e9);

	while (now_ns() < end) {
		uint64_t began = now_ns();
		int fd = dial(a);
		char byte = 'E';

		if (send(fd, &byte, 1, 0) != 1 || recv(fd, &byte, 1, 0) != 1)
			die("exchange");
		close(fd);
		sample(now_ns() - began);
	}
	print((double)(now_ns() - start) / 1e9);
}

int main(int argc, char **argv)
{
	struct sockaddr_in a;

	if (argc < 4)
		return 2;
	a = address_of(argv + 2);
	samples = malloc(SAMPLES * sizeof(*samples));
	if (!strcmp(argv[1], "serve"))
		serve(&a);
	else if (argc > 6 && !strcmp(argv[1], "rr"))
		rr(&a, atof(argv[4]), (size_t)atol(argv[5]), atoi(argv[6]));
	else if (argc > 4 && !strcmp(argv[1], "stream"))
		stream(&a, atof(argv[4]));
	else if (argc > 4 && !strcmp(argv[1], "crr"))
		crr(&a, atof(argv[4]));
	else
		return 2;
	return 0;
}
