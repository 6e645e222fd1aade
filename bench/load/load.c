/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Load for path benchmarks, so small that what is measured is the path. Every byte that arrives is compared.
 *
 *   load serve IP PORT
 *   load rr IP PORT SECONDS BYTES CONNECTIONS   request-response, closed loop: the next request follows the answer
 *   load paced IP PORT SECONDS BYTES CONNECTIONS RATE   the same, open loop: latency counts from when it was due
 *   load bulk IP PORT SECONDS CONNECTIONS       streams, one way, until the other end has said what it got of each
 *   load crr IP PORT SECONDS                    connect, one byte each way, close; one at a time
 *   load hold IP PORT CONNECTIONS               opens them, one exchange on each, prints, keeps them until stdin ends
 *
 * Each client prints one JSON object; a wrong byte, a reset or a refusal ends it with status 1.
 */
#include "load.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

enum { CONNECTIONS = 20000, EVENTS = 256 };

struct exchange {
	int fd;
	uint32_t got; /* of the answer */
	int busy;
	uint64_t started_ns;
};

uint8_t pattern[PATTERN + CHUNK];
static struct histogram latencies;
static struct exchange exchanges[CONNECTIONS];
static uint8_t message[sizeof(struct hello) + MESSAGE];
static uint8_t chunk[CHUNK];

void die(const char *what)
{
	perror(what);
	exit(1);
}

void fail(const char *what)
{
	fprintf(stderr, "%s\n", what);
	exit(1);
}

void no_delay(int fd)
{
	int one = 1;

	if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)) < 0)
		die("TCP_NODELAY");
}

uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* The same numbers on every run. */
static void fill_pattern(void)
{
	uint32_t x = 2463534242u;

	for (size_t i = 0; i < sizeof(pattern); i++) {
		x ^= x << 13;
		x ^= x >> 17;
		x ^= x << 5;
		pattern[i] = i < PATTERN ? (uint8_t)x : pattern[i - PATTERN];
	}
}

static struct address address_of(char **argv)
{
	struct addrinfo hints = {.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV, .ai_socktype = SOCK_STREAM};
	struct address address = {0};
	struct addrinfo *found;

	if (getaddrinfo(argv[0], argv[1], &hints, &found))
		fail("not an address and a port");
	memcpy(&address.storage, found->ai_addr, found->ai_addrlen);
	address.length = found->ai_addrlen;
	freeaddrinfo(found);
	return address;
}

int dial(const struct address *address)
{
	int fd = socket(address->storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		die("socket");
	if (connect(fd, (const struct sockaddr *)&address->storage, address->length) < 0)
		die("connect");
	no_delay(fd);
	return fd;
}

void send_all(int fd, const void *bytes, size_t length)
{
	if (send(fd, bytes, length, MSG_NOSIGNAL) != (ssize_t)length)
		die("send");
}

/* The first request carries the hello in front of it. */
static void prepare(uint32_t bytes)
{
	struct hello hello = {.magic = MAGIC, .mode = ECHO, .request = bytes, .response = bytes};

	if (!bytes || bytes > MESSAGE)
		fail("a message has 1 to 65536 bytes");
	memcpy(message, &hello, sizeof(hello));
	memcpy(message + sizeof(hello), pattern, bytes);
}

/* One read of an answer. True: it is whole. */
static int receive(struct exchange *exchange, uint32_t bytes)
{
	ssize_t n = recv(exchange->fd, chunk, bytes - exchange->got, 0);

	if (n <= 0)
		die("recv");
	if (memcmp(chunk, pattern + exchange->got, (size_t)n))
		fail("an answer holds a wrong byte");
	exchange->got += (uint32_t)n;
	if (exchange->got < bytes)
		return 0;
	exchange->got = 0;
	return 1;
}

static void open_exchanges(const struct address *address, int count, uint32_t bytes)
{
	if (count < 1 || count > CONNECTIONS)
		fail("1 to 20000 connections");
	prepare(bytes);
	for (int i = 0; i < count; i++) {
		exchanges[i].fd = dial(address);
		send_all(exchanges[i].fd, message, sizeof(struct hello) + bytes);
		while (!receive(&exchanges[i], bytes))
			;
	}
}

static void start(struct exchange *exchange, uint32_t bytes, uint64_t due_ns)
{
	exchange->started_ns = due_ns;
	exchange->busy = 1;
	send_all(exchange->fd, message + sizeof(struct hello), bytes);
}

static void print_latencies(uint64_t began_ns)
{
	double seconds = (double)(now_ns() - began_ns) / 1e9;

	printf("{\"per_s\": %.1f, \"count\": %llu, \"p50_us\": %.2f, \"p99_us\": %.2f, \"max_us\": %.1f}\n",
	       (double)latencies.count / seconds, (unsigned long long)latencies.count,
	       histogram_quantile_us(&latencies, 0.5), histogram_quantile_us(&latencies, 0.99),
	       (double)latencies.max / 1000);
}

static int watch_all(int count)
{
	int epoll = epoll_create1(0);

	for (int i = 0; i < count; i++) {
		struct epoll_event event = {.events = EPOLLIN, .data.ptr = &exchanges[i]};

		if (epoll_ctl(epoll, EPOLL_CTL_ADD, exchanges[i].fd, &event) < 0)
			die("epoll_ctl");
	}
	return epoll;
}

/* With one connection a blocking read, as an application would; else epoll. */
static void closed_loop(uint64_t end_ns, uint32_t bytes, int count)
{
	int epoll = count > 1 ? watch_all(count) : -1;
	struct epoll_event events[EVENTS] = {{.data.ptr = &exchanges[0]}};

	for (int i = 0; i < count; i++)
		start(&exchanges[i], bytes, now_ns());
	for (uint64_t now = 0; now < end_ns;) {
		int n = count > 1 ? epoll_wait(epoll, events, EVENTS, 1000) : 1;

		for (int i = 0; i < n; i++) {
			struct exchange *exchange = events[i].data.ptr;

			if (!receive(exchange, bytes))
				continue;
			now = now_ns();
			histogram_add(&latencies, now - exchange->started_ns);
			start(exchange, bytes, now);
		}
		if (!n)
			fail("no answer within a second");
	}
}

/* Every answer is taken before the end: closing over one would be a reset. */
static void drain(uint32_t bytes, int count)
{
	for (int i = 0; i < count; i++)
		while (exchanges[i].busy && !receive(&exchanges[i], bytes))
			;
}

static void rr(const struct address *address, double seconds, uint32_t bytes, int count)
{
	uint64_t began;

	open_exchanges(address, count, bytes);
	began = now_ns();
	closed_loop(began + (uint64_t)(seconds * 1e9), bytes, count);
	print_latencies(began);
	drain(bytes, count);
}

static void wait_until(int epoll, uint64_t due_ns, uint32_t bytes)
{
	struct epoll_event events[EVENTS];

	for (uint64_t now = now_ns(); now < due_ns; now = now_ns()) {
		struct timespec left = {.tv_sec = (time_t)((due_ns - now) / 1000000000u),
					.tv_nsec = (long)((due_ns - now) % 1000000000u)};
		int n = epoll_pwait2(epoll, events, EVENTS, &left, NULL);

		for (int i = 0; i < n; i++) {
			struct exchange *exchange = events[i].data.ptr;

			if (!receive(exchange, bytes))
				continue;
			exchange->busy = 0;
			histogram_add(&latencies, now_ns() - exchange->started_ns);
		}
	}
}

/* Requests are due at a fixed rate, round the connections; one that is still busy is waited for, and its delay counts.
 */
static void paced(const struct address *address, double seconds, uint32_t bytes, int count, double rate)
{
	uint64_t step = (uint64_t)(1e9 / rate);
	uint64_t began;
	uint64_t due;
	int epoll;

	open_exchanges(address, count, bytes);
	epoll = watch_all(count);
	began = now_ns();
	due = began;
	for (int next = 0; due < began + (uint64_t)(seconds * 1e9); next = (next + 1) % count, due += step) {
		wait_until(epoll, due, bytes);
		while (exchanges[next].busy)
			wait_until(epoll, now_ns() + 10000, bytes);
		start(&exchanges[next], bytes, due);
	}
	wait_until(epoll, now_ns() + 20000000, bytes);
	print_latencies(began);
	drain(bytes, count);
}

static void crr(const struct address *address, double seconds)
{
	uint64_t began = now_ns();
	uint64_t end = began + (uint64_t)(seconds * 1e9);
	uint64_t started = began;

	prepare(1);
	while (started < end) {
		struct exchange exchange = {.fd = dial(address)};

		send_all(exchange.fd, message, sizeof(struct hello) + 1);
		receive(&exchange, 1);
		close(exchange.fd);
		histogram_add(&latencies, now_ns() - started);
		started = now_ns();
	}
	print_latencies(began);
}

static void hold(const struct address *address, int count)
{
	open_exchanges(address, count, 1024);
	printf("{\"open\": %d}\n", count);
	fflush(stdout);
	while (getchar() != EOF)
		;
}

int main(int argc, char **argv)
{
	struct address address;

	if (argc < 4)
		fail("usage: load serve|rr|paced|bulk|crr|hold IP PORT ..., see load.c");
	fill_pattern();
	address = address_of(argv + 2);
	if (!strcmp(argv[1], "serve"))
		serve(&address);
	else if (argc == 7 && !strcmp(argv[1], "rr"))
		rr(&address, atof(argv[4]), (uint32_t)atoi(argv[5]), atoi(argv[6]));
	else if (argc == 8 && !strcmp(argv[1], "paced"))
		paced(&address, atof(argv[4]), (uint32_t)atoi(argv[5]), atoi(argv[6]), atof(argv[7]));
	else if (argc == 6 && !strcmp(argv[1], "bulk"))
		bulk(&address, atof(argv[4]), atoi(argv[5]));
	else if (argc == 5 && !strcmp(argv[1], "crr"))
		crr(&address, atof(argv[4]));
	else if (argc == 5 && !strcmp(argv[1], "hold"))
		hold(&address, atoi(argv[4]));
	else
		fail("unknown mode or wrong number of arguments, see load.c");
	return 0;
}
