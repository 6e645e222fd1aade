/* SPDX-License-Identifier: Apache-2.0 */
/* Latency histogram with a bounded relative error. */
#include "load.h"

enum { STEPS = 128, STEPS_LOG2 = 7 };

static unsigned int bucket_of(uint64_t ns)
{
	unsigned int power;

	if (ns < STEPS)
		return (unsigned int)ns;
	power = 63u - (unsigned int)__builtin_clzll(ns);
	return (power - STEPS_LOG2 + 1) * STEPS + (unsigned int)((ns >> (power - STEPS_LOG2)) & (STEPS - 1));
}

/* The middle of a bucket. */
static double value_of(unsigned int bucket)
{
	unsigned int shift = bucket / STEPS ? bucket / STEPS - 1 : 0;
	uint64_t low = bucket / STEPS ? (uint64_t)(STEPS + bucket % STEPS) << shift : bucket;

	return (double)low + (double)(1ull << shift) / 2;
}

void histogram_add(struct histogram *histogram, uint64_t ns)
{
	histogram->count++;
	if (ns > histogram->max)
		histogram->max = ns;
	histogram->buckets[bucket_of(ns)]++;
}

double histogram_quantile_us(const struct histogram *histogram, double quantile)
{
	uint64_t left = (uint64_t)(quantile * (double)histogram->count);

	for (unsigned int i = 0; i < sizeof(histogram->buckets) / sizeof(*histogram->buckets); i++) {
		if (histogram->buckets[i] > left)
			return value_of(i) / 1000;
		left -= histogram->buckets[i];
	}
	return (double)histogram->max / 1000;
}
