/* SPDX-License-Identifier: Apache-2.0 */
/* Figures of one worker. Only it writes; anybody may read, so each is atomic, and none orders anything. */
#ifndef CULVERT_STATS_H
#define CULVERT_STATS_H
#include <stdatomic.h>
#include <stdint.h>

#include "border.h"

struct cv_figures {
	_Atomic uint64_t accepted;
	_Atomic uint64_t refused[64];
	_Atomic uint64_t tunnels_opened[2];
	_Atomic uint64_t tunnels_closed[2];
	_Atomic uint64_t handshakes_failed[2];
	_Atomic uint64_t pool_hits;
	_Atomic uint64_t pool_misses;
	_Atomic uint64_t bytes_buffered;
	_Atomic uint64_t connections_open;
	_Atomic uint64_t tunnels_open;
	_Atomic uint64_t spun_ns;
};

static inline uint64_t cv_figure(const _Atomic uint64_t *figure)
{
	return atomic_load_explicit((_Atomic uint64_t *)figure, memory_order_relaxed);
}

/* A plain addition: there is one writer. */
static inline void cv_figure_add(_Atomic uint64_t *figure, int64_t n)
{
	atomic_store_explicit(figure, cv_figure(figure) + (uint64_t)n, memory_order_relaxed);
}

#endif
