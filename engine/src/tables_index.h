/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A multimap from a 32-bit hash to objects that is cheap to copy: copies share buckets, and whoever writes to a
 * shared bucket first takes a copy of it. Callers compare keys themselves, several objects may have one hash.
 *
 * Writing goes in two steps so that a change of several keys happens whole or not at all: `own` and `reserve` may
 * fail, after them `insert` and `remove` cannot.
 */
#ifndef CULVERT_TABLES_INDEX_H
#define CULVERT_TABLES_INDEX_H
#include <stdint.h>
#include "tables_objects.h"

struct cv_bucket;

struct cv_index {
	struct cv_bucket **buckets;
	uint32_t mask; /* number of buckets - 1 */
	uint32_t count;
};

int cv_index_init(struct cv_index *index);
void cv_index_deinit(struct cv_index *index);
int cv_index_copy(const struct cv_index *from, struct cv_index *ret);

void cv_index_grow(struct cv_index *index); /* best effort: without memory look-ups get slower, not wrong */
int cv_index_own(struct cv_index *index, uint32_t hash);     /* promises one remove */
int cv_index_reserve(struct cv_index *index, uint32_t hash); /* promises one insert */
void cv_index_cancel(struct cv_index *index, uint32_t hash); /* takes a reserve back */
void cv_index_insert(struct cv_index *index, uint32_t hash, struct cv_object *object);
void cv_index_remove(struct cv_index *index, uint32_t hash, struct cv_object *object);

/* The next object with this hash; `position` starts at 0. NULL at the end. */
struct cv_object *cv_index_next(const struct cv_index *index, uint32_t hash, uint32_t *position);

uint32_t cv_index_hash(const void *bytes, size_t length);

#endif
