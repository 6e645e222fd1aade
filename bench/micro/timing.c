/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Loops around the calls that are timed, in C, so that what is timed is the call and not Python. Returns the
 * nanoseconds of the whole loop.
 */
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <linux/bpf.h>

#include "border.h"

typedef int route_fn(const struct cv_tables *tables, uint32_t source, const struct cv_endpoint *destination,
		     uint64_t randomness, struct cv_route *ret);
typedef int judge_fn(const struct cv_tables *tables, uint32_t workload, const struct cv_peer *peer,
		     const struct cv_endpoint *destination, struct cv_verdict *ret);

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Each turn another destination, so that the caches hold no more than they would. */
uint64_t time_route(route_fn *route, const struct cv_tables *tables, uint32_t source,
		    const struct cv_endpoint *destinations, uint32_t count, uint32_t turns)
{
	uint64_t began = now_ns();

	for (uint32_t i = 0; i < turns; i++) {
		struct cv_route ret;

		(void)route(tables, source, &destinations[i % count], (uint64_t)i * 0x9e3779b97f4a7c15u, &ret);
	}
	return now_ns() - began;
}

uint64_t time_judge(judge_fn *judge, const struct cv_tables *tables, uint32_t workload, const struct cv_peer *peers,
		    uint32_t count, const struct cv_endpoint *destination, uint32_t turns)
{
	uint64_t began = now_ns();

	for (uint32_t i = 0; i < turns; i++) {
		struct cv_verdict ret;

		(void)judge(tables, workload, &peers[i % count], destination, &ret);
	}
	return now_ns() - began;
}

/* A lookup or an update of a socket's note; 0 when one of them fails. */
uint64_t time_note(int command, int map, int socket, void *note, uint32_t turns)
{
	uint64_t began = now_ns();

	for (uint32_t i = 0; i < turns; i++) {
		union bpf_attr attr;

		memset(&attr, 0, sizeof(attr));
		attr.map_fd = (uint32_t)map;
		attr.key = (uintptr_t)&socket;
		attr.value = (uintptr_t)note;
		if (syscall(SYS_bpf, command, &attr, sizeof(attr)) < 0)
			return 0;
	}
	return now_ns() - began;
}
