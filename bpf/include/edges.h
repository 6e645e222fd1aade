/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Adding to the figures of one edge. Increments are atomic: a program that runs in a task can be interrupted by the
 * same program in softirq on the same CPU.
 */
#ifndef CULVERT_EDGES_H
#define CULVERT_EDGES_H

#include "sockets.h"

static inline void cv_add(__u64 *figure, __u64 amount)
{
	__sync_fetch_and_add(figure, amount);
}

/* The figures of an edge on this CPU. When no more edges fit: those of the unknown edge, and that is counted. */
static inline struct cv_edge_stats *cv_edge_of(__u32 source, __u32 destination, __u32 direction)
{
	struct cv_edge key = {.source = source, .destination = destination, .direction = direction};
	struct cv_edge_stats *stats = edges.lookup(&key);
	struct cv_edge_stats *zeros;
	int first = 0;

	if (stats)
		return stats;
	zeros = blank.lookup(&first);
	if (zeros)
		edges.insert(&key, zeros); /* another CPU may have been first: same entry */
	stats = edges.lookup(&key);
	if (stats)
		return stats;
	cv_count(CV_COUNT_EDGE_OVERFLOW);
	key.source = 0;
	key.destination = 0;
	return edges.lookup(&key); /* the loader made it */
}

/* Bucket i holds [2^i, 2^(i+1)) microseconds; the last also what is longer, the first also zero. */
static inline __u32 cv_bucket(__u64 us)
{
	__u32 bucket = 0;

	if (us >= 1ULL << CV_HISTOGRAM_BUCKETS)
		return CV_HISTOGRAM_BUCKETS - 1;
	if (us >= 1 << 16) {
		us >>= 16;
		bucket += 16;
	}
	if (us >= 1 << 8) {
		us >>= 8;
		bucket += 8;
	}
	if (us >= 1 << 4) {
		us >>= 4;
		bucket += 4;
	}
	if (us >= 1 << 2) {
		us >>= 2;
		bucket += 2;
	}
	if (us >= 1 << 1)
		bucket += 1;
	return bucket;
}

static inline void cv_observe(__u64 *histogram, __u64 *sum, __u64 us)
{
	__u32 bucket = cv_bucket(us);

	asm volatile("" : "+r"(bucket)); /* keeps the check below, which the verifier needs */
	if (bucket < CV_HISTOGRAM_BUCKETS)
		cv_add(&histogram[bucket], 1);
	cv_add(sum, us);
}

#endif
