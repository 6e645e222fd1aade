/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What both ends of the load agree on.
 *
 * A connection opens with one `struct hello`. ECHO: requests of `request` bytes follow, each answered with `response`
 * bytes once it is whole. SINK: a stream follows; at its end (half-close) the server answers with one `struct verdict`.
 * All payload is the pattern: the byte at offset n of a message or stream is pattern[n % PATTERN], so that whoever
 * receives compares every byte, and a lost, doubled or misplaced one shows.
 */
#ifndef CULVERT_BENCH_LOAD_H
#define CULVERT_BENCH_LOAD_H
#include <netinet/in.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

enum { MAGIC = 0x43564c44, ECHO = 1, SINK = 2 };

/* A prime, so that no buffer size of any proxy divides it. */
enum { PATTERN = 65521, CHUNK = 1 << 18, MESSAGE = 1 << 16 };

struct hello {
	uint32_t magic;
	uint32_t mode;
	uint32_t request;
	uint32_t response;
};

struct verdict {
	uint64_t bytes;
	uint64_t wrong; /* reads that held a wrong byte */
};

struct address {
	struct sockaddr_storage storage;
	socklen_t length;
};

extern uint8_t pattern[PATTERN + CHUNK]; /* repeats, so that a chunk may start anywhere in the first PATTERN */

void die(const char *what) __attribute__((noreturn));
void fail(const char *what) __attribute__((noreturn));
uint64_t now_ns(void);
int dial(const struct address *address);
void send_all(int fd, const void *bytes, size_t length);
void no_delay(int fd);
void serve(const struct address *address) __attribute__((noreturn));
void bulk(const struct address *address, double seconds, int count);

/* Latencies in nanoseconds, in buckets of 1/128 of their power of two: a quantile is right within 0.8 %. */
struct histogram {
	uint64_t count;
	uint64_t max;
	uint32_t buckets[64 * 128];
};

void histogram_add(struct histogram *histogram, uint64_t ns);
double histogram_quantile_us(const struct histogram *histogram, double quantile);

#endif
